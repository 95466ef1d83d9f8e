"""``tapmesh run``: the broker. Starts the pipeline, keeps it alive, drains it on SIGTERM, reloads the file on SIGHUP."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

from broker.cli import check, report
from broker.cli.common import DEFAULT_NAME, compiled, quiet_logs
from broker.cli.progress import Progress
from broker.core import log
from broker.core.errors import EXIT_CONFIG, ConfigErrors, TapmeshError
from broker.core.model import Config
from broker.privileges import capabilities
from broker.supervisor.session import Options, Outcome
from broker.supervisor.supervisor import supervise
from broker.supervisor.troubles import dropped_records

DEFAULT_CONFIG = Path("/etc/tapmesh/tapmesh.yaml")


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("run", help="run the broker until it is stopped, or its files have been played")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="CONFIG", help=f"default {DEFAULT_CONFIG}")
    what.add_argument("--demo", action="store_true", help="the embedded example: its own traffic, delivered to a receiver on loopback")
    sub.add_argument("--name", help=f"of the pipeline (default {DEFAULT_NAME})")
    sub.add_argument("--user", metavar="NAME", help="be that user from the start on, files included; root alone can")
    sub.add_argument("--external-stages", action="store_true", help="supervisord or systemd start the stages, not this process")
    sub.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0: drained, and every packet accounted for. 78 (EX_CONFIG): the file is wrong. 1: anything else."""
    if arguments.user:
        _become(arguments.user)
    if arguments.demo:
        return _demo(arguments)
    log.configure()
    try:
        config = check.load_tested(arguments.config)
        outcome = _run(arguments, arguments.name or DEFAULT_NAME, arguments.config, config, Progress(shown=False))
    except ConfigErrors as errors:
        print(errors, file=sys.stderr)
        return EXIT_CONFIG
    return conclude(outcome, sys.stderr if config.uses_stdout else sys.stdout)


def _become(user: str) -> None:
    """TapmeshError in words when that cannot be."""
    try:
        capabilities.become(user)
    except KeyError:
        raise TapmeshError(f"--user {user}: there is no such user") from None
    except OSError as error:
        raise TapmeshError(f"--user {user}: {error.strerror}; that takes root, or CAP_SETUID and CAP_SETGID") from None
    if not os.access(sys.executable, os.X_OK):
        raise TapmeshError(f"--user {user}: may not run {sys.executable}: install tapmesh where that user can reach it")


def _run(arguments: argparse.Namespace, name: str, path: Path, config: Config, progress: Progress) -> Outcome:
    options = Options(
        name,
        compiled,
        load=lambda: check.load_tested(path),
        external_stages=arguments.external_stages,
        # Files alone: nothing more will ever come. But stages that others have started, others stop.
        until_finished=not arguments.external_stages and all(i.kind == "pcap" for i in config.inputs),
        on_tick=progress,
    )
    try:
        return supervise(config, options)
    finally:
        progress.end()


def conclude(outcome: Outcome, told: TextIO) -> int:
    """The tables, what went wrong, and the exit status."""
    print(report.whole(outcome.snapshot, outcome.ledger), file=told, flush=True)
    for trouble in (*outcome.source_errors, *outcome.problems, *dropped_records(outcome.snapshot.exports)):
        print(trouble, file=sys.stderr)
    clean = outcome.ledger.balanced and not outcome.ledger.in_flight and not outcome.problems and not outcome.source_errors
    return 0 if clean else 1


def _demo(arguments: argparse.Namespace) -> int:
    from broker.demo.example import example

    quiet_logs()
    log.configure()
    progress = Progress()
    with tempfile.TemporaryDirectory(prefix="tapmesh-demo-") as directory, example(Path(directory)) as demo:
        print(f"tapmesh demo: {demo.n_packets:,} packets of a shop's network, through four stage processes,")
        print(f"to a receiver on 127.0.0.1:{demo.port} and a file. The configuration is broker/demo/demo.yaml.\n", flush=True)
        outcome = _run(arguments, arguments.name or f"demo-{os.getpid()}", demo.config, check.load_tested(demo.config), progress)
        received = demo.stop_receiver()
        status = conclude(outcome, sys.stdout)
        delivered = next((t.delivered_frames for t in outcome.ledger.tools if t.tool == "ids"), 0)
        holes = f"missing {received.missing:,}, not understood {received.refused:,}"
        print(f"\n  the receiver of tool ids got {received.packets:,} frames; {holes}")
        if received.packets != delivered or received.missing or received.refused:
            print(f"  but {delivered:,} frames were handed to the kernel for it", file=sys.stderr)
            return 1
    return status
