"""``tapmesh check``: is a configuration right? Prints what it means, every default filled in; or all its mistakes at once. What is right
and yet hardly meant is a warning."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from broker.cli.common import compiled, policy_of
from broker.cli.judging import refuse_failing
from broker.config import hygiene, load_config, render
from broker.config.policy.shadow import shadowed
from broker.core.model import Config


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser("check", help="the effective configuration, or everything that is wrong with it")
    sub.add_argument("config", type=Path, metavar="CONFIG")
    sub.add_argument("--quiet", action="store_true", help="say nothing if it is right, but for warnings")
    sub.add_argument("--strict", action="store_true", help="a warning is a mistake")
    sub.set_defaults(main=main)


def load(path: Path) -> Config:
    """The configuration, its expressions compiled once to find their mistakes. ConfigErrors."""
    config = load_config(path)
    compiled(config)
    return config


def load_tested(path: Path) -> Config:
    """The same, and a test of it that fails is a mistake."""
    config = load_config(path)
    refuse_failing(config, compiled(config))
    return config


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0: right, perhaps with warnings, told on stderr. 1: mistakes, or with --strict warnings."""
    config = load_config(arguments.config)
    policy = policy_of(config)
    refuse_failing(config, policy.image)
    trees = [[policy.program.rules[rule].node for rule in rules] for rules in policy.maps]
    warned = hygiene.warnings(config, shadowed(policy), trees)
    refused = bool(warned) and arguments.strict
    if not arguments.quiet and not refused:
        print(render(config), end="")
        sys.stdout.flush()
    for warning in warned:
        print(hygiene.text_of(warning), file=sys.stderr)
    if not arguments.quiet and not refused:
        print(f"{arguments.config}: ok", file=sys.stderr)
    return int(refused)
