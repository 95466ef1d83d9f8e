"""A Batch: the numpy views and the addresses of one block. Made once a slot and kept; never remade on the path."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core import layout
from broker.core.layout import Geometry

Bytes = NDArray[np.uint8]

BATCH = np.dtype(
    [
        (name, "<i8")
        for name in (
            "seq", "block_at", "packets_at", "verdicts_at", "frames_at", "headers_at", "data_at",
            "max_packets", "max_frames", "header_bytes", "data_bytes", "shaped_from", "window_bytes",
        )
    ]
)  # fmt: skip
"""A batch as kernels see it, private memory: one address instead of a dozen arguments, each of which costs a call 0.1 us."""


class Batch:
    """Views over the memory of one block.

    | name | dtype[shape] | meaning |
    |---|---|---|
    | block | BLOCK[1] | header; kernels use `block_at` |
    | head | memoryview of int64 | the same as plain integers, by `layout.words(BLOCK)`: ten times as fast as a field of `block` |
    | packets | PACKET[max_packets] | valid below `block["n_packets"][0]` |
    | verdicts | VERDICT[max_packets] | same |
    | frames | FRAME[max_frames] | valid below `block["n_frames"][0]` |
    | headers | uint8[header_bytes] | outer headers |
    | data | uint8[data_bytes] | packet bytes and what capture leaves between them; SLACK more follow |
    | windows | uint8[window_bytes] | what frames point into: data, and from `shaped_from` on what encapsulate makes of packets |
    | *_at | int | address of each, for kernels |
    | at | int | address of all of that: BATCH |
    """

    __slots__ = (
        "_place", "_words", "at", "block", "block_at", "data", "data_at", "data_bytes", "frames", "frames_at", "head", "header_bytes",
        "headers", "headers_at", "max_frames", "max_packets", "memory", "packets", "packets_at", "shaped_from", "verdicts",
        "verdicts_at", "window_bytes", "windows",
    )  # fmt: skip

    def __init__(self, memory: Bytes, geometry: Geometry) -> None:
        o = layout.block_offsets(geometry)
        self.memory = memory
        self.max_packets, self.max_frames = geometry.max_packets, geometry.max_frames
        self.header_bytes, self.data_bytes = geometry.header_bytes, geometry.data_bytes
        self.shaped_from = o.shaped - o.data
        self.window_bytes = self.shaped_from + geometry.shaped_bytes if geometry.shaped_bytes else geometry.data_bytes
        base = int(memory.ctypes.data)
        self.block_at = base
        self.packets_at, self.verdicts_at, self.frames_at = base + o.packets, base + o.verdicts, base + o.frames
        self.headers_at, self.data_at = base + o.headers, base + o.data

        self._place = np.zeros(1, BATCH)
        for name in BATCH.names[1:] if BATCH.names else ():
            self._place[name] = getattr(self, name)
        self.at = int(self._place.ctypes.data)
        self._words = self._place.view(np.int64).data

        def rows(at: int, n: int, dtype: np.dtype[np.void]) -> NDArray[np.void]:
            return memory[at : at + n * dtype.itemsize].view(dtype)

        self.block = rows(0, 1, layout.BLOCK)
        self.head = self.block.view(np.int64).data
        self.packets = rows(o.packets, geometry.max_packets, layout.PACKET)
        self.verdicts = rows(o.verdicts, geometry.max_packets, layout.VERDICT)
        self.frames = rows(o.frames, geometry.max_frames, layout.FRAME)
        self.headers = memory[o.headers : o.headers + geometry.header_bytes]
        self.data = memory[o.data : o.data + geometry.data_bytes]
        self.windows = memory[o.data : o.data + self.window_bytes]

    @property
    def seq(self) -> int:
        """Of the batch in it now; set by the ring before each step."""
        return self._words[0]

    @seq.setter
    def seq(self, value: int) -> None:
        self._words[0] = value


def heap_batch(geometry: Geometry | None = None) -> Batch:
    """A batch on the heap, zeroed and page-aligned: a stage tested without a ring."""
    geometry = geometry or Geometry()
    size = layout.block_offsets(geometry).block_bytes
    raw = np.zeros(size + layout.PAGE, np.uint8)
    skip = -int(raw.ctypes.data) % layout.PAGE
    return Batch(raw[skip : skip + size], geometry)
