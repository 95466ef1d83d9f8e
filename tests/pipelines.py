"""Fixtures: a small pipeline in a directory that stands for /dev/shm. A conftest.py takes them by import."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core.layout import Geometry
from broker.core.shm import Pipeline, create_pipeline, remove_pipeline

_numbers = itertools.count()


@pytest.fixture
def shm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that stands for /dev/shm. Its name is short: paths of sockets end after 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tapmesh-test-") as directory:
        monkeypatch.setenv("TAPMESH_SHM", directory)
        yield Path(directory)


@pytest.fixture
def name(shm: Path) -> Iterator[str]:
    chosen = f"t{os.getpid()}-{next(_numbers)}"
    yield chosen
    remove_pipeline(chosen)


@pytest.fixture
def geometry() -> Geometry:
    return Geometry(n_blocks=4, max_packets=16, max_frames=32, header_bytes=2048, data_bytes=4096)


@pytest.fixture
def pipeline(name: str, geometry: Geometry) -> Pipeline:
    return create_pipeline(name, [geometry])
