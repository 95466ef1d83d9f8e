"""``tapmesh top``: live, in a terminal: what each stage is busy with, rates and drops of each tool, the ledger. `q` ends it."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from typing import Any

from broker.cli import report
from broker.cli.common import attach, chosen_name
from broker.cli.status import worker_troubles
from broker.cli.table import Column, count, reasons, render, share, size
from broker.core.errors import PipelineError, TapmeshError
from broker.supervisor.ledger import balance
from broker.supervisor.snapshot import Reader, Snapshot

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # alternate screen, hidden cursor
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("top", help="live view of a running pipeline")
    sub.add_argument("--name", help="of the pipeline; not needed when only one is running")
    sub.add_argument("--once", action="store_true", help="print one frame and end")
    sub.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default 1)")
    sub.set_defaults(main=main)


def main(arguments: argparse.Namespace) -> int:
    if not 0.05 <= arguments.interval <= 3600:
        raise TapmeshError(f"--interval {arguments.interval}: expected 0.05 to 3600 seconds")
    name = chosen_name(arguments.name)
    pipeline, names = attach(name)
    reader = Reader(pipeline)
    before = reader.take(names)
    if arguments.once:
        select.select([], [], [], arguments.interval)
        print(frame(before, reader.take(names)))
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise TapmeshError("top needs a terminal; `tapmesh top --once` prints one frame, `tapmesh status` the totals")
    with _screen():
        while not _pressed_q(arguments.interval):
            if not (pipeline.directory / "control").exists():
                break
            pipeline_now, names = _again(name, names)
            if pipeline_now is None:
                break
            after = reader.take(names)
            _paint(frame(before, after))
            before = after
    if not (pipeline.directory / "control").exists():
        print(f"pipeline {name} has ended")
    return 0


def _again(name: str, names: Any) -> tuple[Any, Any]:
    """The pipeline and its names now: a reload may have brought new ones."""
    try:
        return attach(name)
    except (PipelineError, OSError):
        return None, names


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Raw keys and the alternate screen; the terminal is as it was afterwards, whatever ends us short of kill -9."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    handlers = {n: signal.signal(n, leave) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        tty.setcbreak(fd)
        sys.stdout.write(_ENTER)
        yield
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for n, handler in handlers.items():
            signal.signal(n, handler)


def _pressed_q(wait_s: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(readable) and os.read(sys.stdin.fileno(), 16)[:1] in (b"q", b"Q", b"")


def _paint(text: str) -> None:
    size_now = os.get_terminal_size(sys.stdout.fileno())
    lines = [line[: size_now.columns] + _CLEAR_LINE for line in text.splitlines()[: size_now.lines - 1]]
    sys.stdout.write(_HOME + "\r\n".join(lines) + _CLEAR_REST)
    sys.stdout.flush()


def frame(before: Snapshot, after: Snapshot) -> str:
    """What happened between two snapshots. Pure."""
    span_ns = max(1, after.taken_ns - before.taken_ns)
    ledger = balance(after)
    in_use = sum(lane.blocks_in_use for lane in after.lanes)
    blocks = sum(lane.n_blocks for lane in after.lanes)
    head = f"tapmesh top - {after.name}  generation {after.generation}  ring {in_use}/{blocks} blocks  {report.verdict(ledger)}"
    parts = [head, _stages(before, after, span_ns), _tools(before, after, span_ns), *(f"  {t}" for t in worker_troubles(after))]
    return "\n\n".join(parts + [f"  ledger: {fault}" for fault in ledger.faults()])


def _stages(before: Snapshot, after: Snapshot, span_ns: int) -> str:
    columns = [
        Column("stage", right=False),
        *(Column(t) for t in ("workers", "per second", "ns each", "busy", "starved", "blocked", "restarts")),
    ]
    rows = []
    for old, new in zip(report.stage_figures(before), report.stage_figures(after), strict=True):
        handled, busy = new.handled - old.handled, new.busy_ns - old.busy_ns
        starved, blocked = new.starved_ns - old.starved_ns, new.blocked_ns - old.blocked_ns
        known = max(1, busy + starved + blocked)
        times = [share(busy, known), share(starved, known), share(blocked, known)]
        each = f"{busy / handled:,.0f}" if handled > 0 else "-"
        rows.append([new.stage, str(new.workers), count(handled * 1_000_000_000 // span_ns), each, *times, str(new.restarts)])
    return render(columns, rows)


def _tools(before: Snapshot, after: Snapshot, span_ns: int) -> str:
    columns = [
        Column("tool", right=False),
        *([Column("is", right=False)] if after.alive else []),
        *(Column(t) for t in ("frames/s", "bytes/s", "delivered", "in flight")),
        Column("dropped", right=False),
    ]
    old = {t.tool: t for t in balance(before).tools}
    rows = []
    for new in balance(after).tools:
        was = old.get(new.tool)
        frames = new.delivered_frames - (was.delivered_frames if was else 0)
        n_bytes = new.delivered_bytes - (was.delivered_bytes if was else 0)
        rates = [count(frames * 1_000_000_000 // span_ns), size(max(0, n_bytes) * 1_000_000_000 // span_ns)]
        counts = [count(new.delivered_frames), count(new.in_flight_frames)]
        rows.append([new.tool, *report.aliveness(after.alive, new.tool), *rates, *counts, reasons(new.dropped)])
    return render(columns, rows)
