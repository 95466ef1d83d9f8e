"""A pipeline's name, and a disk that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipelines import name, shm

__all__ = ("name", "shm")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """64 KiB. Needs root."""
    place = tmp_path / "tiny"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tapmesh-test", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)
