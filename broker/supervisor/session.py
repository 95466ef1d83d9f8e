"""One pipeline from its start, or from taking it over, to its end: the loop that looks, decides by `plan`, and does it.

| step | what happens |
|---|---|
| begin | shared memory, host and generation 1; or adopt what runs |
| run | every worker that should exist does; reload on SIGHUP |
| drain | capture first, each stage finishes what is ready, at most `drain_s` |
| end | host and left-overs ended, last ledger, shared memory removed |
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from broker.core import layout
from broker.core.errors import ConfigErrors, PipelineError, TapmeshError
from broker.core.flow_ring import left_of
from broker.core.model import Config
from broker.core.shm import Pipeline, remove_pipeline
from broker.supervisor import numbers, plan
from broker.supervisor.companions import Companions
from broker.supervisor.crew import Crew
from broker.supervisor.generation import Compile, InForce, Ready
from broker.supervisor.host import HostKeeper
from broker.supervisor.hostlink import HostError
from broker.supervisor.ledger import Ledger, balance
from broker.supervisor.loading import Loading
from broker.supervisor.opener import Opener
from broker.supervisor.plan import Book, Phase, Seen, Start, WorkerId
from broker.supervisor.probes import Prober
from broker.supervisor.processes import age_s
from broker.supervisor.signals import Signals
from broker.supervisor.snapshot import Reader, Snapshot
from broker.supervisor.troubles import source_errors

TICK_S = 0.25
"""Deaths, signals and the host are heard at once; this is for heartbeats and what nobody announces."""
REPLAY_TICK_S = 0.02
"""A replay is over when its last block is: not seeing that would count as its time."""
QUICK_S = 0.005
"""How often to look while a worker is coming up: it takes milliseconds, and the next waits for it."""
LOADING_S = 5.0
"""How long the end waits for a file that is being read and tested: what does that removes its scratch directory."""
COMPANIONS_S = 10.0
"""How long exporter and store together may take to hand over what is there, once the last stage has stopped."""
PAUSE_NS = plan.SECOND_NS
"""Not having been run for so long, the supervisor knows nothing of the heartbeats meanwhile."""


@dataclass(frozen=True)
class Options:
    name: str
    compile_policy: Compile
    load: Callable[[], Config] | None = None  # the file anew, for SIGHUP; ConfigErrors
    external_stages: bool = False  # others start the workers
    stdin: bool = False  # a source reads our standard input
    until_finished: bool = False  # end when all sources have
    give_up_after: int = 0  # failures of a worker in a row; 0: never
    on_tick: Callable[[Session], None] = lambda _: None


@dataclass
class Times:
    """CLOCK_MONOTONIC, 0: not reached."""

    begun_ns: int = field(default_factory=time.monotonic_ns)
    age_at_begin_s: float = field(default_factory=lambda: age_s(os.getpid()))  # of this process then: imports, configuration
    up_ns: int = 0  # every worker up
    delivered_ns: int = 0  # send has published its first block
    finished_ns: int = 0  # drain begun
    ended_ns: int = 0


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    snapshot: Snapshot
    ledger: Ledger
    times: Times
    cpu_ns: dict[str, int]  # by stage, from each worker's coming up to the beginning of the drain
    restarts: int
    problems: list[str]
    source_errors: list[str]
    stopped_by: int  # the signal that asked for it; 0: it ended by itself


class Session:
    """`begin` or `adopt`, then `watch`, then `end`."""

    def __init__(self, pipeline: Pipeline, options: Options, signals: Signals, opener: Opener, log: Any) -> None:
        self.pipeline, self.options, self.signals, self.opener, self.log = pipeline, options, signals, opener, log
        opener.listen(pipeline.directory)
        self.crew = Crew(pipeline, log)
        self.host = HostKeeper(pipeline.name, pipeline.directory, log, self.crew.told_exit, stdin=options.stdin)
        self.force = InForce(pipeline, options.compile_policy, log)
        self.prober = Prober(pipeline.tool_state, log)
        self.companions = Companions(pipeline.name, log)
        self.reader = Reader(pipeline, self.force.rules)
        self.times = Times()
        self.phase = Phase.RUN
        self.problems: list[str] = []
        self.cpu_ns: dict[str, int] = {}
        # The latest picture, replaced as a whole: the threads of HTTP read it.
        self.last: tuple[dict[WorkerId, Seen], dict[WorkerId, Book]] = (self.crew.seen(), self.crew.books())
        self.ticked_ns = self.watching_since_ns = time.monotonic_ns()
        self._deadline_ns = 0
        self._stopped = False
        self._forget_ns = 0
        self._loading: Loading | None = None

    def begin(self, config: Config) -> None:
        """First generation into fresh memory, while the host is starting. TapmeshError: call `end` then."""
        if not self.options.external_stages:
            self.host.start()
        if not self.options.until_finished:
            numbers.restore(self.pipeline, config, self.log)
        self.force.put(ready := self.force.prepare(config))
        self.prober.follow(ready.config)

    def adopt(self, config: Config) -> None:
        """Take over what an earlier supervisor has left running with `config` in force."""
        self.force.adopt(config)
        self.prober.follow(config)
        self.companions.adopt()
        if not self.options.external_stages:
            self.host.adopt()
        self.log.info("pipeline_adopted", workers=self.crew.adopt(), generation=self.force.number)

    def watch(self, *, drain: bool = False) -> None:
        """Until drained. `drain`: begin with that."""
        if drain:
            self._begin_drain("asked")
        while True:
            now = time.monotonic_ns()
            if now - self.ticked_ns > PAUSE_NS:
                self.log.warning("supervisor_paused", for_s=round((now - self.ticked_ns) / plan.SECOND_NS, 3))
                self.watching_since_ns = now
            self.ticked_ns = now
            if self._tick(now):
                return
            self.options.on_tick(self)
            self._wait()

    def _tick(self, now: int) -> bool:
        """Look, decide, do. True: drained, or out of time."""
        self.prober.check()
        self.opener.check()
        self.companions.tick(self.force.config.flows if self.force.config else None, now, self.watching_since_ns)
        if self.options.external_stages:
            self.crew.follow_rows()
        else:
            self.host.tick(now)
        seen = self.crew.note(now)
        books = self.crew.books()
        self.last = seen, books
        self._take_signals()
        self._mark_times(now, seen)
        if self.phase is Phase.RUN:
            if reason := self._ended_by_itself(seen, books):
                self._begin_drain(reason)
            elif now >= self._forget_ns:
                self.force.forget_old()
                self._forget_ns = now + plan.SECOND_NS
        if self.phase is Phase.DRAIN:
            gone = not any(s.pid for s in seen.values()) if self.options.external_stages else plan.drained(seen, books)
            if gone:
                return True
            if now > self._deadline_ns:
                self.problems.append(f"not drained in time: {', '.join(str(w) for w, s in seen.items() if s.pid)} still at work")
                return True
        if not self.options.external_stages:
            self._act(now, seen, books)
        return False

    def _act(self, now: int, seen: dict[WorkerId, Seen], books: dict[WorkerId, Book]) -> None:
        actions = plan.decide(self.phase, now, self.watching_since_ns, seen, books)
        if not self.host.ready:
            actions = [a for a in actions if not isinstance(a, Start)]
        try:
            self.crew.apply(actions, self.host.launch)
        except HostError as error:
            self.log.warning("worker_not_started", reason=str(error))  # the next tick sees to the host

    def _wait(self) -> None:
        seen, books = self.last
        poller = select.poll()
        for fd in (self.signals.fileno(), *self.host.fds(), *self.crew.fds(), *self.companions.fds()):
            poller.register(fd, select.POLLIN)
        coming_up = not self.options.external_stages and any(
            (s.pid and not s.up) or not (s.pid or books[w].given_up or books[w].stopped) for w, s in seen.items()
        )
        tick_s = REPLAY_TICK_S if self.options.until_finished else TICK_S
        poller.poll((QUICK_S if coming_up or self.phase is Phase.DRAIN else tick_s) * 1000)

    def _take_signals(self) -> None:
        self.signals.clear()
        if self._loading is not None and self._loading.wait(0):
            loading, self._loading = self._loading, None
            self._reload(loading)
        if self.signals.reload and self._loading is None:  # else once more afterwards: the file may have changed since it was read
            self.signals.reload = False
            self.reload()
        if self.signals.stops and self.phase is Phase.RUN:
            self._stopped = True
            self._begin_drain("signal")
            self.signals.stops = 1
        elif self.signals.stops > 1 and self.phase is Phase.DRAIN:
            self._deadline_ns = 0  # asked twice: no more waiting

    def _begin_drain(self, reason: str) -> None:
        assert self.force.config is not None
        self.phase = Phase.DRAIN
        self.times.finished_ns = time.monotonic_ns()
        self._deadline_ns = self.times.finished_ns + int(self.force.config.drain_s * plan.SECOND_NS)
        self.cpu_ns = self.crew.cpu_ns()
        self.log.info("drain_begun", reason=reason)

    def _mark_times(self, now: int, seen: dict[WorkerId, Seen]) -> None:
        if not self.times.up_ns and all(s.up for s in seen.values()):
            self.times.up_ns = now
            self.log.info("pipeline_up", workers=len(seen), after_s=round((now - self.times.begun_ns) / plan.SECOND_NS, 3))
        if not self.times.delivered_ns:
            for lane in self.pipeline.lanes:
                if int(lane.workers["cursor"][lane.geometry.row("send", 0) :].max()) > 0:
                    self.times.delivered_ns = now

    def _ended_by_itself(self, seen: dict[WorkerId, Seen], books: dict[WorkerId, Book]) -> str:
        """Why the run is over without anybody asking; empty: it is not."""
        if self.host.given_up:
            self.problems.append(self.host.given_up)
            return "host given up"
        if not self.options.until_finished:
            return ""
        for w, book in books.items():
            if book.given_up:
                return "worker given up"
            if self.options.give_up_after and book.failures >= self.options.give_up_after:
                self.problems.append(f"{w} died {book.failures} times in a row")
                return "worker keeps dying"
        captures = [s for w, s in seen.items() if w.kind == "capture"]
        if all(s.up and s.state == layout.STATE_FINISHED for s in captures) and not any(s.behind for s in seen.values()):
            return "finished"
        return ""

    def reload(self) -> None:
        """Read the file anew, beside this loop."""
        if self.options.load is None or self.phase is not Phase.RUN:
            self.log.warning("reload_ignored", phase=self.phase.value)
            return
        load = self.options.load
        self._loading = Loading(lambda: self._prepare(load()))

    def _reload(self, loading: Loading) -> None:
        """What was read: in force at the next block, or refused with every reason, and then nothing has changed."""
        if self.phase is not Phase.RUN:
            self.log.warning("reload_ignored", phase=self.phase.value)
            return
        try:
            self._put(loading.take())
        except ConfigErrors as errors:
            for place, part, text in errors.errors:
                self.log.error("reload_refused", where=str(place) if place else "", part=part, reason=text)
        except TapmeshError as error:
            self.log.error("reload_refused", where="", part="", reason=str(error))

    def switch(self, config: Config) -> None:
        """Put `config` in force if that needs no restart. TapmeshError in words if it does."""
        self._put(self._prepare(config))

    def _prepare(self, config: Config) -> Ready:
        if refusal := self.force.refusal(config):
            raise TapmeshError("needs a restart: " + "; ".join(refusal))
        return self.force.prepare(config)

    def _put(self, ready: Ready) -> None:
        self.force.put(ready)
        self.prober.follow(ready.config)
        self.companions.reloaded()
        self.log.info("reloaded", generation=self.force.number, changes=ready.changes)

    def end(self) -> Outcome:
        """End what is left, close the books. Shared memory goes, unless workers of others still live on it."""
        if self._loading is not None:
            self._loading.wait(LOADING_S)
        self.prober.close()
        self.problems += [f"{w}: {book.given_up}" for w, book in self.crew.books().items() if book.given_up]
        killed = self.crew.kill_all() if not self.options.external_stages else []
        if killed:
            self.log.error("workers_killed", workers=[str(w) for w in killed])
        self.host.quit()
        for process in self.crew.processes() if killed else []:
            process.wait(2.0)
        if slow := self.companions.stop(self.force.config.flows if self.force.config else None, COMPANIONS_S):
            self.log.error("companions_killed", processes=slow)
        living = self.options.external_stages and any(p.alive() for p in self.crew.processes())
        if not living:
            self._tell_what_is_lost()
        snapshot = self.reader.take(self.force.names, rules=True)
        outcome = Outcome(
            snapshot,
            balance(snapshot),
            self.times,
            self.cpu_ns or self.crew.cpu_ns(),
            self.crew.restarts,
            self.problems,
            source_errors(self.pipeline.directory),
            self.signals.last if self._stopped else 0,
        )
        self.times.ended_ns = time.monotonic_ns()
        self.crew.close()
        if living:
            self.log.warning("pipeline_left", directory=str(self.pipeline.directory), reason="stages started by others still work on it")
        else:
            self._keep_numbers()
            remove_pipeline(self.pipeline.name)
        return outcome

    def _tell_what_is_lost(self) -> None:
        try:
            left = left_of(self.pipeline)
        except PipelineError as error:  # damaged: no reason not to come to an end
            self.problems.append(f"what is lost of flows cannot be told: {error}")
            return
        if left.flows or left.records:
            self.log.error("flows_lost", **asdict(left))
            what = f"{left.flows:,} flows that had not ended, {left.records:,} records that no exporter took"
            self.problems.append(f"lost: {what}, {left.packets:,} packets")

    def _keep_numbers(self) -> None:
        if self.options.until_finished or self.force.config is None:
            return
        try:
            numbers.keep(self.pipeline, self.force.config)
        except OSError as error:
            self.log.warning("numbers_lost", file=str(numbers.numbers_path(self.pipeline.name)), reason=error.strerror)

    def leave(self) -> None:
        """Let everything run on without a supervisor. What is known of the tools stays as it is."""
        self.prober.close()
        self.companions.leave()
        self.host.leave()
        self.crew.close()
