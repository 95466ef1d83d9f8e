"""Our own words: against the slow twin, whole and cut, with and without the memo."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.stages.filter import tunnel_traffic
from tests.stages.filter.judging import Frame, Judge, one_map_each
from tests.stages.filter.own_expressions import OWN, own_batches
from tests.stages.filter.twin import Twin


def differences(texts: tuple[str, ...], frames: list[Frame], undetermined: str, *, memo: bool = True) -> list[str]:
    config = one_map_each(texts, undetermined=undetermined)
    twin, judge = Twin(config), Judge(config, memo=memo)
    found = []
    for f, verdict in zip(frames, judge.verdicts(frames), strict=True):
        wanted, _ = twin.judge(f)
        got = {i for i in range(64) if verdict >> i & 1}
        found += [f"{texts[i]!r}: the twin says {i in wanted} of {f.data.hex()} ({len(f.data)} of {f.wirelen})" for i in got ^ wanted]
    return found


@pytest.mark.parametrize("undetermined", ["deliver", "drop", "libpcap"])
@pytest.mark.parametrize("memo", [True, False])
def test_our_own_words_select_what_the_twin_selects(undetermined: str, memo: bool) -> None:
    frames = tunnel_traffic.some(1500, seed=31)
    for texts in own_batches():
        assert differences(texts, frames, undetermined, memo=memo) == []


@pytest.mark.parametrize("undetermined", ["deliver", "drop", "libpcap"])
def test_a_packet_cut_anywhere_is_answered_as_the_twin_answers(undetermined: str) -> None:
    frames = tunnel_traffic.every_cut(12, seed=32)
    for texts in own_batches():
        assert differences(texts, frames, undetermined) == []


def test_an_empty_set_is_never_there() -> None:
    texts = ("vlan $none", "ttl $none", "inner gre key $none", "port {$none}", "host {$none}", "len {$none}", "ether host {$none}")
    judge = Judge(one_map_each(texts, sets={"none": ()}))
    assert set(judge.verdicts(tunnel_traffic.some(300, seed=34))) == {0}


def test_every_expression_selects_something_and_not_everything() -> None:
    frames = tunnel_traffic.some(6000, seed=33)
    hits: Counter[str] = Counter()
    for texts in own_batches():
        for verdict in Judge(one_map_each(texts)).verdicts(frames):
            hits.update(text for i, text in enumerate(texts) if verdict >> i & 1)
    assert [text for text in OWN if not 0 < hits[text] < len(frames)] == []
