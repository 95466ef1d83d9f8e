"""What runs of equal length cost and give, blocks of 512 frames: ns to find them, and how long they are when the order within each flow is
kept, against blocks sorted by length, which keep none. Flows are the workload's own."""

from __future__ import annotations

import statistics
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import numpy as np

from bench import programs, workload
from bench.report import Row
from broker.core import layout
from stages.send import kernels
from stages.send.runs import MOST_BYTES, MOST_FRAMES, SOCKETS, Runs

BLOCK_FRAMES, OUTER_BYTES, SKIP = 512, 36, 28  # VXLAN over IPv4


def measure(quick: bool) -> Iterator[Row]:
    n_packets, n_turns = (2048, 2) if quick else (16_384, 20)
    for size in ("imix", "64", "1514"):
        with programs.scratch() as directory:
            workload.write_capture(directory / "in.pcap", size, n_packets)
            packets = list(workload.frames_of(directory / "in.pcap"))
        for n_sockets in (1, SOCKETS):
            yield _measure(size, packets, n_sockets, n_turns)


def _measure(size: str, packets: list[bytes], n_sockets: int, n_turns: int) -> Row:
    frames, rows = np.zeros(BLOCK_FRAMES, layout.FRAME), np.arange(BLOCK_FRAMES, dtype=np.uint32)
    job, fds, runs = np.zeros(1, kernels.JOB), np.zeros(SOCKETS, np.int64), Runs(BLOCK_FRAMES)
    job["n_rows"], job["skip"], job["frames_at"] = BLOCK_FRAMES, SKIP, frames.ctypes.data
    times, n_kept, n_sorted, n_blocks = [], 0, 0, len(packets) // BLOCK_FRAMES
    for block in range(n_blocks):
        of_block = packets[block * BLOCK_FRAMES : (block + 1) * BLOCK_FRAMES]
        frames["header_len"], frames["data_len"] = OUTER_BYTES, [len(packet) for packet in of_block]
        frames["share"] = [_flow(packet) for packet in of_block]
        for _ in range(n_turns):
            job["rows_at"] = rows.ctypes.data
            start = time.perf_counter_ns()
            runs.group(job, int(job.ctypes.data), int(fds.ctypes.data), n_sockets, MOST_BYTES)
            times.append((time.perf_counter_ns() - start) / BLOCK_FRAMES)
        n_kept += runs.runs["end"].tolist().index(BLOCK_FRAMES) + 1
        lengths = Counter((len(packet), _flow(packet) >> 11 & n_sockets - 1) for packet in of_block)
        n_sorted += sum(-(-n // min(MOST_FRAMES, MOST_BYTES // (length + 8))) for (length, _), n in lengths.items())
    frames_each = n_blocks * BLOCK_FRAMES / n_kept
    detail = {"min": round(min(times), 1), "frames_a_run": round(frames_each, 1), "sorted": round(n_blocks * BLOCK_FRAMES / n_sorted, 1)}
    ports = "one port" if n_sockets == 1 else f"{n_sockets} ports"
    return Row("runs", f"{size}, {ports}", statistics.median(times), "ns/frame", {"frames a run, sorted": n_sorted / n_kept}, detail)


def _flow(packet: bytes) -> int:
    """A hash of addresses and ports, as the filter's is: any will do."""
    at = 16 if packet[12:14] == b"\x81\x00" else 12
    ends = packet[at + 14 : at + 26] if packet[at : at + 2] == b"\x08\x00" else packet[at + 10 : at + 46]
    return zlib.crc32(ends) * 0x9E37_79B1 >> 7 & 0xFFFF_FFFF
