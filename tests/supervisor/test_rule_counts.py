"""Counts of rules over reloads: what stays the same rule goes on, what is gone is forgotten, and no file may go before it is kept."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import structlog

from broker.core.errors import PipelineError
from broker.core.generations import remove_generations_before
from broker.core.model import Config, Input, Map, Rule
from broker.core.rule_counts import open_rule_counts
from broker.core.shm import Pipeline
from broker.supervisor import prepare
from broker.supervisor.generation import InForce
from broker.supervisor.ledger import balance
from broker.supervisor.rule_counts import RuleReader
from broker.supervisor.snapshot import Names, Reader
from tests.supervisor.rings import capture_block

Counts = tuple[int, int, int]


def config(**maps: list[str]) -> Config:
    """`"-tcp"` is a rule that drops."""

    def rule(text: str) -> Rule:
        return Rule("drop", text[1:]) if text[0] == "-" else Rule("pass", text)

    return Config("n", (Input("in", "pcap"),), (), tuple(Map(name, tuple(map(rule, rules)), ()) for name, rules in maps.items()))


class Reloads:
    """Generations put in force one after the other, each with what one worker has counted in it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.log = pipeline, structlog.testing.CapturingLogger()
        self.force = InForce(pipeline, lambda _: b"image", structlog.wrap_logger(self.log, processors=[]))

    def put(self, config: Config, *counts: Counts) -> None:
        self.force.put(self.force.prepare(config))
        self.count(self.force.number, *counts)

    def count(self, generation: int, *counts: Counts) -> None:
        halves = open_rule_counts(self.pipeline.directory, generation, writable=True).of_worker(0, 0)
        for row, (packets, n_bytes, undetermined) in zip(halves.rows[halves.valid(0)], counts, strict=True):
            row["packets"], row["bytes"], row["undetermined_packets"] = packets, n_bytes, undetermined

    def found(self) -> list[tuple[str, str, str, int, int, int]]:
        """By a reader that knows nothing yet, and by the one that carries."""
        found = RuleReader(self.pipeline).take()
        assert self.force.rules.take() == found
        return [(r.map, r.action, r.expression, r.packets, r.bytes, r.undetermined_packets) for r in found]

    def files(self) -> list[str]:
        return sorted(path.name for path in self.pipeline.directory.glob("rules-*"))

    def all_workers_hold(self, generation: int) -> None:
        for lane in self.pipeline.lanes:
            lane.workers["generation"] = generation

    def forget_old(self) -> None:
        """What can be forgotten must be so twice."""
        self.force.forget_old()
        self.force.forget_old()


@pytest.fixture
def reloads(pipeline: Pipeline) -> Reloads:
    return Reloads(pipeline)


@pytest.mark.parametrize("forget", [False, True])
def test_a_rule_that_stays_goes_on_and_one_that_went_begins_anew(reloads: Reloads, forget: bool) -> None:
    steps = (
        (config(m=["a", "b", "-a"]), [(1, 10, 0), (2, 20, 5), (3, 30, 0)]),
        (config(m=["-a", "a"], other=["b"]), [(100, 1000, 1), (200, 2000, 0), (300, 3000, 0)]),
        (config(m=["b", "a", "-a"]), [(7, 70, 0), (8, 80, 0), (9, 90, 0)]),
    )
    for new, counts in steps:
        reloads.put(new, *counts)
        if forget:
            reloads.all_workers_hold(reloads.force.number)
            reloads.forget_old()
    assert reloads.found() == [
        ("m", "pass", "b", 7, 70, 0),
        ("m", "pass", "a", 1 + 200 + 8, 10 + 2000 + 80, 0),
        ("m", "drop", "a", 3 + 100 + 9, 30 + 1000 + 90, 1),
    ]
    assert reloads.files() == (["rules-3", "rules-carried"] if forget else ["rules-1", "rules-2", "rules-3"])


def test_the_nth_of_equal_rules_is_the_nth(reloads: Reloads) -> None:
    reloads.put(config(m=["a", "a"]), (1, 1, 0), (2, 2, 0))
    reloads.put(config(m=["a", "x", "a", "a"]), (0, 0, 0), (0, 0, 0), (0, 0, 0), (4, 4, 0))
    reloads.all_workers_hold(2)
    reloads.forget_old()
    assert [packets for _, _, _, packets, _, _ in reloads.found()] == [1, 0, 2, 4]


def test_blocks_of_the_generation_before_still_count_and_keep_its_file(reloads: Reloads) -> None:
    reloads.put(config(m=["a"]), (1, 10, 0))
    reloads.all_workers_hold(1)
    lane = reloads.pipeline.lanes[0]
    capture_block(lane, 3, generation=1)
    reloads.put(config(m=["a"]), (5, 50, 0))
    lane.workers["generation"] = 2
    reloads.forget_old()
    reloads.count(1, (4, 40, 0))
    assert reloads.found() == [("m", "pass", "a", 9, 90, 0)]
    assert reloads.files() == ["rules-1", "rules-2"]


def test_a_supervisor_that_died_between_keeping_and_removing_counts_nothing_twice(reloads: Reloads) -> None:
    reloads.put(config(m=["a"]), (1, 10, 0))
    reloads.put(config(m=["a"]), (5, 50, 0))
    reloads.force.rules.carry(2)
    assert reloads.files() == ["rules-1", "rules-2", "rules-carried"]
    assert reloads.found() == [("m", "pass", "a", 6, 60, 0)]
    second = Reloads(reloads.pipeline)
    second.force.adopt(config(m=["a"]))
    second.put(config(m=["a", "b"]), (7, 70, 0), (1, 1, 1))
    second.all_workers_hold(3)
    second.forget_old()
    assert second.files() == ["rules-3", "rules-carried"]
    assert second.found() == [("m", "pass", "a", 13, 130, 0), ("m", "pass", "b", 1, 1, 1)]


def test_a_reader_that_comes_in_the_middle_of_it_looks_again(reloads: Reloads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generation 1 is carried over and removed after the reader has looked for what was carried."""
    reloads.put(config(m=["a"]), (1, 10, 0))
    reloads.put(config(m=["a"]), (5, 50, 0))
    reader, real = RuleReader(reloads.pipeline), RuleReader._open

    def open_too_late(self: RuleReader, number: int) -> object:
        if number == 1 and self is reader:
            reloads.force.rules.carry(2)
            remove_generations_before(reloads.pipeline.directory, 2)
        return real(self, number)

    monkeypatch.setattr(RuleReader, "_open", open_too_late)
    assert [rule.packets for rule in reader.take()] == [6]
    assert reloads.files() == ["rules-2", "rules-carried"]


def test_without_room_to_keep_them_the_files_stay(reloads: Reloads, monkeypatch: pytest.MonkeyPatch) -> None:
    reloads.put(config(m=["a"]), (1, 10, 0))
    reloads.put(config(m=["a"]), (5, 50, 0))
    reloads.all_workers_hold(2)
    reloads.force.forget_old()

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", no_room)
        reloads.force.forget_old()
    (told,) = [call for call in reloads.log.calls if call.args == () and call.kwargs.get("event") == "rule_counts_not_carried"]
    assert told.kwargs["reason"] == "No space left on device"
    assert reloads.files() == ["rules-1", "rules-2"]
    assert reloads.found() == [("m", "pass", "a", 6, 60, 0)]
    reloads.force.forget_old()
    assert reloads.files() == ["rules-2", "rules-carried"]


def test_a_missing_file_is_told(reloads: Reloads) -> None:
    reloads.put(config(m=["a"]), (1, 10, 0))
    (reloads.pipeline.directory / "rules-1").unlink()
    with pytest.raises(PipelineError, match="rules-1: No such file"):
        RuleReader(reloads.pipeline).take()


def test_before_the_first_generation_there_are_no_rules(pipeline: Pipeline) -> None:
    assert RuleReader(pipeline).take() == ()


def test_a_ledger_has_the_rules_of_each_map_if_it_was_asked_for_them(reloads: Reloads) -> None:
    reloads.put(config(web=["a", "-b"], none=[], db=["c"]), (1, 10, 2), (3, 30, 4), (5, 50, 6))
    reader, names = Reader(reloads.pipeline), Names(maps={0: "db", 1: "web", 2: "none", 3: "gone"})
    ledger = balance(reader.take(names, rules=True))
    assert {m.map: [rule.packets for rule in m.rules] for m in ledger.maps} == {"db": [5], "web": [1, 3], "none": [], "gone": []}
    assert ledger.as_json()["maps"]["web"]["rules"] == [
        {"action": "pass", "expression": "a", "packets": 1, "bytes": 10, "undetermined_packets": 2},
        {"action": "drop", "expression": "b", "packets": 3, "bytes": 30, "undetermined_packets": 4},
    ]
    assert "rules" not in ledger.as_json(rules=False)["maps"]["web"]
    assert all(m.rules == () for m in balance(reader.take(names)).maps)


def test_room_is_asked_for_counts_too(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(prepare, "check_room", lambda _root, needed, *_: asked.append(needed))
    for n_rules in (0, 10_000):
        prepare.create(f"room-{n_rules}", config(m=["a"] * n_rules))
    assert 10_000 * 32 * 2 * 2 <= asked[1] - asked[0] < 10_000 * 32 * 2 * 2 + 4096
