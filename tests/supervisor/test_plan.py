"""Which workers should exist and what to do next, row by row."""

from __future__ import annotations

import pytest

from broker.core.errors import EXIT_CONFIG
from broker.core.layout import (
    STATE_DRAINING,
    STATE_FINISHED,
    STATE_NEW,
    STATE_RUNNING,
    STATE_STARTING,
    STATE_STOPPED,
    Geometry,
)
from broker.supervisor import plan
from broker.supervisor.plan import SECOND_NS, Book, Kill, Phase, Seen, Start, Stop, WorkerId

C, F, E, S = (WorkerId(0, kind, 0) for kind in ("capture", "filter", "encapsulate", "send"))
NOW = 1000 * SECOND_NS
UP = Book(was_up=True, up_since_ns=NOW - SECOND_NS)


def running(pid: int = 7, state: int = STATE_RUNNING, *, silent_s: float = 0.0, behind: bool = False) -> Seen:
    return Seen(pid, state, NOW - int(silent_s * SECOND_NS), behind)


def decide(workers: dict[WorkerId, tuple[Seen, Book]], phase: Phase = Phase.RUN, watching_since_ns: int = 0) -> list[plan.Action]:
    seen = {w: s for w, (s, _) in workers.items()}
    books = {w: b for w, (_, b) in workers.items()}
    return plan.decide(phase, NOW, watching_since_ns, seen, books)


def all_busy() -> dict[WorkerId, tuple[Seen, Book]]:
    """Up, and each with a block to do but for capture."""
    return {w: (running(behind=w.kind != "capture"), UP) for w in (S, E, F, C)}


def all_up() -> dict[WorkerId, tuple[Seen, Book]]:
    return {w: (running(), UP) for w in (S, E, F, C)}


def test_workers_are_listed_downstream_first_and_by_lane():
    one, two = Geometry(n_filter=2), Geometry()
    listed = plan.desired([one, two])
    assert [str(w) for w in listed] == [
        "send[0.0]", "send[1.0]", "encapsulate[0.0]", "encapsulate[1.0]",
        "filter[0.0]", "filter[0.1]", "filter[1.0]", "capture[0.0]", "capture[1.0]",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("up", "started"),
    [
        ([], [S]),
        ([S], [E]),
        ([S, E], [F]),
        ([S, E, F], [C]),
        ([S, E, F, C], []),
    ],
)
def test_a_stage_starts_when_all_below_it_have_been_up(up: list[WorkerId], started: list[WorkerId]):
    workers = {w: (running(), UP) if w in up else (Seen(), Book()) for w in (S, E, F, C)}
    assert decide(workers) == [Start(w) for w in started]


def test_a_stage_waits_for_every_worker_below_it_in_every_lane():
    other = WorkerId(1, "send", 0)
    assert decide({S: (running(), UP), other: (running(state=STATE_STARTING), Book()), E: (Seen(), Book())}) == []


def test_a_worker_that_died_is_started_again_although_those_below_are_down_too():
    dead = Book(failures=1, was_up=True)
    workers = all_up() | {E: (Seen(), dead), S: (Seen(), dead)}
    assert set(decide(workers)) == {Start(E), Start(S)}


@pytest.mark.parametrize(
    ("seen", "book", "watching_s", "action"),
    [
        (running(silent_s=1.9), UP, 0, None),
        (running(silent_s=2.1), UP, 0, "kill"),
        (running(state=STATE_FINISHED, silent_s=2.1), UP, 0, "kill"),
        (running(state=STATE_DRAINING, silent_s=2.1), UP, 0, "kill"),
        (running(state=STATE_STOPPED, silent_s=99), UP, 0, None),  # on its way out
        (running(state=STATE_STARTING, silent_s=59), Book(), 0, None),  # opening may take long
        (running(state=STATE_STARTING, silent_s=61), Book(), 0, "kill"),
        (running(state=STATE_NEW, silent_s=61), Book(), 0, "kill"),
        (running(silent_s=30), Book(was_up=True, killed=True), 0, None),  # killed already
        (running(silent_s=30), UP, 1.9, None),  # the supervisor has been watching for 1.9 s only: it was paused itself
        (running(silent_s=30), UP, 2.1, "kill"),
    ],
)
def test_a_silent_worker_is_killed_when_its_patience_is_over(seen: Seen, book: Book, watching_s: float, action: str | None):
    since = NOW - int(watching_s * SECOND_NS) if watching_s else 0
    actions = decide(all_up() | {E: (seen, book)}, watching_since_ns=since)
    assert [type(a).__name__.lower() for a in actions] == ([action] if action else [])
    if action:
        assert isinstance(actions[0], Kill)
        assert actions[0].worker == E
        assert "no heartbeat for" in actions[0].why


def test_a_worker_waits_for_its_back_off():
    assert decide(all_up() | {F: (Seen(), Book(was_up=True, failures=1, not_before_ns=NOW + 1))}) == []
    assert decide(all_up() | {F: (Seen(), Book(was_up=True, failures=1, not_before_ns=NOW))}) == [Start(F)]


@pytest.mark.parametrize(
    ("failures", "full_s"), [(0, 0.05), (1, 0.1), (2, 0.2), (3, 0.4), (6, 3.2), (7, 5.0), (100, 5.0)]
)  # fmt: skip
def test_back_off_doubles_up_to_its_cap_and_half_of_it_is_random(failures: int, full_s: float):
    assert plan.back_off_s(failures, 0.0) == pytest.approx(full_s / 2)
    assert plan.back_off_s(failures, 0.999999) == pytest.approx(full_s, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "status", "state", "error", "becomes"),
    [
        (True, 0, STATE_STOPPED, 0, "stopped"),
        (False, 0, STATE_STOPPED, 0, "again"),  # somebody else told it to stop: it should be there
        (False, -9, STATE_RUNNING, 0, "again"),
        (True, -9, STATE_DRAINING, 0, "again"),
        (False, 70, STATE_RUNNING, 0, "again"),
        (False, EXIT_CONFIG, STATE_STOPPED, EXIT_CONFIG, "given up"),
        (True, None, STATE_STOPPED, 0, "stopped"),  # nobody saw the status: the row speaks
        (False, None, STATE_RUNNING, 0, "again"),
        (False, None, STATE_STOPPED, EXIT_CONFIG, "given up"),
    ],
)
def test_what_becomes_of_a_worker_that_has_ended(asked: bool, status: int | None, state: int, error: int, becomes: str):
    book = plan.note_exit(Book(was_up=True, asked_to_stop=asked, killed=True), status, state, error, NOW, 0.5)
    assert (book.stopped, bool(book.given_up)) == (becomes == "stopped", becomes == "given up")
    assert book.failures == (1 if becomes == "again" else 0)
    assert not book.killed
    if becomes == "again":
        assert book.not_before_ns > NOW
        assert not book.asked_to_stop


def test_failures_are_forgotten_after_ten_seconds_of_health():
    book = plan.note_up(Book(failures=5), running(), NOW)
    assert (book.up_since_ns, book.was_up, book.failures) == (NOW, True, 5)
    assert plan.note_up(book, running(), NOW + 9 * SECOND_NS).failures == 5
    assert plan.note_up(book, running(), NOW + 10 * SECOND_NS).failures == 0


def test_a_worker_given_up_is_left_alone_and_told():
    workers = all_up() | {C: (Seen(), Book(given_up="exit status 78: no such interface"))}
    assert decide(workers) == []
    seen, books = {w: s for w, (s, _) in workers.items()}, {w: b for w, (_, b) in workers.items()}
    assert plan.unhealthy(seen, books, NOW, 0) == ["capture[0.0] is down for good: exit status 78: no such interface"]


def test_drain_stops_one_stage_after_the_other_upstream_first():
    workers = all_busy()
    stopped = Book(was_up=True, asked_to_stop=True, stopped=True)
    order = []
    for expected in (C, F, E, S):
        assert decide(workers, Phase.DRAIN) == [Stop(expected)]
        workers[expected] = (workers[expected][0], Book(was_up=True, asked_to_stop=True))
        assert decide(workers, Phase.DRAIN) == []  # asked once, then waited for
        workers[expected] = (Seen(), stopped)
        order.append(expected)
    assert decide(workers, Phase.DRAIN) == []
    assert plan.drained({w: s for w, (s, _) in workers.items()}, {w: b for w, (_, b) in workers.items()})


def test_drain_brings_a_worker_back_that_died_with_work_left():
    dead = Book(was_up=True, failures=1)
    gone = {C: (Seen(), Book(stopped=True))}
    assert decide(all_busy() | gone | {F: (Seen(behind=True), dead)}, Phase.DRAIN) == [Start(F)]
    assert decide(all_busy() | gone | {F: (Seen(behind=False), dead)}, Phase.DRAIN) == [Stop(E)]


@pytest.mark.parametrize("capture", [running(state=STATE_FINISHED), running(state=STATE_STOPPED), Seen()])
def test_drain_stops_all_at_once_when_nothing_will_come_and_nothing_is_left(capture: Seen):
    book = UP if capture.pid else Book(was_up=True, stopped=True)
    expected = {Stop(S), Stop(E), Stop(F)} | ({Stop(C)} if capture.up else set())
    assert set(decide(all_up() | {C: (capture, book)}, Phase.DRAIN)) == expected
    assert decide(all_up(), Phase.DRAIN) == [Stop(C)]  # while capture runs something may come
    still_there = {C: (capture, book), E: (running(behind=True), UP)}
    assert Stop(S) not in decide(all_up() | still_there, Phase.DRAIN)


def test_drain_keeps_the_stages_below_alive_for_those_that_wait_for_free_blocks():
    workers = all_up() | {S: (Seen(), Book(was_up=True, failures=1))}
    assert set(decide(workers, Phase.DRAIN)) == {Stop(C), Start(S)}


def test_drain_does_not_bring_back_what_it_has_stopped():
    """As when all were asked at once, and those downstream were the first to go."""
    asked, stopped = Book(was_up=True, asked_to_stop=True), Book(was_up=True, asked_to_stop=True, stopped=True)
    workers = {S: (Seen(), stopped), E: (Seen(), stopped), F: (running(state=STATE_DRAINING), asked), C: (running(), asked)}
    assert decide(workers, Phase.DRAIN) == []


@pytest.mark.parametrize("left", [False, True])
def test_drain_brings_back_a_capture_that_died_for_its_socket_may_hold_packets(left: bool):
    dead = all_busy() if left else all_up()
    dead[C] = (Seen(), Book(was_up=True, failures=plan.BROUGHT_BACK))
    assert decide(dead, Phase.DRAIN) == [Start(C)]  # those downstream are needed still
    dead[C] = (Seen(), Book(was_up=True, failures=1, not_before_ns=NOW + 1))
    assert not {Start(C), Stop(F)} & set(decide(dead | {F: (running(behind=True), UP)}, Phase.DRAIN))
    assert not plan.drained({C: Seen()}, {C: Book(was_up=True, failures=1)})


@pytest.mark.parametrize("book", [Book(was_up=True, failures=plan.BROUGHT_BACK + 1), Book(was_up=True, given_up="78"), Book(failures=1)])
def test_drain_does_not_bring_back_a_capture_that_cannot_work_or_one_given_up(book: Book):
    workers = all_up() | {C: (Seen(), book), F: (Seen(behind=True), Book(given_up="78"))}
    assert decide(workers | {E: (running(behind=True), UP)}, Phase.DRAIN) == [Stop(E)]


def test_drain_asks_a_worker_that_is_coming_up_only_when_it_is_up():
    assert decide(all_up() | {C: (running(state=STATE_STARTING), Book())}, Phase.DRAIN) == []


def test_a_pipeline_that_was_never_started_is_drained():
    seen, books = dict.fromkeys((S, E, F, C), Seen()), dict.fromkeys((S, E, F, C), Book())
    assert plan.drained(seen, books)
    assert plan.decide(Phase.DRAIN, NOW, 0, seen, books) == []


@pytest.mark.parametrize("quiet", [False, True])
def test_drain_brings_a_flows_worker_back_that_died_while_it_ended_its_flows(quiet: bool):
    flows = WorkerId(0, "flows", 0)
    stopped = Book(was_up=True, stopped=True)
    workers = {flows: (Seen(), Book(was_up=True, failures=1)), **dict.fromkeys((S, E, F, C), (Seen(), stopped))}
    if not quiet:
        workers[C] = (running(), UP)
    seen, books = {w: s for w, (s, _) in workers.items()}, {w: b for w, (_, b) in workers.items()}
    assert not plan.drained(seen, books)
    assert Start(flows) in decide(workers, Phase.DRAIN)
    assert decide(workers | {flows: (Seen(), Book(was_up=True, not_before_ns=NOW + 1))}, Phase.DRAIN) == ([] if quiet else [Stop(C)])
    assert decide(workers | {flows: (running(), UP)}, Phase.DRAIN) == [Stop(flows if quiet else C)]
    assert plan.drained({flows: Seen()}, {flows: stopped})
    assert plan.drained({flows: Seen()}, {flows: Book()})
