"""``tapmesh receive``: the far end of tunnels without a configuration file. Runs until it is stopped; then says what each sender sent.

tapmesh receive --listen gre --from 10.0.0.0/8 -w FILE ['EXPRESSION']      a pcap file
tapmesh receive --listen vxlan --from 10.0.0.5 -w - | tcpdump -n -r -       a stream on standard output
tapmesh receive --listen gre --from 10.0.0.0/8 --tap tap0                  a tap device that is made, for an IDS to capture on

What comes to standard error meanwhile: on SIGUSR1, and every N seconds with ``--stats N``, the table of senders.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broker.cli import report
from broker.cli.common import checked_expression, compiled, quiet_logs
from broker.cli.progress import Progress
from broker.config import scalars
from broker.config.document import Text
from broker.config.scalars import Wrong
from broker.config.schema import LISTEN_PORTS
from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.model import Config, Input, Map, Place, Rule, Tool
from broker.supervisor.ledger import Ledger
from broker.supervisor.prepare import sweep
from broker.supervisor.session import Options, Outcome, Session
from broker.supervisor.snapshot import Snapshot
from broker.supervisor.supervisor import supervise

NAME = "receive-"
INPUT, OUT = "remote", "out"


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("receive", help="take packets out of tunnels, into a file, a stream or a tap device")
    sub.add_argument("--listen", required=True, choices=LISTEN_PORTS, help="what is sent to us; ERSPAN and NVGRE come as gre")
    sub.add_argument(
        "--from", required=True, action="append", dest="senders", metavar="NET", type=_value(scalars.net), help="who may send; repeatable"
    )
    sub.add_argument("--address", metavar="A", type=_value(scalars.host), help="ours; by default any")
    sub.add_argument("--port", metavar="P", default=0, type=_number(1, 65_535), help="of UDP; by default that of the protocol")
    sub.add_argument("--key", metavar="K", type=_number(0, 0xFFFF_FFFF), help="take this GRE key only")
    sub.add_argument("--vni", metavar="V", type=_number(0, 0xFF_FFFF), help="take this VNI only")
    where = sub.add_mutually_exclusive_group(required=True)
    where.add_argument("-w", metavar="FILE", dest="file", help="a pcap file; '-' is standard output")
    where.add_argument("--tap", metavar="NAME", type=_value(scalars.interface), help="a tap device, made if it is not there")
    sub.add_argument("--stats", metavar="N", type=_number(1, 86_400), help="tell what the senders sent every N seconds")
    sub.add_argument("expression", nargs="*", metavar="EXPRESSION", help="of the packets inside: which are wanted; all by default")
    sub.set_defaults(main=main)


def _value(parse: Callable[[Any], str]) -> Callable[[str], str]:
    def parsed(word: str) -> str:
        try:
            return parse(word)
        except Wrong as wrong:
            raise argparse.ArgumentTypeError(str(wrong)) from None

    return parsed


def _number(low: int, high: int) -> Callable[[str], int]:
    def parsed(word: str) -> int:
        try:
            return scalars.integer(Text(word), low, high)
        except Wrong as wrong:
            raise argparse.ArgumentTypeError(str(wrong)) from None

    return parsed


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0: stopped by a signal, everything delivered, and the ledger balances."""
    quiet_logs()
    log.configure()
    config = receiving(arguments)
    sweep(NAME)
    telling = _Telling(arguments.stats)
    signal.signal(signal.SIGUSR1, telling.ask)
    try:
        outcome = supervise(config, Options(f"{NAME}{os.getpid()}", compiled, until_finished=True, on_tick=telling))
    finally:
        telling.progress.end()
    return _conclude(outcome, sys.stderr if arguments.file == "-" else sys.stdout)


def receiving(arguments: argparse.Namespace) -> Config:
    """One tunnel input, one tool. TapmeshError in words when the options contradict each other."""
    listen = arguments.listen
    for key, others in (("port", ("gre",)), ("key", ("vxlan", "geneve")), ("vni", ("gre", "gre-udp"))):
        if getattr(arguments, key) not in (None, 0) and listen in others:
            raise TapmeshError(f"receive: {listen} has no {key}")
    source = Input(
        INPUT,
        "tunnel",
        listen=listen,
        senders=tuple(arguments.senders),
        address=arguments.address or "",
        port=arguments.port or LISTEN_PORTS[listen],
        key=arguments.key,
        vni=arguments.vni,
    )
    tool = Tool(OUT, tap=arguments.tap) if arguments.tap else Tool(OUT, file=_file(arguments.file))
    expression = checked_expression(" ".join(arguments.expression))
    if not expression:
        return Config("receive", (source,), (tool,), (), collector=(OUT,))
    rule = Rule("pass", expression, Place("expression", 1, 1))
    return Config("receive", (source,), (tool,), (Map("wanted", (rule,), (OUT,), undetermined="libpcap"),))


def _file(name: str) -> str:
    """The stages have no standard output of ours, but what it is can be opened by its name."""
    return f"/proc/{os.getpid()}/fd/1" if name == "-" else str(Path(name).absolute())


class _Telling:
    """Given to the supervisor as `on_tick`: a line that it is ready, and the senders when asked or due."""

    def __init__(self, every_s: int | None) -> None:
        self.progress = Progress()
        self._every_s = every_s
        self._due = time.monotonic() + every_s if every_s else 0.0
        self._asked = self._is_up = False

    def ask(self, _number: int, _frame: Any) -> None:
        self._asked = True

    def __call__(self, session: Session) -> None:
        self.progress(session)
        if session.times.up_ns and not self._is_up:
            self._is_up = True
            self._say("receiving")
        if self._every_s and time.monotonic() >= self._due:
            self._due += self._every_s
            self._asked = True
        if self._asked:
            self._asked = False
            snapshot = session.reader.take(session.force.names)
            self._say(report.senders_table(snapshot.senders) if snapshot.senders else "nothing has come yet")

    def _say(self, text: str) -> None:
        self.progress.end()
        print(text, file=sys.stderr, flush=True)


def _conclude(outcome: Outcome, out: Any) -> int:
    print(tables(outcome.snapshot, outcome.ledger), file=out, flush=True)
    troubles = [*outcome.source_errors, *outcome.problems, *outcome.ledger.faults()]
    if outcome.ledger.in_flight:
        troubles.append(f"{outcome.ledger.in_flight:,} packets and frames were still in flight")
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    return 1 if troubles else 0


def tables(snapshot: Snapshot, ledger: Ledger) -> str:
    """Senders, what became of their packets, and the ledger."""
    parts = [report.senders_table(snapshot.senders)] if snapshot.senders else []
    return "\n\n".join([*parts, report.tools_table(ledger, snapshot.alive), report.ledger_table(ledger)])
