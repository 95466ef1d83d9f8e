"""Run by test_hostile_packets.py, apart, because it may die: hostile packets through all stages, each between forbidden pages.

    python -m tests.endurance.hostile_packets WHAT SEED [BLOCKS STATE]

| what | prints |
|---|---|
| mutated | what does not hold of mutated frames (tests/stages/filter/mutations.py), some of them long; goes on from what STATE says |
| deep | the same of headers in headers, cut at every byte |
| sample | of a few packets writes what leaves into files named after the tools in the directory STATE, and all of them into frames.pcap |
| lie | the signals that end the process when the rows of a packet claim a byte more than it has |

A process that dies leaves the number of its block in STATE; `mutated SEED 1 STATE` does that block again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import log
from tests import packets as p
from tests.endurance import deep
from tests.endurance.chain import GEOMETRY, LONG_BYTES, N_LONG, PACKETS, Chain, config_of
from tests.endurance.memory import FencedBatch
from tests.netns import Namespace
from tests.stages.filter import mutations

_TAIL = (b"4111-1111-1111-1111 5500005555555559 378282246310005 " * 1400)[:LONG_BYTES]
_ENDS = (("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2"))
Block = tuple[list[bytes], Sequence[int], Sequence[int], Sequence[int]]
"""Frames, and of each the bytes on the wire, the input and the time."""
assert mutations.BLOCK == 2 * PACKETS


def mutated(seed: int, number: int) -> Iterator[Block]:
    """Two blocks of the mutations; the first few frames of each are made long."""
    both, chosen = mutations.block(seed, number), np.random.default_rng((seed, number, 7))
    for first in (0, PACKETS):
        part = slice(first, first + PACKETS)
        frames, wirelens = [both.bytes_of(i) for i in range(first, first + PACKETS)], both.wirelens[part].tolist()
        for i in range(N_LONG):
            frames[i] = _long(frames[i], i % 3, chosen)
            wirelens[i] = len(frames[i])
        yield frames, wirelens, both.inputs[part].tolist(), both.times_ns[part].tolist()


def _long(frame: bytes, kind: int, chosen: np.random.Generator) -> bytes:
    """With a tail; or, in its place, what a card would have cut into segments, right (1) or with a byte of its headers changed (2)."""
    length = int(chosen.choice((600, 1515, 3000, 9000, 65_535, 65_549, LONG_BYTES))) - int(chosen.integers(3))
    if kind:
        size = min(length, 65_535)
        ends = _ENDS[int(chosen.integers(2))]
        frame = p.tcp_frame(ends[0], 4000, ends[1], 443, _TAIL[: size - 100])
    if kind == 2:
        at = int(chosen.integers(12, 74))
        frame = frame[:at] + chosen.bytes(1) + frame[at + 1 :]
    return (frame + _TAIL)[:length] if kind == 0 else frame


def cut(seed: int) -> Iterator[Block]:
    """Every frame of `deep`, cut at every byte; `seed`: is that all there was on the wire?"""
    frames: list[bytes] = []
    wirelens: list[int] = []
    n = 0
    for whole in deep.every_kind(300):
        for length in range(len(whole) + 1):
            frames.append(whole[:length])
            wirelens.append(length if seed % 2 else len(whole))
            if len(frames) == PACKETS:
                yield frames, wirelens, [0] * PACKETS, range(n, n + PACKETS)
                frames, wirelens, n = [], [], n + PACKETS
    if frames:
        yield frames, wirelens, [0] * len(frames), range(n, n + len(frames))


class Run:
    """`sockets`: frames leave by sockets of a host that nobody else has; else into files that hold nothing."""

    def __init__(self, directory: Path, seed: int, *, sockets: bool, keep: bool = False) -> None:
        config = config_of(directory, seed, files=not sockets)
        for tool in config.tools:
            if tool.file and not keep:
                Path(tool.file).symlink_to("/dev/null")
        self.chain, self.wrong = Chain(config, directory), list[str]()
        self.memory = FencedBatch(GEOMETRY, n_long=N_LONG, long_bytes=LONG_BYTES)

    def block(self, block: Block, name: object) -> None:
        self.memory.put(*block, at_end=self.chain.seq % 4 != 3)
        self.wrong += [f"block {name}: {what}" for what in self.chain.step(self.memory.batch)]

    def said(self) -> dict[str, Any]:
        self.wrong += self.chain.end()
        return {
            "wrong": self.wrong,
            "packets": self.chain.packets,
            **{stage: self.chain.totals(stage) for stage in ("filter", "flows", "encapsulate", "send")},
        }


def run(what: str, seed: int, n_blocks: int, state: Path, directory: Path) -> dict[str, Any]:
    sockets = seed % 4 == 0 and os.geteuid() == 0
    if sockets:
        with contextlib.closing(Namespace()) as host, host.inside():
            return _run(what, seed, n_blocks, state, Run(directory, seed, sockets=True))
    return _run(what, seed, n_blocks, state, Run(directory, seed, sockets=False))


def _run(what: str, seed: int, n_blocks: int, state: Path, this: Run) -> dict[str, Any]:
    if what == "deep":
        for number, block in enumerate(cut(seed)):
            this.block(block, number)
        return this.said()
    begun = json.loads(state.read_text())["block"] if state.exists() else 0
    for number in range(begun, n_blocks):
        state.with_suffix(".new").write_text(json.dumps({"seed": seed, "block": number, "of": n_blocks}))
        state.with_suffix(".new").replace(state)
        for block in mutated(seed, number):
            this.block(block, number)
        if len(this.wrong) > 20:
            break
    state.unlink(missing_ok=True)
    return {"begun at": begun, **this.said()}


def sample(seed: int, directory: Path) -> dict[str, Any]:
    """The first packets of some blocks."""
    this, kept = Run(directory, seed, sockets=False, keep=True), list[bytes]()
    for number in range(5):
        frames, *rest = next(mutated(seed, number))
        this.block((frames[:400], *(list(values[:400]) for values in rest)), number)
        kept += frames[:400]
    (directory / "frames.pcap").write_bytes(p.pcap(kept))
    return this.said()


def lie() -> dict[str, int]:
    """What a stage does that looks at one byte more than there is."""
    with tempfile.TemporaryDirectory() as directory:
        this = Run(Path(directory), 1, sockets=False)
        whole = p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80, bytes(99))
        this.memory.put([whole] * PACKETS, [200] * PACKETS, [0] * PACKETS, range(PACKETS), at_end=True)
        ends = {}
        for more in (0, 1):
            this.memory.batch.packets["caplen"] = len(whole) + more
            child = os.fork()
            if child == 0:
                os._exit(len(this.chain.step(this.memory.batch)))
            ends[f"+{more}"] = -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return ends


def main(what: str, seed: int = 0, n_blocks: int = 0, state: str = "") -> dict[str, Any]:
    log.configure(level=logging.CRITICAL)
    if what == "lie":
        return lie()
    if what == "sample":
        return sample(seed, Path(state))
    with tempfile.TemporaryDirectory() as directory:
        return run(what, seed, n_blocks, Path(state), Path(directory))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    json.dump(main(sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:]), sys.stdout)
