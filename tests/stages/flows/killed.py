"""Run by test_kill.py with NUMBA_DISABLE_JIT=1: a flows worker, killed before stores to shared memory, again and again.

Blocks come, time passes between them, the exporter takes what is published; the worker that follows a dead one begins with the block that
was not published. All records together must be the same as if nobody had died. Prints how many places there were.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from broker.core.flow_model import Flows as Options
from stages import memory
from stages.flows import index, lifecycle, meter, names, sweep, table, tcp
from stages.jit import PLAIN
from tests import packets as p
from tests.stages.flows.metering import Meter
from tests.stages.flows.test_meaning import A, B, connection, dns

MODULES = (index, lifecycle, meter, names, sweep, table, tcp)
STORES = ("store8", "store16", "store32", "store64", "store_release", "add64", "copy")
EVERY = 20  # of the places; which, another each time


class KilledError(Exception):
    pass


class Stores:
    """Every store goes through here; at the chosen one the worker is no more."""

    def __init__(self) -> None:
        self.kill_at, self.n = -1, 0
        for module in MODULES:
            for name in STORES:
                if hasattr(module, name):
                    setattr(module, name, self._counted(getattr(memory, name)))

    def _counted(self, store: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: int) -> None:
            self.n += 1
            if self.n == self.kill_at:
                raise KilledError
            store(*arguments)

        return counted


def blocks() -> list[list[tuple[bytes, float]]]:
    """Flows that begin, go on, are closed, are silent and are crowded out, with names."""
    first = [(p.udp_frame(A, port, B, 53, dns(f"n{port}.example")), port * 0.01) for port in range(1, 5)]
    second = [(packet, at + 1.0) for packet, at in connection()]  # type: ignore[misc]
    third = [(p.udp_frame(A, port, B, 9), 20.0 + port * 0.01) for port in range(1, 12)]
    fourth = [(p.udp_frame(A, port, B, 9), 24.0) for port in (1, 2, 3)] + [(p.udp_frame(A, 1, B, 53, dns("again.example")), 90.0)]
    more = [(p.udp_frame(B, 9, A, port), 21.0) for port in (9, 10, 11)]
    return [first, second, third, more, fourth]


class Worker:
    """A stage, and what would be committed of it: the counters go with the cursor."""

    def __init__(self, directory: Path) -> None:
        self.metering = Meter(directory, Options(active_s=3), sizes=(8, 3, 64))
        self.committed = self.metering.around.counters.copy()
        self.taken: list[np.ndarray] = []

    def die(self) -> None:
        self.metering.around.counters[:] = self.committed
        memory.forbid_all()
        self.metering.open()

    def again(self, do: Callable[[], Any]) -> Any:
        while True:
            try:
                return do()
            except KilledError:
                self.die()

    def block(self, packets: list[tuple[bytes, float]]) -> None:
        seq = self.metering.seq
        self.again(lambda: (setattr(self.metering, "seq", seq), self.metering.block(packets)))
        self.committed[:] = self.metering.around.counters
        self.again(self.take)

    def take(self) -> None:
        rows = self.metering.take()
        self.taken.append(rows)

    def end(self) -> list[bytes]:
        while self.again(lambda: self.metering.stage.flush()):
            self.again(self.take)
        self.again(self.take)
        rows = np.concatenate(self.taken)
        assert rows["number"].tolist() == list(range(len(rows)))
        assert int(rows["packets"].sum()) == self.metering.count("metered_packets")
        rows["number"] = 0  # records of a block may be written in another order
        return sorted(row.tobytes() for row in rows)


def play(directory: Path, stores: Stores, *, killed: random.Random | None) -> tuple[list[bytes], int]:
    """The records, in order, and how many stores there were."""
    directory.mkdir()
    stores.n, stores.kill_at = 0, -1
    worker = Worker(directory)
    for packets in blocks():
        if killed:
            stores.kill_at = stores.n + killed.randrange(1, 400)
        worker.block(packets)
    if killed:
        stores.kill_at = stores.n + killed.randrange(1, 100)
    records = worker.end()
    memory.forbid_all()
    return records, stores.n


def main() -> None:
    stores = Stores()
    with tempfile.TemporaryDirectory() as scratch:
        whole, places = play(Path(scratch) / "whole", stores, killed=None)
        for n in range(places // EVERY):
            records, _ = play(Path(scratch) / f"killed-{n}", stores, killed=random.Random(n))
            assert records == whole, n
    json.dump({"places": places, "records": len(whole)}, sys.stdout)


if __name__ == "__main__":
    assert PLAIN
    main()
