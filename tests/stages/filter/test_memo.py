"""The memo changes nothing but the time."""

from __future__ import annotations

import pytest

from broker.config.policy.image import FIELD as FIELD_ROW
from broker.config.policy.image import FIELD_NUMBER, FIELDS, IMAGE
from broker.core.model import Config, Input, Map, Rule, Tool
from stages.filter.state import MAX_ASKED, MAX_NODES
from tests.packets import tcp_frame
from tests.stages.filter import traffic
from tests.stages.filter.expressions import EXPRESSIONS, batches
from tests.stages.filter.judging import Judge, frame, one_map_each


@pytest.mark.parametrize("undetermined", ["deliver", "drop", "libpcap"])
@pytest.mark.parametrize("memo_buckets", [1, 1024])
def test_verdicts_and_counters_are_the_same_with_and_without_the_memo(undetermined: str, memo_buckets: int) -> None:
    frames = traffic.some(1500, seed=11) * 2
    for texts in batches():
        config = one_map_each(texts, undetermined=undetermined)
        with_memo, without = Judge(config, memo_buckets=memo_buckets), Judge(config, memo=False)
        assert with_memo.judge(frames) == without.judge(frames)
        assert with_memo.counters.tolist() == without.counters.tolist()
        assert int(without.stage.state.header["n_runs"][0]) == len(frames)


def test_a_packet_of_a_known_kind_does_not_run_the_program() -> None:
    judge = Judge(one_map_each(("tcp port 80", "src net 10.0.0.0/8", "udp and greater 100")))
    frames = [frame(tcp_frame(f"10.0.{i}.1", 1024 + i, "192.168.1.1", 80)) for i in range(250)]
    assert set(judge.verdicts(frames)) == {3}
    assert int(judge.stage.state.header["n_runs"][0]) == 1


def test_every_field_of_the_key_is_used_by_some_expression() -> None:
    used = set()
    for texts in batches((*EXPRESSIONS, "vlan and vlan and vlan and vlan and ip")):
        image = Judge(one_map_each(texts)).image
        rows = image[IMAGE.itemsize : IMAGE.itemsize + len(FIELDS) * FIELD_ROW.itemsize].view(FIELD_ROW)
        used |= {name for name, at in FIELD_NUMBER.items() if rows[at]["shift"] >= 0}
    assert used == {name for name, _ in FIELDS} - {"input"}


def test_predicates_are_asked_once_a_kind_and_remembered() -> None:
    """Forty rules that no class of values answers; a packet's key leads from one to the next."""
    texts = tuple(f"ether proto {n}" for n in range(16, 56))
    judge = Judge(one_map_each(texts))
    frames = [frame(bytes(12) + b"\x00\x10" + bytes([n]) + bytes(50)) for n in range(16, 56)]
    assert judge.verdicts(frames) == [1 << i for i in range(40)]
    assert judge.verdicts(frames) == [1 << i for i in range(40)]
    assert int(judge.stage.state.header["n_runs"][0]) == 40


def test_more_predicates_than_are_remembered_change_nothing_but_the_time() -> None:
    rules = tuple(Rule("pass", f"ether proto {n}") for n in range(16, 16 + MAX_ASKED + 1))
    judge = Judge(Config("n", (Input("in", "pcap"),), (Tool("t", 5, file="-"),), (Map("m", rules, ("t",)),)))
    frames = [frame(bytes(12) + b"\x00\x10" + bytes([n]) + bytes(50)) for n in (16, 16 + MAX_ASKED, 16 + MAX_ASKED + 1)]
    for _ in range(2):
        assert judge.verdicts(frames) == [1 << 5, 1 << 5, 0]
    assert int(judge.stage.state.header["n_runs"][0]) == 5  # the first kind is remembered


def test_nodes_that_run_out_are_forgotten_and_made_again() -> None:
    masks = tuple(f"0.0.{bit >> 8}.{bit & 255}" for bit in (1 << n for n in range(16)))
    judge = Judge(one_map_each(tuple(f"src net {mask} mask {mask}" for mask in masks)), memo_buckets=64)
    for first in range(0, 1 << 16, 1 << 12):
        numbers = [(first + 4099 * n) & 0xFFFF for n in range(1 << 12)]
        frames = [frame(tcp_frame(f"10.0.{n >> 8}.{n & 255}", 1, "10.0.0.0", 2)) for n in numbers]
        assert judge.verdicts(frames) == numbers
        assert int(judge.stage.state.header["n_nodes"][0]) <= MAX_NODES


def test_a_new_policy_forgets_what_the_old_one_said() -> None:
    def config(action: str) -> Config:
        rule = Rule(action, "tcp")  # type: ignore[arg-type]
        return Config("n", (Input("in", "pcap"),), (Tool("t", 5, file="-"),), (Map("m", (rule,), ("t",)),))

    frames = [frame(tcp_frame("10.0.0.1", 1, "10.0.0.2", 2))]
    judge = Judge(config("pass"))
    assert judge.verdicts(frames) == [1 << 5]
    judge.load(config("drop"))
    assert judge.verdicts(frames) == [0]


def test_outcomes_never_run_out() -> None:
    """Twelve maps answer in thousands of ways; a block of them all, again and again."""
    masks = [f"0.0.{bit >> 8}.{bit & 255}" for bit in (1 << n for n in range(12))]
    texts = tuple(f"src net {mask} mask {mask}" for mask in masks)
    judge = Judge(one_map_each(texts), memo_buckets=64)
    for first in range(0, 4096, 512):
        frames = [frame(tcp_frame(f"10.0.{n >> 8}.{n & 255}", 1, "10.0.0.0", 2)) for n in range(first, first + 512)]
        assert judge.verdicts(frames) == list(range(first, first + 512))
