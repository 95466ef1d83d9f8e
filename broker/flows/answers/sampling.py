"""What has to be said of an answer when some of its records are of sampled traffic."""

from __future__ import annotations

from dataclasses import replace

from broker.flows.answers.answer import Answer
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period


def told_of_sampling(answer: Answer, store: Store, period: Period, condition: str) -> Answer:
    """Where there is none, files are known by their statistics to have nothing of it, and are not read."""
    n, one_in = store.run(f"SELECT count(*), max(one_in) FROM {store.flows(period, f'one_in > 1 AND {condition}')}")[0]
    if not n:
        return answer
    note = f"{n:,} records of that time are of sampled traffic (up to one in {one_in:,}): nothing is scaled up"
    return replace(answer, notes=(*answer.notes, note), facts={**answer.facts, "sampled_records": n, "sampled_one_in": one_in})
