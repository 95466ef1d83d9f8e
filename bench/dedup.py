"""What looking for duplicates costs: digest and table, hot blocks of IMIX; every packet is new, and every second one was seen before."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bench import programs, workload
from bench.judging import BLOCK_PACKETS, blocks, touch
from bench.report import Row
from stages.encapsulate.dedup import DIGEST, IGNORE_TAGS, IGNORE_TOS, IGNORE_TTL, Duplicates, find_duplicates

if TYPE_CHECKING:
    from broker.core.batch import Batch

_WINDOW_PACKETS, _WINDOW_NS = 16_384, 1_000_000_000


def measure(quick: bool) -> Iterator[Row]:
    n_packets, seconds = (1024, 0.02) if quick else (16_384, 1.5)
    for size in ("imix", "64", "1514"):
        with programs.scratch() as directory:
            workload.write_capture(directory / "in.pcap", size, n_packets)
            batches = blocks(list(workload.frames_of(directory / "in.pcap")))
        for i, batch in enumerate(batches):  # each packet another one, as on a wire
            _number(batch, i << 32)
        for twice in (False, True):
            times, n_bytes, share = _run(batches, seconds, twice=twice)
            detail = {"min": round(min(times), 1), "table_bytes": n_bytes, "duplicates": round(share, 3)}
            case = f"digest and table, {size}, {'every second one a duplicate' if twice else 'all new'}"
            yield Row("dedup", case, statistics.median(times), "ns/packet", {}, detail)


def _number(batch: Batch, first: int) -> None:
    n = int(batch.block["n_packets"][0])
    rows = batch.packets[:n]
    for i, (at, caplen) in enumerate(zip(rows["data_at"].tolist(), rows["caplen"].tolist(), strict=True)):
        batch.data[at + caplen - 8 : at + caplen] = np.array([first + i], "<i8").view(np.uint8)


def _run(batches: list[Batch], seconds: float, *, twice: bool) -> tuple[list[float], int, float]:
    """ns per packet of each round over the blocks after one that is not counted, bytes of the table, share of duplicates."""
    times: list[float] = []
    marks, digests = np.zeros(BLOCK_PACKETS, np.int64), np.zeros(BLOCK_PACKETS, DIGEST)
    marks_at, digests_at = int(marks.ctypes.data), int(digests.ctypes.data)
    end = time.perf_counter() + seconds
    found = seen = 0
    while len(times) < 4 or time.perf_counter() < end:
        table = Duplicates(_WINDOW_PACKETS, _WINDOW_NS, IGNORE_TAGS | IGNORE_TTL | IGNORE_TOS)
        spent = first = found = seen = 0
        for batch in batches:
            n = int(batch.block["n_packets"][0])
            for _ in range(2 if twice else 1):
                touch(batch)
                marks[:] = 1
                start = time.perf_counter_ns()
                find_duplicates(table.at, digests_at, batch.packets_at, n, batch.data_at, batch.data_bytes, first, marks_at)
                spent += time.perf_counter_ns() - start
                found += int(marks[:n].sum())
                first += n
        seen = first
        times.append(spent / seen)
    return times[1:], table.memory.nbytes, found / seen
