"""What the commands that ask the judge share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from broker.cli.progress import Progress
from broker.config.policy_tests import failures
from broker.core.errors import ConfigErrors, TapmeshError
from broker.core.model import Config
from broker.supervisor.judge import Judge, Packet


@contextlib.contextmanager
def judging(*policies: tuple[Config, bytes]) -> Iterator[Judge]:
    """A judge with these configurations and their images as its policies 1, 2 ..."""
    progress = Progress()
    with Judge(progress.say) as judge:
        try:
            for number, (config, image) in enumerate(policies, 1):
                judge.load(config, image, number)
            yield judge
        finally:
            progress.end()


def slot_of(config: Config, name: str) -> int:
    """Of the input `name`, or of the first. TapmeshError: there is none."""
    slots = {i.name: i.slot for i in config.inputs}
    if name and name not in slots:
        raise TapmeshError(f"there is no input {name!r}; the configuration has {', '.join(slots)}")
    return slots[name or config.inputs[0].name]


def refuse_failing(config: Config, image: bytes) -> None:
    """ConfigErrors with a line for each of `config.tests` that fails; `image` is compiled from `config`."""
    if not config.tests:
        return
    with judging((config, image)) as judge:
        packets = [Packet(test.frame, test.wirelen, slot_of(config, test.input)) for test in config.tests]
        found = failures(config, judge.judge(packets))
    if found:
        raise ConfigErrors(found)
