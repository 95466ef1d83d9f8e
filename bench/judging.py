"""The filter stage without a ring: a policy, blocks on the heap, and what judging them takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from broker.config.policy import compile_policy
from broker.core.batch import Batch, heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Config, Lane
from broker.core.stage import Context, Generation
from stages.filter.stage import Filter

BLOCK_PACKETS = 512
_SLOT_BYTES = 1600  # room for the largest frame


class Policy:
    """A configuration compiled, and how long that took."""

    def __init__(self, config: Config) -> None:
        before = time.perf_counter()
        image = np.frombuffer(compile_policy(config), np.uint8)
        self.compile_s = time.perf_counter() - before
        self.image_bytes = len(image)
        self.generation = Generation(1, config, image, int(image.ctypes.data))


class Judging:
    """A filter stage with a policy loaded, for blocks of at most `n_packets`."""

    def __init__(self, policy: Policy, n_packets: int = BLOCK_PACKETS, *, memo: bool = True) -> None:
        self._policy, self._seq = policy, 0
        self._counters = np.zeros(N_COUNTERS, np.int64)
        at = int(self._counters.ctypes.data)
        self._stage = Filter(memo=memo)
        self._stage.open(Context(Path(), Lane(0, ()), 0, 1, _geometry(n_packets), 1, self._counters, at, self._counters, at, 0, 0, 0))
        self.forget()

    def forget(self) -> None:
        """As after a reload: nothing is remembered of what has been."""
        self._stage.load(self._policy.generation)

    def ns(self, batch: Batch) -> int:
        touch(batch)
        batch.seq, self._seq = self._seq, self._seq + 1
        start = time.perf_counter_ns()
        self._stage.step(batch)
        return time.perf_counter_ns() - start


def touch(batch: Batch) -> None:
    """Into the cache: capture has just written it, and a ring is smaller than all the blocks of a bench."""
    batch.data[: int(batch.block["data_used"][0]) : 64].max(initial=0)
    batch.packets["caplen"].max()
    batch.verdicts["verdict"].max()


def _geometry(n_packets: int) -> Geometry:
    return Geometry(max_packets=n_packets, max_frames=1, header_bytes=64, data_bytes=n_packets * _SLOT_BYTES)


def empty_block(n_packets: int = BLOCK_PACKETS) -> Batch:
    return heap_batch(_geometry(n_packets))


def blocks(packets: Sequence[bytes], n_packets: int = BLOCK_PACKETS) -> list[Batch]:
    """The packets, so many a block."""
    found = []
    for at in range(0, len(packets), n_packets):
        batch, used = empty_block(n_packets), 0
        for i, data in enumerate(packets[at : at + n_packets]):
            batch.data[used : used + len(data)] = np.frombuffer(data, np.uint8)
            batch.packets[i] = (0, used, len(data), len(data), 0, 0)
            used += len(data)
        batch.block["n_packets"], batch.block["data_used"] = len(packets[at : at + n_packets]), used
        found.append(batch)
    return found
