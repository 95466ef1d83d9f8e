"""Arguments that the questions of ``tapmesh flows`` share, and what they come to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from broker.config import load_config
from broker.config.policy import PolicyError, read_sets
from broker.config.policy.sets import Elements
from broker.core.errors import ConfigErrors, TapmeshError
from broker.core.flow_model import Link, Site
from broker.core.model import Config, Place
from broker.flows.answers import times
from broker.flows.answers.times import Period

if TYPE_CHECKING:
    from broker.flows.answers.answer import Answer
    from broker.flows.answers.store import Store

DEFAULT_LAST = "1h"
MOST = 999_999_999
_RATES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Question:
    """One answer of ``tapmesh flows``: its arguments, and how it is asked."""

    name: str
    help: str
    add: Callable[[argparse.ArgumentParser], None]
    ask: Callable[[Asked, Store], Answer]
    last: str = DEFAULT_LAST
    expression: bool = True
    plots: bool = False
    says_sampling: bool = False  # itself, or it does not matter


def add_common(sub: argparse.ArgumentParser, question: Question) -> None:
    if question.expression:
        sub.add_argument("expression", nargs="*", metavar="EXPRESSION", help="which records, as tcpdump would say it; none: all")
    when = sub.add_argument_group("time")
    when.add_argument("--last", metavar="LENGTH", help=f"up to now (or --to): 15m, 1h, 7d (default: {question.last})")
    when.add_argument(
        "--from", dest="from_", metavar="TIME", help="2026-05-01, 2026-05-01T13:30 (UTC unless it says otherwise), today, yesterday"
    )
    when.add_argument("--to", metavar="TIME", help="the first moment that no longer counts (default: now)")
    where = sub.add_argument_group("store")
    where.add_argument("--store", type=Path, metavar="DIRECTORY", help="of the stored records")
    where.add_argument("--config", type=Path, metavar="CONFIG", help="take the store, sets, links and sites from this configuration")
    where.add_argument("--threads", type=positive, default=0, metavar="N", help="to use (default: all cores)")
    out = sub.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="for programs")
    out.add_argument("--csv", metavar="FILE", help="write the rows there ('-': standard output)")
    if question.plots:
        out.add_argument("--plot", type=Path, metavar="FILE", help="draw it: .png or .svg")


@dataclass(frozen=True)
class Asked:
    """The arguments, understood."""

    arguments: argparse.Namespace
    period: Period
    now_ns: int
    config: Config | None
    sets: dict[str, Elements] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: argparse.Namespace, now_ns: int) -> Asked:
        config = load_config(arguments.config) if arguments.config else None
        period = times.period(arguments.last, arguments.from_, arguments.to, now_ns, arguments.asked.last)
        return cls(arguments, period, now_ns, config, read_sets(config.sets) if config else {})

    @property
    def links(self) -> tuple[Link, ...]:
        return self.config.flows.links if self.config and self.config.flows else ()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.config.flows.sites if self.config and self.config.flows else ()

    @property
    def limit(self) -> int:
        return int(self.arguments.limit)

    def store(self) -> Store:
        from broker.flows.answers.store import Store

        directory = self.arguments.store
        if directory is None and self.config is not None and self.config.flows is not None:
            kept = self.config.flows.store
            if kept is not None and kept.kind != "parquet":
                raise TapmeshError(f"the records of this configuration are stored in {kept.kind}: ask them there")
            directory = Path(kept.directory) if kept is not None else None
        if directory is None:
            raise TapmeshError("where are the records? Give --store DIRECTORY, or --config with a part 'flows.store'")
        return Store(directory, self.arguments.threads)

    def where(self) -> str:
        """The expression of the command line as a condition. ConfigErrors says at which column it is wrong."""
        return self.condition(" ".join(self.arguments.expression))

    def condition(self, expression: str, place: Place | None = None) -> str:
        from broker.config.records.expression import where

        try:
            return where(expression, self.sets)
        except PolicyError as error:
            if place is None:
                place = Place("expression", 1, max(0, error.offset) + 1)
                raise ConfigErrors([(place, "", error.message)]) from None
            raise ConfigErrors([(place, "flows.links", f"{error.message} (column {error.offset + 1} of the expression)")]) from None


def add_limit(default: int) -> Callable[[argparse.ArgumentParser], None]:
    def add(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--limit", type=positive, default=default, metavar="N", help=f"rows at most (default: {default})")

    return add


def add_capacity(sub: argparse.ArgumentParser) -> None:
    help_ = "bits/s that an input or tool can take, such as span0=10G; may be repeated"
    sub.add_argument("--capacity", action="append", default=[], metavar="NAME=RATE", help=help_)


def capacities(given: list[str]) -> dict[str, int]:
    """bits/s by name. TapmeshError in words."""
    found = {}
    for text in given:
        name, _, rate = text.rpartition("=")
        digits = rate.rstrip("kMGT")
        unit = rate[len(digits) :]
        if not name or unit not in _RATES or not digits.isascii() or not digits.isdigit() or not int(digits):
            raise TapmeshError(f"--capacity: '{text}': expected NAME=RATE, the rate a whole number and k, M, G or T: span0=10G")
        found[name] = int(digits) * _RATES[unit]
    return found


def positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:10]) <= MOST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {MOST:,}")
    return int(text)
