"""The workers as they are: their processes, what shared memory says of them, and what is remembered. Applies the actions of `plan`.

How the end of a worker is seen: its pidfd becomes readable. Its exit status comes from the host that forked it; where that host is gone the
row in shared memory speaks, at once.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from broker.core import layout
from broker.core.layout import Geometry
from broker.core.shm import Pipeline
from broker.supervisor import plan
from broker.supervisor.plan import Action, Book, Kill, Seen, Start, Stop, WorkerId
from broker.supervisor.processes import Process, attach, belongs, parent
from broker.supervisor.snapshot import behind

STATUS_NS = 500_000_000
"""How long the host may take to tell the status of a worker that is known to have ended."""

Launch = Callable[[WorkerId], int]


@dataclass
class _Member:
    book: Book = field(default_factory=Book)
    process: Process | None = None
    parent: int = 0  # the host that will tell its exit status
    started_ns: int = 0
    ended_ns: int = 0  # when its end was noticed; 0: it lives
    cpu_ns: int = 0  # of its processes that have ended
    cpu_from_ns: int = 0  # of the present process when it came up: what opening the stage cost


class Crew:
    """All workers of one pipeline."""

    def __init__(self, pipeline: Pipeline, log: Any) -> None:
        self.pipeline = pipeline
        self.log = log
        self.ids = plan.desired([lane.geometry for lane in pipeline.lanes])
        self._members = {w: _Member() for w in self.ids}
        self._early: dict[int, int] = {}  # pid -> exit status told before the end was noticed
        self._rows = {w: pipeline.lanes[w.lane].workers[pipeline.lanes[w.lane].geometry.row(w.kind, w.worker)] for w in self.ids}
        self.restarts = 0

    def adopt(self) -> int:
        """Take over the workers that run already, by the pids in their rows. Returns how many."""
        adopted = 0
        for w in self.ids:
            process = attach(int(self._rows[w]["pid"]), self.pipeline.name)
            if process is not None:
                member = self._members[w]
                self._hold(member, process)
                member.cpu_from_ns = process.cpu_ns()
                member.book = replace(member.book, was_up=True, up_since_ns=member.started_ns)
                adopted += 1
        return adopted

    def _hold(self, member: _Member, process: Process) -> None:
        member.process, member.parent, member.started_ns, member.ended_ns = process, parent(process.pid), time.monotonic_ns(), 0

    def follow_rows(self) -> None:
        """Where others start the workers: notice new processes and forget those that have ended."""
        for w, member in self._members.items():
            pid = int(self._rows[w]["pid"])
            if member.process is not None and (member.process.pid != pid or not member.process.alive()):
                self.log.info("worker_gone", worker=str(w), pid=member.process.pid)
                self._forget(member)
            if member.process is None and pid and (process := attach(pid, self.pipeline.name)):
                member.process, member.started_ns, member.book = process, time.monotonic_ns(), Book(was_up=True)

    def fds(self) -> list[int]:
        """pidfds of the workers whose end has not been noticed."""
        return [m.process.fd for m in self._members.values() if m.process is not None and not m.ended_ns and m.process.fd >= 0]

    def processes(self) -> list[Process]:
        return [m.process for m in self._members.values() if m.process is not None]

    def seen(self) -> dict[WorkerId, Seen]:
        """The present state of all, in the order of starting."""
        # States before cursors: a source that was finished then has all of its blocks below the cursor read now.
        found = {w: self._seen_of(w, member) for w, member in self._members.items()}
        cursors = [[int(c) for c in lane.workers["cursor"]] for lane in self.pipeline.lanes]
        return {w: replace(s, behind=behind(self._geometry(w), cursors[w.lane], w.kind, w.worker)) for w, s in found.items()}

    def _geometry(self, w: WorkerId) -> Geometry:
        return self.pipeline.lanes[w.lane].geometry

    def _seen_of(self, w: WorkerId, member: _Member) -> Seen:
        if member.process is None:
            return Seen()
        row = self._rows[w]
        if int(row["pid"]) != member.process.pid:
            return Seen(member.process.pid, layout.STATE_NEW, member.started_ns)
        state = int(row["state"])
        known = 0 <= state < len(layout.STATE_NAMES)
        beat_ns = max(member.started_ns, int(row["heartbeat_ns"]))
        return Seen(member.process.pid, state if known else layout.STATE_NEW, beat_ns)

    def books(self) -> dict[WorkerId, Book]:
        return {w: m.book for w, m in self._members.items()}

    def note(self, now_ns: int) -> dict[WorkerId, Seen]:
        """Look at all workers, remember what is new, and return what is seen."""
        self._notice_ends(now_ns)
        seen = self.seen()
        for w, member in self._members.items():
            before = member.book
            member.book = plan.note_up(before, seen[w], now_ns)
            if member.book.up_since_ns and not before.up_since_ns:
                assert member.process is not None
                member.cpu_from_ns = member.process.cpu_ns()
                self.log.info("worker_up", worker=str(w), pid=seen[w].pid)
        return seen

    def told_exit(self, event: dict[str, Any]) -> None:
        """The host says that a worker has ended. What it says of one that has been noted already comes too late."""
        pid = int(event["pid"])
        if any(m.process is not None and m.process.pid == pid for m in self._members.values()):
            self._early[pid] = int(event["status"])

    def _notice_ends(self, now_ns: int) -> None:
        for w, member in self._members.items():
            if member.process is None:
                continue
            status = self._early.pop(member.process.pid, None)
            if status is None:
                if not member.ended_ns and not member.process.alive():
                    member.ended_ns = now_ns
                if not member.ended_ns:
                    continue
                if now_ns - member.ended_ns < STATUS_NS and belongs(member.parent, self.pipeline.name):
                    continue  # the host that has forked it is there, and will tell
            self._ended(w, member, status, now_ns)

    def _ended(self, w: WorkerId, member: _Member, status: int | None, now_ns: int) -> None:
        row = self._rows[w]
        assert member.process is not None
        mine = int(row["pid"]) == member.process.pid
        state, error = (int(row["state"]), int(row["error"])) if mine else (layout.STATE_NEW, 0)
        member.book = plan.note_exit(member.book, status, state, error, now_ns, random.random())  # noqa: S311 - jitter
        facts = {"worker": str(w), "pid": member.process.pid, "status": status}
        if member.book.given_up:
            self.log.error("worker_given_up", reason=member.book.given_up, **facts)
        elif member.book.stopped:
            self.log.info("worker_drained", **facts)
        else:
            wait_s = round((member.book.not_before_ns - now_ns) / plan.SECOND_NS, 3)
            self.log.warning("worker_died", failures=member.book.failures, again_in_s=wait_s, **facts)
        self._forget(member)

    def _forget(self, member: _Member) -> None:
        if member.process is not None:
            if member.cpu_from_ns:
                member.cpu_ns += max(0, member.process.cpu_ns() - member.cpu_from_ns)
            member.process.close()
        member.process, member.ended_ns, member.cpu_from_ns = None, 0, 0

    def apply(self, actions: list[Action], launch: Launch) -> None:
        """Do it. `launch` has the host start a worker and returns its pid; it raises HostError."""
        for action in actions:
            member = self._members[action.worker]
            match action:
                case Start(w):
                    again = member.book.failures > 0
                    member.book = replace(member.book, asked_to_stop=False, stopped=False)
                    # One that was being started when the supervisor or host before us died runs, and nobody knows of it.
                    if found := attach(int(self._rows[w]["pid"]), self.pipeline.name):
                        self._hold(member, found)
                        self.log.info("worker_found", worker=str(w), pid=found.pid)
                        continue
                    # Held before its row is looked at: what the one before has left there does not count for it.
                    self._hold(member, Process(launch(w)))
                    self.restarts += again
                case Stop(w):
                    if member.process is not None:
                        member.process.send(signal.SIGTERM)
                    member.book = replace(member.book, asked_to_stop=True)
                case Kill(w, why):
                    if member.process is not None:
                        member.process.send(signal.SIGKILL)
                    member.book = replace(member.book, killed=True)
                    self.log.error("worker_killed", worker=str(w), reason=why)

    def kill_all(self) -> list[WorkerId]:
        """kill -9 whatever is still there; returns who was."""
        left = []
        for w, member in self._members.items():
            if member.process is not None and member.process.alive():
                member.process.send(signal.SIGKILL)
                left.append(w)
        return left

    def cpu_ns(self) -> dict[str, int]:
        """User and system time since each worker came up, by stage."""
        spent = dict.fromkeys((w.kind for w in self.ids), 0)
        for w, m in self._members.items():
            spent[w.kind] += m.cpu_ns
            if m.process is not None and m.cpu_from_ns:
                spent[w.kind] += max(0, m.process.cpu_ns() - m.cpu_from_ns)
        return spent

    def close(self) -> None:
        for member in self._members.values():
            self._forget(member)
