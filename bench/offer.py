"""``python -m bench.offer INTERFACE CAPTURE RATE N``: send N frames of a capture, round and round, at RATE packets per second.

A process of its own, for its CPU time: on a veth the receiving side's kernel work, up to the packet socket, is done by who sends. Frames
go in bursts of 32 by sendmmsg, so that Python is not what is measured. Prints one JSON line: sent, wall_s, cpu_s.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

from bench.workload import frames_of

BURST = 32
_LATE_S = 0.05  # later than that it goes on from now, instead of making up for it in one burst


class Vectors:
    """``mmsghdr[n]`` and ``iovec[n]`` over frames (bits/socket.h, bits/uio.h)."""

    def __init__(self, frames: list[bytes]) -> None:
        lengths = np.array([len(frame) for frame in frames], np.uint64)
        self._data = np.frombuffer(b"".join(frames), np.uint8)
        self._iovecs = np.zeros((len(frames), 2), np.uint64)
        self._iovecs[:, 0] = self._data.ctypes.data + np.cumsum(lengths) - lengths
        self._iovecs[:, 1] = lengths
        self._headers = np.zeros((len(frames), 8), np.uint64)
        self._headers[:, 2] = self._iovecs.ctypes.data + 16 * np.arange(len(frames), dtype=np.uint64)
        self._headers[:, 3] = 1
        self.at, self.stride = int(self._headers.ctypes.data), 64


def offer(interface: str, frames: list[bytes], rate: float, n: int) -> dict[str, float]:
    """OSError when a send is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    vectors = Vectors(frames)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((interface, 0))
        fd, sent, at = out.fileno(), 0, 0
        began, cpu_before = time.monotonic(), time.process_time()
        due = began
        while sent < n:
            now = time.monotonic()
            if due > now:
                time.sleep(due - now)
            elif now - due > _LATE_S:
                due = now
            want = min(BURST, len(frames) - at, n - sent)
            done = libc.sendmmsg(fd, ctypes.c_void_p(vectors.at + at * vectors.stride), want, 0)
            if done <= 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent, at, due = sent + done, (at + done) % len(frames), due + done / rate
        return {"sent": sent, "wall_s": time.monotonic() - began, "cpu_s": time.process_time() - cpu_before}


if __name__ == "__main__":
    print(json.dumps(offer(sys.argv[1], list(frames_of(Path(sys.argv[2]))), float(sys.argv[3]), int(sys.argv[4]))))
