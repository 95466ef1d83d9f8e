"""``tapmesh flows``: answers from stored flow records. What each asks is in `broker.flows.answers`; here are its arguments only."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from broker.cli import flows_questions
from broker.cli.flows_options import Asked, add_common
from broker.cli.flows_output import write

if TYPE_CHECKING:
    from broker.flows.answers.answer import Answer
    from broker.flows.answers.store import Store


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
    result = store.answered(lambda: _answer(asked, store))
    write(result, arguments, store)
    return 0


def _answer(asked: Asked, store: Store) -> Answer:
    question = asked.arguments.asked
    found: Answer = question.ask(asked, store)
    if not question.says_sampling:
        from broker.flows.answers.sampling import told_of_sampling

        found = told_of_sampling(found, store, asked.period, asked.where() if question.expression else "true")
    return found
