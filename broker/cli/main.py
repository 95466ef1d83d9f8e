"""``tapmesh``: the commands. Each is a module with `add` (its arguments) and `main` (what it does, returning the exit status)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from broker.core.dumps import leave_memory_out
from broker.core.errors import TapmeshError

COMMANDS = ("run", "check", "explain", "diff", "replay", "receive", "status", "top", "flows")


def parser(only: str = "") -> argparse.ArgumentParser:
    """`only`: a command that is known to be meant; to import the others takes longer than most commands do."""
    made = argparse.ArgumentParser(prog="tapmesh", description="The open virtual packet broker")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (only,) if only in COMMANDS else COMMANDS:
        importlib.import_module(f"broker.cli.{command}").add(commands)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Operators' mistakes end here: told as they stand, exit status 1 (or what the command has chosen)."""
    leave_memory_out()
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parser(given[0] if given else "").parse_args(given)
    try:
        status: int = parsed.main(parsed)
        sys.stdout.flush()
    except TapmeshError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # before the pipeline, or in a view of it: there is nothing to close
    except BrokenPipeError:
        # The reader of our output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
