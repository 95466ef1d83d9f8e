"""What both processes see of the pipeline that they belong to: its configuration, and where their counts go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from broker.core import log
from broker.core.errors import PipelineError
from broker.core.flow_layout import EXPORT
from broker.core.flow_model import Store
from broker.core.flow_ring import COMPANIONS, open_beats, open_exports
from broker.core.generations import read_generation
from broker.core.model import Config
from broker.core.shm import Pipeline

STORE_ROW = "store"
"""Of `exports`. The exporter writes dropped_*, refusing and, while it lives, waiting_records, the store process all others: `sequence` is
how many records have expired, `sequence_b` how many bytes the store holds."""


def spool_directory(store: Store) -> Path:
    return Path(store.directory) / "spool"


class Following:
    """The configuration in force. PipelineError when there is none to begin with."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._number = self._wanted
        self._refused = 0
        self.config: Config = read_generation(pipeline.directory, self._number, rules=False).config

    @property
    def _wanted(self) -> int:
        return int(self._pipeline.header[0]["generation"])

    def changed(self) -> bool:
        """`config` is another one since the last call. One that cannot be read changes nothing and is told once."""
        number = self._wanted
        if number in (self._number, self._refused):
            return False
        try:
            self.config = read_generation(self._pipeline.directory, number, rules=False).config
        except PipelineError as error:
            if self._wanted == number:  # else it was removed because there is a later one
                self._refused = number
                log.get().error("generation_refused", generation=number, reason=str(error))
            return False
        self._number = number
        return True


class Beat:
    """Says that process `what` (of COMPANIONS) goes on. When it does not, it is killed; how soon says `supervisor.companions`."""

    def __init__(self, pipeline: Pipeline, what: str) -> None:
        self._beats, self._at = open_beats(pipeline.directory), COMPANIONS.index(what)

    def __call__(self) -> None:
        self._beats[self._at] = time.monotonic_ns()


class ExportRows:
    """Rows of `exports` by name."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._rows = open_exports(pipeline.directory)

    def of(self, name: str) -> Any:
        """EXPORT row; one that nobody sees when there is none of that name."""
        found = np.flatnonzero(self._rows["name"] == name.encode())
        return self._rows[found[0]] if len(found) else np.zeros(1, EXPORT)[0]
