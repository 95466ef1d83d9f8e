"""``tapmesh replay --only STAGE``: one stage alone, in one process with those before it; the data path does it, this sets it up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from broker.core.generations import write_generation
from broker.core.model import Config


def run_only(config: Config, image: bytes, stage: str, dump: str) -> int:
    """Returns the exit status of the process that does it."""
    with tempfile.TemporaryDirectory(prefix="tapmesh-only-") as scratch:
        directory = Path(scratch)
        write_generation(directory, 1, config, image)
        target = dump if dump == "-" else str(Path(dump).absolute())
        command = [sys.executable, "-I", "-m", "stages", "only", stage, "--directory", scratch, "--dump", target]
        status = subprocess.run(command, check=False).returncode
        report = directory / "source-error"
        if report.exists():
            print(report.read_text(errors="replace"), end="", file=sys.stderr)
            return status or 1
    return status
