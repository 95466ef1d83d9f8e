"""A disk of the size that a test wants, which the test fills."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipelines import name, shm

__all__ = ("name", "shm")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A directory that has so many bytes. Needs root."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    with contextlib.ExitStack() as mounted:

        def make(n_bytes: int) -> Path:
            place = tmp_path / f"disk-{n_bytes}"
            place.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tapmesh-test", place], check=True)
            mounted.callback(subprocess.run, ["umount", "-l", place], check=True)
            return place

        yield make


@contextlib.contextmanager
def filled(disk: Path, *, free_bytes: int = 0) -> Iterator[None]:
    """Until it ends; to the last page but for `free_bytes`."""
    filler = disk / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        if free_bytes:
            os.truncate(filler, filler.stat().st_size - free_bytes)
        yield
    finally:
        filler.unlink()
