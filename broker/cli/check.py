"""``tapmesh check``: is a configuration right? Prints what it means, every default filled in; or all its mistakes at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from broker.cli.common import compiled
from broker.config import load_config, render
from broker.core.model import Config


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("check", help="the effective configuration, or everything that is wrong with it")
    sub.add_argument("config", type=Path, metavar="CONFIG")
    sub.add_argument("--quiet", action="store_true", help="say nothing if it is right")
    sub.set_defaults(main=main)


def load(path: Path) -> Config:
    """The configuration, its expressions compiled once to find their mistakes. ConfigErrors."""
    config = load_config(path)
    compiled(config)
    return config


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0: right. 1: mistakes, told on stderr."""
    config = load(arguments.config)
    if not arguments.quiet:
        print(render(config), end="")
        sys.stdout.flush()
        print(f"{arguments.config}: ok", file=sys.stderr)
    return 0
