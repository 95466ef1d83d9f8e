"""`supervise`: one name, one lock, one pipeline; taken over from a supervisor that died, or made anew.

| found under the name | becomes |
|---|---|
| a living supervisor | refused, with its pid |
| files, no process | removed, then anew |
| running workers, the file asks for the same rings | adopted; the file is applied as a reload |
| running workers, the file asks for other rings | drained by the configuration they run, then anew |
| running workers of another version of tapmesh | drained by themselves, see `foreign`, then anew |
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from broker.core import log as logs
from broker.core.errors import TapmeshError, VersionError
from broker.core.model import Config
from broker.supervisor import foreign, prepare
from broker.supervisor.descriptors import raise_limit
from broker.supervisor.exposition import exposition
from broker.supervisor.health import health, ready
from broker.supervisor.http import HttpServer
from broker.supervisor.ledger import balance
from broker.supervisor.lock import hold
from broker.supervisor.opener import Opener
from broker.supervisor.probes import EVENTS as PROBE_EVENTS
from broker.supervisor.session import Options, Outcome, Session
from broker.supervisor.signals import Signals
from broker.supervisor.troubles import dropped_records

EVENTS = PROBE_EVENTS | {
    "companion_died": "the exporter or the store of flow records ended without being asked; it is started again after the back-off",
    "companion_given_up": "it cannot work as it is configured and is not started again, before a reload",
    "companion_killed": "the exporter or the store of flow records did not go on and was killed",
    "companion_started": "the exporter or the store of flow records has been started",
    "companion_stopped": "the configuration in force has no need of it any more",
    "companions_killed": "they were still there when the time to hand over was over",
    "flows_lost": "flows that had not ended and records that no exporter took, at the end; with the packets that they tell of",
    "drain_begun": "nothing new is taken; each stage finishes what is ready",
    "foreign_drained": "it has ended; its last ledger and its sequence numbers only its own version could tell",
    "foreign_found": "what runs is of another version of tapmesh; its processes are asked to finish, then it is started anew",
    "generation_put": "capture stamps its next blocks with this configuration",
    "host_adopted": "the stage host of a former supervisor has been taken over",
    "host_died": "the stage host ended or hung; its workers go on, a new one is started",
    "host_given_up": "the stage host cannot start and is not started again",
    "host_killed": "the stage host did not answer when it was told to quit",
    "host_started": "the process that forks the workers has been started",
    "kernels_compiling": "the cache of compiled kernels was cold",
    "ledger_closed": "the last ledger of the pipeline",
    "left_overs_removed": "a dead supervisor had left shared memory or an idle host",
    "opener_answers": "it had hung",
    "opener_died": "the one process with capabilities has ended; what is open goes on",
    "opener_hangs": "the one process with capabilities does not answer; what is open goes on",
    "opener_started": "the one process with capabilities runs; all others have none",
    "pipeline_adopted": "running workers of a former supervisor have been taken over",
    "pipeline_left": "shared memory stays: stages started by others still work on it",
    "pipeline_up": "every worker is up",
    "reload_ignored": "there is nothing to reload, or the pipeline is stopping",
    "reload_refused": "the new configuration has not been taken; nothing has changed",
    "reloaded": "the new configuration is in force from the next block on",
    "rule_counts_not_carried": "no room for what the rules of old generations have counted; their files stay for now",
    "sandbox_missing": "system calls are not restricted, for the reason given",
    "supervisor_paused": "the supervisor was not run for a while; heartbeats get a new period",
    "topology_changed": "what runs has other rings than the file asks for; it is drained first",
    "worker_died": "a worker ended without being asked; it is started again after the back-off",
    "worker_drained": "a worker has finished what was ready and ended",
    "worker_found": "a worker that a former supervisor or host had just started runs; it is watched from now on",
    "worker_given_up": "a worker cannot work as it is configured and is not started again",
    "worker_gone": "a worker that others start and stop has ended",
    "worker_killed": "a worker had no heartbeat and was killed",
    "worker_not_started": "the stage host did not start a worker",
    "worker_up": "a worker is ready for blocks",
    "workers_killed": "workers were still there when the time to drain was over",
}

TOLD_OF_EXPORTS = ("records", "dropped_records", "dropped_packets", "dropped_bytes", "waiting_records")


def supervise(config: Config, options: Options) -> Outcome:
    """Run the pipeline until it is stopped or finished. TapmeshError in words when it cannot begin; nothing is left behind then.

    Main thread only: it handles signals.
    """
    log = logs.get(pipeline=options.name)
    with contextlib.ExitStack() as stack:
        raise_limit()
        signals = stack.enter_context(Signals())
        stack.enter_context(hold(options.name))
        web = None
        if config.http:
            web = stack.enter_context(contextlib.closing(Web(config.http)))  # bound first: nothing runs yet if the port is taken
        opener = Opener(options.name, log)
        opener.start(config)
        stack.callback(opener.leave)
        session = _taken_over(config, options, signals, opener, log) or _made_anew(config, options, signals, opener, log)
        if web is not None:
            web.serve(session)
        try:
            session.watch()
        except BaseException:
            # The data path outlives its control; but a replay has nobody who would come back for it.
            if options.until_finished:
                session.end()
            else:
                session.leave()
            raise
        outcome = session.end()
        opener.quit()
    _report(outcome, log)
    return outcome


class Web:
    """The HTTP server of a session that comes later than its socket."""

    def __init__(self, address: str) -> None:
        self._session: Session | None = None
        self._server = HttpServer(address, self._metrics, lambda: self._ask(health), lambda: self._ask(ready))

    def serve(self, session: Session) -> None:
        self._session = session
        self._server.start()

    def close(self) -> None:
        self._server.close()

    def _metrics(self) -> str:
        assert self._session is not None
        snapshot = self._session.reader.take(self._session.force.names, rules=True)
        return exposition(snapshot, balance(snapshot))

    def _ask(self, question: Callable[[Session], list[str]]) -> list[str]:
        assert self._session is not None
        return question(self._session)


def _taken_over(config: Config, options: Options, signals: Signals, opener: Opener, log: Any) -> Session | None:
    try:
        running = prepare.look(options.name, log)
    except VersionError as error:
        if options.external_stages:
            raise TapmeshError(f"{error}; others have started them: stop those stages first") from None
        foreign.drain(options.name, str(error), config.drain_s, log)
        return None
    if running is None:
        return None
    session = Session(running.pipeline, options, signals, opener, log)
    session.adopt(running.config)
    refusal = session.force.refusal(config)
    try:
        if not refusal:
            session.switch(config)
            return session
        if options.external_stages:
            raise TapmeshError(
                f"pipeline {options.name!r} is running with stages that others have started, and the file needs a restart: "
                + "; ".join(refusal)
                + "; stop those stages first"
            )
    except BaseException:
        session.leave()
        raise
    log.warning("topology_changed", changes=refusal)
    session.watch(drain=True)
    _report(session.end(), log)
    return None


def _made_anew(config: Config, options: Options, signals: Signals, opener: Opener, log: Any) -> Session:
    session = Session(prepare.create(options.name, config), options, signals, opener, log)
    try:
        session.begin(config)
    except BaseException:
        session.end()
        raise
    return session


def _report(outcome: Outcome, log: Any) -> None:
    ledger = outcome.ledger
    dropped = dropped_records(outcome.snapshot.exports)
    write = log.error if not ledger.balanced or ledger.in_flight else log.warning if dropped else log.info
    exports = {row["name"]: {key: row[key] for key in TOLD_OF_EXPORTS} for row in outcome.snapshot.exports}
    write(
        "ledger_closed",
        balanced=ledger.balanced,
        faults=ledger.faults(),
        in_flight=ledger.in_flight,
        ledger=ledger.as_json(rules=False),
        **({"exports": exports} if exports else {}),
        **({"dropped": dropped} if dropped else {}),
    )
