"""The peer of the filter: libpcap's interpreter, called by address from machine code, so that no Python is in between.

``python -m bench.libpcap CAPTURE < RULES``: one rule a line; prints one JSON line: compile_s, ns a packet. A process, for it may not end.
"""

from __future__ import annotations

import ctypes
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from bench.workload import frames_of

Ints = NDArray[np.int64]


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libpcap.so.0.8")
    except OSError as error:
        raise RuntimeError(f"libpcap is needed to compare with: {error}") from None
    lib.pcap_open_dead.restype = ctypes.c_void_p
    lib.pcap_geterr.restype = ctypes.c_char_p
    return lib


@functools.cache
def _runner() -> Callable[[int, Ints, Ints], int]:
    signature = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint)
    bpf_filter = signature(("bpf_filter", _library()))

    @numba.njit
    def run(code, addresses, lengths):  # type: ignore[no-untyped-def]
        n = 0
        for i in range(len(addresses)):
            n += bpf_filter(code, addresses[i], lengths[i], lengths[i]) != 0
        return n

    runner: Callable[[int, Ints, Ints], int] = run
    return runner


class Program:
    """Rules joined by `or`; `optimize` as tcpdump does, unless told otherwise. RuntimeError: libpcap is not there or does not take them."""

    def __init__(self, texts: Sequence[str], *, optimize: bool = True) -> None:
        self.optimized = optimize
        lib, program = _library(), ctypes.create_string_buffer(16)
        text = " or ".join(f"({text})" for text in texts).encode()
        dead = ctypes.c_void_p(lib.pcap_open_dead(1, 262_144))
        before = time.perf_counter()
        if lib.pcap_compile(dead, program, text, int(optimize), 0xFFFFFFFF):
            raise RuntimeError(f"libpcap does not compile the rules: {lib.pcap_geterr(dead).decode(errors='replace')}")
        self.compile_s = time.perf_counter() - before
        self.n_instructions = int.from_bytes(program.raw[:4], sys.byteorder)
        self._code = int.from_bytes(program.raw[8:16], sys.byteorder)
        self.timed(np.zeros(0, np.int64), np.zeros(0, np.int64))  # compiles the caller

    def timed(self, addresses: Ints, lengths: Ints) -> tuple[int, int]:
        """(ns it took, how many it selected) of the packets that lie there."""
        run = _runner()
        start = time.perf_counter_ns()
        selected = run(self._code, addresses, lengths)
        return time.perf_counter_ns() - start, int(selected)


def lay_out(packets: Sequence[bytes]) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """(the bytes, which have to be kept, address and length of each packet)."""
    data = np.frombuffer(b"".join(packets), np.uint8)
    lengths = np.array([len(packet) for packet in packets])
    return data, int(data.ctypes.data) + np.cumsum(lengths) - lengths, lengths


if __name__ == "__main__":
    program = Program(sys.stdin.read().splitlines())
    _data, addresses, lengths = lay_out(list(frames_of(Path(sys.argv[1]))))
    spent = min(program.timed(addresses, lengths)[0] for _ in range(3))
    print(json.dumps({"compile_s": program.compile_s, "ns": spent / len(lengths), "instructions": program.n_instructions}))
