"""``tapmesh replay``: the same processes with files at both ends. The same input gives the same bytes, always.

tapmesh replay FILE... --config C --out DIR       each tool becomes DIR/<tool>.pcap; DIR/ledger.json, DIR/run.json
tapmesh replay FILE... -w OUT ['EXPRESSION']      selects as tcpdump does
tapmesh replay FILE... --config C --only STAGE --dump FILE     one stage alone
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from broker.cli import check, report
from broker.cli.common import checked_expression, compiled, quiet_logs, writable_directory
from broker.cli.figures import run_figures
from broker.cli.only import run_only
from broker.cli.progress import Progress
from broker.cli.replay_config import parse_plays, replayed, selecting
from broker.config.scalars import Wrong, pace
from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.layout import PATH
from broker.core.model import STDOUT, Config
from broker.supervisor.prepare import sweep
from broker.supervisor.session import Options, Outcome
from broker.supervisor.supervisor import supervise
from broker.supervisor.troubles import dropped_records

NAME = "replay-"
GIVE_UP_AFTER = 8


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("replay", help="play capture files through the pipeline into files")
    sub.add_argument("files", nargs="+", metavar="FILE", help="capture file, or INPUT=FILE; '-' is standard input")
    sub.add_argument("--config", type=Path, metavar="CONFIG")
    sub.add_argument("--out", type=Path, metavar="DIR", help="for the tools' files and the ledger")
    sub.add_argument(
        "-w",
        nargs="+",
        metavar=("OUT", "EXPRESSION"),
        dest="select",
        help="write what matches, as tcpdump -r FILE -w OUT does; '-' is standard output",
    )
    sub.add_argument("--pace", metavar="P", type=_pace, help="max (default), recorded, 2x, or packets per second")
    sub.add_argument("--only", choices=PATH, metavar="STAGE", help="run this stage alone, with those before it, in one process")
    sub.add_argument(
        "--dump", metavar="FILE", default="-", help="with --only: what the stage wrote, as JSON lines (default: standard output)"
    )
    sub.add_argument("--json", action="store_true", help="print the ledger as JSON instead of tables")
    sub.set_defaults(main=main)


def _pace(word: str) -> str:
    try:
        return pace(word)
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong)) from None


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0: everything was read, the ledger balances and nothing is left in flight. 130 and 143: interrupted."""
    quiet_logs()
    log.configure()
    config = _config(arguments)
    if arguments.only:
        return run_only(config, compiled(config), arguments.only, arguments.dump)
    sweep(NAME)
    progress = Progress()
    options = Options(
        f"{NAME}{os.getpid()}",
        compiled,
        until_finished=True,
        stdin="-" in (file for one in config.inputs for file in one.files),
        give_up_after=GIVE_UP_AFTER,
        on_tick=progress,
    )
    try:
        outcome = supervise(config, options)
    finally:
        progress.end()
    return _conclude(arguments, outcome)


def _config(arguments: argparse.Namespace) -> Config:
    """What is to be run: the file's configuration with files at both ends, or a selection."""
    if arguments.select:
        if arguments.config or arguments.out:
            raise TapmeshError("replay: either -w OUT, or --config CONFIG with --out DIR")
        out, *words = arguments.select
        return selecting(parse_plays(arguments.files, ()), Path(out), checked_expression(" ".join(words)), arguments.pace)
    if not arguments.config:
        raise TapmeshError("replay: --config CONFIG with --out DIR, or -w OUT ['EXPRESSION'] is needed")
    if not arguments.out and not arguments.only:
        raise TapmeshError("replay: --out DIR is needed")
    out_directory = writable_directory(arguments.out) if arguments.out else None
    loaded = check.load(arguments.config)
    return replayed(loaded, parse_plays(arguments.files, [i.name for i in loaded.inputs]), out_directory, arguments.pace)


def _write(path: Path, text: str) -> None:
    """TapmeshError in words."""
    try:
        path.write_text(text)
    except OSError as error:
        raise TapmeshError(f"{path}: {error.strerror}") from None


def _conclude(arguments: argparse.Namespace, outcome: Outcome) -> int:
    ledger = json.dumps(outcome.ledger.as_json(), indent=2) + "\n"
    if arguments.out:
        _write(arguments.out / "ledger.json", ledger)
        _write(arguments.out / "run.json", json.dumps(run_figures(outcome), indent=2) + "\n")
    to_stdout = bool(arguments.select) and arguments.select[0] == STDOUT
    told = sys.stderr if to_stdout else sys.stdout
    print(ledger.rstrip() if arguments.json else report.whole(outcome.snapshot, outcome.ledger), file=told, flush=True)
    troubles = [*outcome.source_errors, *outcome.problems]
    if outcome.ledger.in_flight:
        troubles.append(f"{outcome.ledger.in_flight:,} packets and frames were still in flight")
    for tool in outcome.ledger.tools:
        unwritten = tool.dropped["tool_down"] + tool.dropped["disk"]
        if unwritten:
            troubles.append(
                f"tool {tool.tool!r}: {unwritten:,} of {tool.wanted_frames:,} frames could not be written; the reason is logged above"
            )
    for trouble in (*troubles, *outcome.ledger.faults(), *dropped_records(outcome.snapshot.exports)):
        print(trouble, file=sys.stderr)
    if outcome.stopped_by:
        print(f"stopped by {signal.Signals(outcome.stopped_by).name} before the end", file=sys.stderr)
        return 128 + outcome.stopped_by
    return 1 if troubles or not outcome.ledger.balanced else 0
