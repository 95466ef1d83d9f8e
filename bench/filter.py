"""What judging a packet costs: parse, class, look up; hot blocks of IMIX. libpcap's interpreter, called directly, is the peer.

`program_ns`: the same without the memo, which is what a packet of a new kind costs. The rules are nets and ports, spread over eight maps.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import statistics
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numba
import numpy as np

from bench import programs, workload
from bench.report import Row
from broker.config.policy import compile_policy
from broker.core.batch import heap_batch
from broker.core.layout import Geometry
from broker.core.metrics import N_COUNTERS
from broker.core.model import Config, Input, Lane, Map, Rule, Tool
from broker.core.stage import Context, Generation
from stages.filter.stage import Filter

N_MAPS = 8
BLOCK_PACKETS = 512


def measure(quick: bool) -> Iterator[Row]:
    n_packets, seconds, counts = (1024, 0.02, (1, 100)) if quick else (16_384, 1.5, (1, 10, 100, 1000))
    with programs.scratch() as directory:
        workload.write_capture(directory / "in.pcap", "imix", n_packets)
        packets = list(_frames(directory / "in.pcap"))
    bench = _Bench(packets)
    for n in counts:
        texts = _rules(n)
        times, compile_s = bench.run(_config(texts), seconds)
        program_times, _ = bench.run(_config(texts), seconds / 4, memo=False)
        ours, peer = statistics.median(times), _libpcap_ns(texts, packets, seconds / 2)
        detail = {
            "min": round(min(times), 1), "max": round(max(times), 1), "libpcap_ns": round(peer, 1),
            "program_ns": round(statistics.median(program_times), 1), "compile_s": round(compile_s, 4),
        }  # fmt: skip
        yield Row("filter", f"parse and match, {n} rules, imix", ours, "ns/packet", {"libpcap": peer / ours}, detail)


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as capture:
        at = 24
        while at < len(capture):
            (caplen,) = struct.unpack_from("<I", capture, at + 8)
            yield capture[at + 16 : at + 16 + caplen]
            at += 16 + caplen


def _rules(n: int) -> list[str]:
    chosen = random.Random(n)
    found = []
    for _ in range(n):
        port = workload.server_port(chosen.randrange(workload.N_SERVERS))
        net = chosen.choice((f"10.{chosen.randrange(2)}.{chosen.randrange(256)}.0/24", f"10.200.{chosen.randrange(2)}.0/24"))
        forms = (
            f"src net {net} and tcp dst port {port}",
            f"dst net {net} and port {port}",
            f"net {net} and tcp portrange {port}-{port + 50}",
        )
        found.append(chosen.choice(forms))
    return found


def _config(texts: Sequence[str]) -> Config:
    n_maps = min(N_MAPS, len(texts))
    tools = tuple(Tool(f"t{i}", i, file="-") for i in range(n_maps))
    maps = tuple(
        Map(f"m{i}", tuple(Rule("pass", text) for text in texts[i::n_maps]), (f"t{i}",), undetermined="libpcap", slot=i)
        for i in range(n_maps)
    )
    return Config("bench", (Input("in", "pcap", 0),), tools, maps)


class _Bench:
    """Blocks on the heap, filled once."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        geometry = Geometry(max_packets=BLOCK_PACKETS, max_frames=1, header_bytes=64, data_bytes=BLOCK_PACKETS * 1600)
        self.n_packets = len(packets)
        self.batches = []
        for at in range(0, len(packets), BLOCK_PACKETS):
            batch = heap_batch(geometry)
            used = 0
            for i, data in enumerate(packets[at : at + BLOCK_PACKETS]):
                batch.data[used : used + len(data)] = np.frombuffer(data, np.uint8)
                batch.packets[i] = (0, used, len(data), len(data), 0, 0)
                used += len(data)
            batch.block["n_packets"] = len(packets[at : at + BLOCK_PACKETS])
            self.batches.append(batch)
        self.counters = np.zeros(N_COUNTERS, np.int64)
        here = int(self.counters.ctypes.data)
        self.context = Context(Path(), Lane(0, ()), 0, 1, geometry, 1, self.counters, here, self.counters, here, 0, 0, 0)

    def run(self, config: Config, seconds: float, *, memo: bool = True) -> tuple[list[float], float]:
        """ns per packet, each of a block that the stage has just had; and what compiling the policy took."""
        before = time.perf_counter()
        image = np.frombuffer(compile_policy(config), np.uint8)
        compile_s = time.perf_counter() - before
        stage = Filter(memo=memo)
        stage.open(self.context)
        stage.load(Generation(1, config, image, int(image.ctypes.data)))
        for batch in self.batches:
            stage.step(batch)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < 4 or time.perf_counter() < end:
            spent = 0
            for batch in self.batches:
                batch.data[::64].max()  # into the cache, where capture has it too
                batch.packets["caplen"].max()
                start = time.perf_counter_ns()
                stage.step(batch)
                spent += time.perf_counter_ns() - start
            times.append(spent / self.n_packets)
        stage.close()
        return times, compile_s


def _libpcap_ns(texts: Sequence[str], packets: Sequence[bytes], seconds: float) -> float:
    """ns per packet of libpcap's interpreter over the rules joined by `or`, called by address from machine code: no Python in between."""
    try:
        lib = ctypes.CDLL("libpcap.so.0.8")
    except OSError as error:
        raise RuntimeError(f"libpcap is needed to compare with: {error}") from None
    lib.pcap_open_dead.restype = ctypes.c_void_p
    program = ctypes.create_string_buffer(16)
    text = " or ".join(f"({text})" for text in texts).encode()
    if lib.pcap_compile(ctypes.c_void_p(lib.pcap_open_dead(1, 262_144)), program, text, 1, 0xFFFFFFFF):
        raise RuntimeError("libpcap does not compile the rules")
    code = int.from_bytes(program.raw[8:16], sys.byteorder)
    bpf_filter = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)(("bpf_filter", lib))

    @numba.njit
    def run(addresses, lengths):  # type: ignore[no-untyped-def]
        n = 0
        for i in range(len(addresses)):
            n += bpf_filter(code, addresses[i], lengths[i], lengths[i]) != 0
        return n

    data = np.frombuffer(b"".join(packets), np.uint8)
    lengths = np.array([len(packet) for packet in packets])
    addresses = int(data.ctypes.data) + np.cumsum(lengths) - lengths
    run(addresses[:1], lengths[:1])
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        spent = 0
        for at in range(0, len(packets), BLOCK_PACKETS):
            block = slice(at, at + BLOCK_PACKETS)
            data[int(addresses[at]) - int(addresses[0]) :][: BLOCK_PACKETS * 360 : 64].max()  # into the cache, as for us
            start = time.perf_counter_ns()
            run(addresses[block], lengths[block])
            spent += time.perf_counter_ns() - start
        times.append(spent / len(packets))
    return statistics.median(times)
