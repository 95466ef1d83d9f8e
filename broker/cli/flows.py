"""``tapmesh flows``: answers from stored flow records. What each asks is in `broker.flows.answers`; here are its arguments only."""

from __future__ import annotations

import argparse
import time
from typing import Any

from broker.cli import flows_questions
from broker.cli.flows_options import Asked, add_common
from broker.cli.flows_output import write


def add(commands: Any) -> None:
    sub: argparse.ArgumentParser = commands.add_parser(
        "flows", help="answers from stored flow records: who talks to whom, how much, since when"
    )
    questions = sub.add_subparsers(dest="question", required=True, metavar="QUESTION")
    for question in flows_questions.QUESTIONS:
        one: argparse.ArgumentParser = questions.add_parser(question.name, help=question.help, description=question.help)
        question.add(one)
        add_common(one, question)
        one.set_defaults(main=main, asked=question)


def main(arguments: argparse.Namespace) -> int:
    """Exit status 0 whatever the answer is; 1: it could not be given."""
    asked = Asked.of(arguments, time.time_ns())
    store = asked.store()
    result = store.answered(lambda: arguments.asked.ask(asked, store))
    write(result, arguments, store)
    return 0
