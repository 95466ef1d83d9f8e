"""The one shape of a stage. `core/runner.py` holds the only loop that drives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.core.batch import Batch
from broker.core.layout import TOOLS, Geometry
from broker.core.model import Config, Lane

AGAIN = -1
"""What `step` returns when it cannot do this block yet and has changed nothing; the runner idles and asks again."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One numbered configuration as the stages see it; the files of it are immutable."""

    number: int
    config: Config
    image: NDArray[np.uint8]  # the compiled policy, mapped read-only
    image_at: int  # its address


@dataclass(frozen=True, slots=True)
class Context:
    """Where a worker finds itself. Addresses are valid as long as the worker lives."""

    directory: Path  # of the pipeline, /dev/shm/tapmesh-NAME; a scratch directory in tests
    lane: Lane
    worker: int  # of its kind in this lane
    n_workers: int
    geometry: Geometry
    epoch: int  # starts of this worker, from 1; above 1 it resumes after a crash or a stop
    counters: NDArray[np.int64]  # [N_COUNTERS], private; committed with the cursor when a block is published
    counters_at: int
    live: NDArray[np.int64]  # [N_COUNTERS], shared; `live` counters only
    live_at: int
    tool_sequence_at: int  # int64[TOOLS], shared by all lanes; fetch_add only
    tickets_at: int  # TICKET[2 * n_blocks] of this lane
    progress_at: int  # int64 in the worker's row, see layout.WORKER
    lanes_total: int = 1
    # 0..1, of the ring: blocks that are not sent yet; for who reads beside the path, those that wait for it
    ring_fill: Callable[[], float] = lambda: 0.0
    cursor: int = 0  # the block that it does next
    tool_state: NDArray[np.int64] = field(default_factory=lambda: np.zeros(TOOLS, np.int64))  # shared; TOOL_*


class Stage(Protocol):
    """A step of the data path.

    `open` is called once in the worker's process; `load` before the first block of a generation (numbers only grow, so the stage keeps
    one set of tables); `step` for each block. `step` returns how many packets it looked at, or AGAIN. For capture the batch is empty
    and 0 means that nothing has come: nothing is published. Traffic never raises; what leaves `step` as an exception ends the process.
    """

    KIND: ClassVar[str]

    def open(self, context: Context) -> None: ...

    def load(self, generation: Generation) -> None: ...

    def step(self, batch: Batch) -> int: ...

    def close(self) -> None: ...


class Reader(Stage, Protocol):
    """What reads beside the path, and has something to do without a block."""

    def tick(self) -> None:
        """No block is there. Called before each sleep, at least ten times a second."""
        ...

    def flush(self) -> bool:
        """Called once everything is done that was there to do, before the end: True, call again, there is more."""
        ...


class Source(Stage, Protocol):
    """Capture has three more. Its position survives a crash in the counters `source_*`, committed with each block."""

    @property
    def finished(self) -> bool:
        """Nothing more will ever come."""
        ...

    @property
    def wait_fd(self) -> int:
        """Becomes readable when a packet comes; -1: none (a file, which is always ready or paced)."""
        ...

    @property
    def due_ns(self) -> int:
        """CLOCK_MONOTONIC time before which `step` will find nothing (paced replay); 0: unknown."""
        ...

    def stop(self) -> None:
        """Take nothing new from the outside. What is already in hand (the kernel's ring) is still given by `step` until it returns 0."""
        ...
