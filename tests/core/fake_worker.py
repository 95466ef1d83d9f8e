"""Run as a process by test_runner.py: one worker of a pipeline whose stages are a few lines of Python.

The source makes blocks of 3 packets that carry their number; every stage checks it; send writes the number to a file, in one write.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar

import numpy as np

from broker.core import layout, log
from broker.core.batch import Batch
from broker.core.metrics import index
from broker.core.model import Input, Lane
from broker.core.runner import Runner
from broker.core.shm import open_pipeline
from broker.core.stage import Context, Generation
from stages import atomics

PACKETS = 3
AT, CAPTURED = index("capture", "source_at"), index("capture", "captured_packets")
COUNT = {
    "filter": index("filter", "judged_packets"),
    "encapsulate": index("encapsulate", "framed_frames"),
    "send": index("send", "delivered_frames"),
}
SPIN = 2000


class Fake:
    KIND: ClassVar[str]
    wait_fd = -1
    due_ns = 0

    def __init__(self, total: int, log_path: str) -> None:
        self.total, self.stopped = total, False
        self.fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def open(self, context: Context) -> None:
        self.context = context

    def load(self, generation: Generation) -> None:
        self.generation = generation.number

    def step(self, batch: Batch) -> int:
        for _ in range(SPIN):  # something to be killed in
            pass
        counters = self.context.counters
        stamp = batch.data[:8].view(np.int64)
        if self.KIND == "capture":
            if self.finished:
                return 0
            stamp[0] = counters[AT]
            batch.block["n_packets"] = PACKETS
            counters[AT] += 1
            counters[CAPTURED] += PACKETS
            return PACKETS
        assert stamp[0] == batch.seq, (stamp[0], batch.seq)
        assert batch.block["generation"][0] == self.generation
        counters[COUNT[self.KIND]] += PACKETS
        if self.KIND == "encapsulate":
            batch.block["n_frames"] = PACKETS
        if self.KIND == "send":
            os.write(self.fd, f"{batch.seq} {self.generation}\n".encode())
        return PACKETS

    @property
    def finished(self) -> bool:
        return self.stopped or int(self.context.counters[AT]) >= self.total

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        os.close(self.fd)


def main(name: str, kind: str, worker: str, total: str, log_path: str) -> None:
    log.configure()
    Fake.KIND = kind
    lane = Lane(0, (Input("in", "pcap"),))
    assert kind in layout.PATH
    Runner(open_pipeline(name), lane, Fake(int(total), log_path), int(worker), atomics).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
