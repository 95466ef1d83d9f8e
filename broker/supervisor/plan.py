"""Which workers should exist, and what to do next to get there. Pure: no process, no clock, no shared memory.

| phase | a worker that is | gets |
|---|---|---|
| run | not there, its back-off over, everything downstream of it up once | Start |
| run | there, its heartbeat older than its patience | Kill (kill -9), then Start after the back-off |
| run | gone with exit 78 | nothing: it would fail again; reported, never healthy |
| drain | there, all upstream of it done | Stop (SIGTERM), once |
| drain | there, every source finished or gone and nobody behind | Stop too: no order is needed where nothing is left |
| drain | gone with work left, its back-off over | Start, then Stop |
| drain | a capture, gone without having been stopped; not one that dies again and again | Start, then Stop: a kept socket holds packets |
| drain | gone and nothing left for it | done; the flows stage only once it was asked to stop: without a block it still ends its flows |

Started downstream first, drained upstream first. *Never*: two processes for one worker, a Start while one is being killed.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from broker.core import layout
from broker.core.errors import EXIT_CONFIG, EXIT_DAMAGED
from broker.core.layout import STAGES, Geometry

SECOND_NS = 1_000_000_000
HEARTBEAT_NS = 2 * SECOND_NS
"""A running worker beats every 100 ms; one that has been silent for so long is stuck."""
STARTING_NS = 60 * SECOND_NS
"""Opening a stage may read large policies from a slow disk; it does not beat meanwhile."""
_HOPELESS = {
    EXIT_CONFIG: "it cannot work as it is configured",
    EXIT_DAMAGED: "its shared memory is damaged, the log says where; its lane stands still until the pipeline is made anew",
}
BACK_OFF_FIRST_S, BACK_OFF_LAST_S = 0.05, 5.0
BROUGHT_BACK = 5
"""So many failures in a row a capture may have had to be started once more in a drain."""
HEALTHY_NS = 10 * SECOND_NS
"""After so much health a worker's failures are forgotten."""

READER = layout.STAGES[-1]

UP = (layout.STATE_RUNNING, layout.STATE_FINISHED, layout.STATE_DRAINING)


class WorkerId(NamedTuple):
    lane: int
    kind: str
    worker: int

    def __str__(self) -> str:
        return f"{self.kind}[{self.lane}.{self.worker}]"


class Phase(enum.Enum):
    RUN = "run"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class Seen:
    """One worker as it is now. What shared memory says of another process than `pid` is left out."""

    pid: int = 0  # 0: no process
    state: int = layout.STATE_NEW
    beat_ns: int = 0  # the later of heartbeat and start, CLOCK_MONOTONIC
    behind: bool = False  # the stage before it has published blocks that it has not

    @property
    def up(self) -> bool:
        return self.pid != 0 and self.state in UP


@dataclass(frozen=True, slots=True)
class Book:
    """What is remembered of one worker."""

    failures: int = 0  # since it was last healthy
    not_before_ns: int = 0  # back-off
    up_since_ns: int = 0  # 0: not up
    was_up: bool = False
    killed: bool = False  # kill -9 sent, its end not seen yet
    asked_to_stop: bool = False
    stopped: bool = False  # drained and gone
    given_up: str = ""  # why it is not started again


@dataclass(frozen=True, slots=True)
class Start:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Stop:
    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Kill:
    worker: WorkerId
    why: str


Action = Start | Stop | Kill


def desired(geometries: Sequence[Geometry]) -> tuple[WorkerId, ...]:
    """All workers in the order in which they are started: downstream first, then by lane."""
    return tuple(WorkerId(lane, kind, w) for kind in reversed(STAGES) for lane, g in enumerate(geometries) for w in range(g.count(kind)))


def downstream(kind: str) -> tuple[str, ...]:
    return STAGES[STAGES.index(kind) + 1 :]


def note_up(book: Book, seen: Seen, now_ns: int) -> Book:
    """Remember health: since when it is up, and that its failures are long ago."""
    if not seen.up:
        return replace(book, up_since_ns=0) if book.up_since_ns else book
    if not book.up_since_ns:
        return replace(book, up_since_ns=now_ns, was_up=True)
    if book.failures and now_ns - book.up_since_ns >= HEALTHY_NS:
        return replace(book, failures=0)
    return book


def note_exit(book: Book, status: int | None, state: int, error: int, now_ns: int, jitter: float) -> Book:
    """A worker has ended. `status` as the host tells it (None: unknown, then the row's `state` and `error` speak); jitter in [0, 1)."""
    if status is None:
        status = error or (0 if state == layout.STATE_STOPPED else -9)
    book = replace(book, up_since_ns=0, killed=False)
    if status in _HOPELESS:
        return replace(book, given_up=f"exit status {status}: {_HOPELESS[status]}")
    if status == 0 and book.asked_to_stop:
        return replace(book, stopped=True)
    delay_s = back_off_s(book.failures, jitter)
    return replace(book, failures=book.failures + 1, not_before_ns=now_ns + int(delay_s * SECOND_NS), asked_to_stop=False)


def back_off_s(failures: int, jitter: float) -> float:
    """Capped exponential, the upper half of it random: workers that fell together do not rise together."""
    full: float = min(BACK_OFF_LAST_S, BACK_OFF_FIRST_S * 2.0 ** min(failures, 16))
    return full * (0.5 + 0.5 * jitter)


def stale(seen: Seen, now_ns: int, watching_since_ns: int) -> bool:
    """Silent for longer than its patience, while somebody was awake to listen."""
    if not seen.pid or seen.state == layout.STATE_STOPPED:
        return False
    patience = HEARTBEAT_NS if seen.state in UP else STARTING_NS
    return now_ns - max(seen.beat_ns, watching_since_ns) > patience


def decide(
    phase: Phase,
    now_ns: int,
    watching_since_ns: int,
    seen: Mapping[WorkerId, Seen],
    books: Mapping[WorkerId, Book],
) -> list[Action]:
    """What to do now. `watching_since_ns`: since when the supervisor itself has been running without a pause."""
    actions: list[Action] = []
    for worker in seen:
        if not books[worker].killed and stale(seen[worker], now_ns, watching_since_ns):
            silent_s = (now_ns - seen[worker].beat_ns) / SECOND_NS
            actions.append(Kill(worker, f"no heartbeat for {silent_s:.1f} s"))
    if phase is Phase.RUN:
        actions += [w for w in map(Start, seen) if _may_start(w.worker, now_ns, seen, books)]
    else:
        actions += _drain(now_ns, seen, books)
    return actions


def _may_start(worker: WorkerId, now_ns: int, seen: Mapping[WorkerId, Seen], books: Mapping[WorkerId, Book]) -> bool:
    book = books[worker]
    if seen[worker].pid or book.given_up or now_ns < book.not_before_ns:
        return False
    below = downstream(worker.kind)
    return all(books[other].was_up for other in seen if other.kind in below)


def done(worker: WorkerId, seen: Seen, book: Book) -> bool:
    """Nothing more will or can be had from it in a drain."""
    if seen.pid:
        return False
    ended = book.stopped or bool(book.given_up)
    if worker.kind == READER and book.was_up:
        return ended
    if worker.kind == "capture":
        return ended or not book.was_up or book.failures > BROUGHT_BACK
    return ended or not seen.behind


def _drain(now_ns: int, seen: Mapping[WorkerId, Seen], books: Mapping[WorkerId, Book]) -> list[Action]:
    actions: list[Action] = []
    lost = any(w.kind == "capture" and not s.pid and not done(w, s, books[w]) for w, s in seen.items())  # to be brought back
    if quiet(seen) and not lost:
        left = [w for w in seen if not seen[w].pid and not done(w, seen[w], books[w]) and now_ns >= books[w].not_before_ns]
        return [*map(Start, left), *(Stop(w) for w, s in seen.items() if s.up and not books[w].asked_to_stop)]
    turn = next((kind for kind in STAGES if any(w.kind == kind and not done(w, seen[w], books[w]) for w in seen)), None)
    if turn is None:
        return actions
    for w, s in seen.items():
        if w.kind == turn and s.pid:
            # Before it is up the signal would kill it; it comes up, and is asked then.
            if s.up and not books[w].asked_to_stop:
                actions.append(Stop(w))
        elif w.kind == turn:
            if not done(w, s, books[w]) and now_ns >= books[w].not_before_ns:
                actions.append(Start(w))
        elif w.kind in downstream(turn) and _missing(s, books[w]) and now_ns >= books[w].not_before_ns:
            # Those whose turn it is may be waiting for the free blocks that only this one makes.
            actions.append(Start(w))
    return actions


def _missing(seen: Seen, book: Book) -> bool:
    """It has been there, and nobody sent it away."""
    return book.was_up and not (seen.pid or book.given_up or book.stopped)


def quiet(seen: Mapping[WorkerId, Seen]) -> bool:
    """Nothing will come and nothing is left: every capture has finished or is gone, and no block waits for anybody."""
    ended = all(not s.pid or s.state in (layout.STATE_FINISHED, layout.STATE_STOPPED) for w, s in seen.items() if w.kind == "capture")
    return ended and not any(s.behind for s in seen.values())


def drained(seen: Mapping[WorkerId, Seen], books: Mapping[WorkerId, Book]) -> bool:
    return all(done(w, seen[w], books[w]) for w in seen)


def unhealthy(seen: Mapping[WorkerId, Seen], books: Mapping[WorkerId, Book], now_ns: int, watching_since_ns: int) -> list[str]:
    """In words, what is wrong with the workers; empty when all are up."""
    words = []
    for w, s in seen.items():
        if books[w].given_up:
            words.append(f"{w} is down for good: {books[w].given_up}")
        elif not s.pid:
            words.append(f"{w} is down")
        elif stale(s, now_ns, watching_since_ns):
            words.append(f"{w} has no heartbeat")
        elif not s.up:
            words.append(f"{w} is {layout.STATE_NAMES[s.state]}")
    return words
