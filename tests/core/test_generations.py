"""Numbered configurations: written once, read by number, forgotten from below."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.core.errors import PipelineError
from broker.core.generations import read_generation, remove_generations_before, write_generation
from broker.core.model import Config


def test_a_generation_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    """A block whose stamp is damaged asks for one; the worker says so and is not started again and again."""
    for number in (1, 2):
        write_generation(tmp_path, number, Config("t", (), (), ()), b"image")
    remove_generations_before(tmp_path, 2)
    for number in (1, -1, 1 << 62):
        with pytest.raises(PipelineError, match=f"generation-{number}: No such file"):
            read_generation(tmp_path, number)
    assert read_generation(tmp_path, 2).image.tobytes() == b"image"
