"""Fixtures: a small pipeline in a directory that stands for /dev/shm. A conftest.py takes them by import."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core.layout import Geometry
from broker.core.shm import Pipeline, create_pipeline, remove_pipeline

_numbers = itertools.count()


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /dev/shm."""
    monkeypatch.setenv("TAPMESH_SHM", str(tmp_path))
    return tmp_path


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
