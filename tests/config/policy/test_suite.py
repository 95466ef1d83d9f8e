"""libpcap's own filter suite, what of it is Ethernet: the same expressions taken and refused, the same packets selected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from broker.config.policy import PolicyError, parse_expression
from broker.config.policy.refused import REFUSED
from tests import libpcap
from tests.corpus import SUITES, needs_corpus, sample
from tests.stages.filter.judging import MAX_MAPS, Judge, frame, one_map_each

SUITE = SUITES / "libpcap-filter"
pytestmark = [needs_corpus, libpcap.needs_libpcap]


def rows(name: str) -> Iterator[dict[str, Any]]:
    for line in (SUITE / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.get("DLT", "EN10MB") == "EN10MB":
            yield row


def taken_by_libpcap() -> list[str]:
    found = []
    for row in rows("accept"):
        for text in row["aliases"]:
            if ".test" in text.lower():
                continue  # the names of hosts: libpcap asks the resolver, we never do
            try:
                libpcap.Filter(text)
            except libpcap.RefusedError:
                continue  # needs a newer libpcap
            found.append(text)
    return found


def sorted_by_us(texts: list[str]) -> tuple[list[str], dict[str, str]]:
    """(what we take, refusal of the others)."""
    taken, refused = [], {}
    for text in texts:
        try:
            parse_expression(text, {})
            taken.append(text)
        except PolicyError as error:
            refused[text] = error.message
    return taken, refused


def test_what_libpcap_takes_we_take_or_it_is_in_the_list_of_what_we_do_not() -> None:
    taken, refused = sorted_by_us(taken_by_libpcap())
    unexplained = {text: reason for text, reason in refused.items() if not any(part in reason for part in REFUSED.values())}
    assert unexplained == {}
    assert sorted(refused) == ["ifindex 10", "inbound"]
    assert len(taken) >= 188


def test_the_accepted_expressions_select_what_libpcap_selects() -> None:
    taken, _ = sorted_by_us(taken_by_libpcap())
    frames = [frame(c.data, c.wirelen) for capture in sample(6) for c in libpcap.read_ethernet(capture.path, 60)]
    for at in range(0, len(taken), MAX_MAPS):
        texts = taken[at : at + MAX_MAPS]
        oracles = [libpcap.Filter(text) for text in texts]
        for f, verdict in zip(frames, Judge(one_map_each(texts)).verdicts(frames), strict=True):
            wanted = [oracle(f.data, f.wirelen) for oracle in oracles]
            assert [bool(verdict >> i & 1) for i in range(len(texts))] == wanted, f.data.hex()


def test_what_libpcap_refuses_we_refuse() -> None:
    texts = [row["expr"] for row in rows("reject") if "expr" in row]
    taken, refused = sorted_by_us(texts)
    assert taken == ["protochain 17"]  # a libpcap built without it would refuse it
    libpcap.Filter(taken[0])
    assert len(refused) >= 25


def test_applied_to_the_captures_of_the_suite_the_results_are_the_same() -> None:
    applied, others = 0, 0
    for row in rows("apply"):
        captured = [frame(c.data, c.wirelen) for c in libpcap.read_ethernet(SUITE / "pcaps" / "filter" / row["savefile"], 10_000)]
        _, refused = sorted_by_us([row["expr"]])
        if not captured or refused or row["debian_libpcap_1.10.3"] != "agree":
            others += 1  # not Ethernet, not yet, or newer than the libpcap we follow
            continue
        found = Judge(one_map_each([row["expr"]])).verdicts(captured)
        assert [bool(verdict) for verdict in found] == [bool(n) for n in row["results"]], row["name"]
        applied += 1
    assert applied >= 13
    assert others <= 51
