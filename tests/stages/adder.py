"""Run as a process by test_memory.py: adds to two shared cells in two ways while its twin does the same."""

from __future__ import annotations

import mmap
import os
import sys

import numpy as np

from tests.stages.own import kernel, memory


@kernel
def add_many(at: int, n: int) -> None:
    for _ in range(n):
        memory.fetch_add(at, 1)
        while True:
            old = memory.load_acquire(at + 8)
            if memory.compare_swap(at + 8, old, old + 2) == old:
                break


def main(path: str, me: int) -> None:
    cells = np.frombuffer(mmap.mmap(os.open(path, os.O_RDWR), 4096), np.int64)
    at = int(cells.ctypes.data) + 64
    add_many(at, 0)  # compiled before the race starts
    cells[me] = 1
    while not (cells[0] and cells[1]):
        pass
    add_many(at, 300_000)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
