"""A policy in the judge, without its process."""

from __future__ import annotations

from pathlib import Path

from broker.config.policy import compile_policy
from broker.core.generations import write_generation
from broker.core.model import Config
from stages.judge.frames import one_packet_batch
from stages.judge.judge import _fill
from stages.judge.policy import Judging, Outcome
from tests.stages.filter.judging import Frame


class One:
    """One packet at a time, each as if nothing had come before it."""

    def __init__(self, directory: Path, config: Config) -> None:
        write_generation(directory, 1, config, compile_policy(config))
        self.judging = Judging(directory, 1)
        self.batch = one_packet_batch()

    def judge(self, frame: Frame) -> Outcome:
        _fill(self.batch, frame.data, frame.wirelen, frame.input, 0)
        self.judging.forget_fragments()
        self.judging.begin_block()
        return self.judging.outcome(self.judging.judge(self.batch, 0))
