"""Numbered configurations on disk: what a block stamped N is handled by. Written once, read by every worker, never changed."""

from __future__ import annotations

import os
from pathlib import Path

from broker.core.errors import PipelineError
from broker.core.messages import read_file
from broker.core.model import Config
from broker.core.model_codec import from_bytes, to_bytes
from broker.core.shm import map_file
from broker.core.stage import Generation


def write_generation(directory: Path, number: int, config: Config, image: bytes) -> None:
    """Put both files there whole: a reader that knows the number finds all of it. OSError when there is no room."""
    for name, content in ((f"policy-{number}", image), (f"generation-{number}", to_bytes(config))):
        scratch = directory / f".{name}"
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            os.posix_fallocate(fd, 0, max(1, len(content)))
            file.write(content)
        scratch.rename(directory / name)


def forget_generation(directory: Path, number: int) -> None:
    """What was written of one that nobody has been told of, whole or not: its room is needed."""
    for part in ("policy", "rules", "generation"):
        (directory / f"{part}-{number}").unlink(missing_ok=True)
        (directory / f".{part}-{number}").unlink(missing_ok=True)


def read_generation(directory: Path, number: int, *, rules: bool = True) -> Generation:
    """PipelineError in words when it is not there; the image is mapped read-only and shared by all who read it. The path stands still
    while its workers read: they want no `rules`, for the image has them."""
    path = directory / f"generation-{number}"
    try:
        content = read_file(path)
    except FileNotFoundError as error:
        raise PipelineError(f"{path}: {error.strerror}") from None
    config = from_bytes(content, rules=rules)
    image = map_file(directory / f"policy-{number}", writable=False)
    return Generation(number, config, image, int(image.ctypes.data))


def remove_generations_before(directory: Path, number: int) -> None:
    """Forget what no block in any ring can still be stamped with."""
    for path in directory.glob("generation-*"):
        old = int(path.name.removeprefix("generation-"))
        if old < number:
            for part in ("policy", "rules", "generation"):  # the one that is looked for goes last
                (directory / f"{part}-{old}").unlink(missing_ok=True)
