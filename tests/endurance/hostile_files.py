"""Run by test_hostile_files.py, apart, under limits: damaged captures, read by the stage that reads captures.

    python -m tests.endurance.hostile_files SEED FIRST LAST SECONDS      files FIRST to LAST, or as many as fit into SECONDS of CPU time

Of each: it takes at most a second, raises nothing but what says file and offset, gives the packets before the damage, and counts as many
packets as it gives. Printed is what was not so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from broker.core import log
from broker.core.layout import Geometry
from stages.capture.errors import REPORT, SourceError
from tests.endurance import mutated_files
from tests.stages.capture.support import Worker, files

MOST_S = 1.0
MOST_MEMORY = 64 << 20
"""Beyond what the process takes before the first file."""
GEOMETRY = Geometry(max_packets=64, max_frames=1, header_bytes=64)


def read(path: Path, report: Path) -> tuple[int, str]:
    """(packets given, what was reported); an exception is a finding."""
    report.unlink(missing_ok=True)
    worker = Worker(path.parent, files(path), geometry=GEOMETRY)
    with contextlib.suppress(SourceError):  # the report has it
        worker.start().run()
    assert worker.count("captured_packets") == len(worker.records)
    return len(worker.records), worker.report.strip()


def main(seed: int, first: int, last: int, seconds: int) -> dict[str, Any]:
    log.configure(level=logging.CRITICAL)
    wrong: list[str] = []
    reasons: Counter[str] = Counter()
    slowest, number, packets = 0.0, first, 0
    with tempfile.TemporaryDirectory() as directory:
        path, report = Path(directory) / "damaged", Path(directory) / REPORT
        path.write_bytes(mutated_files.sources()[0])
        read(path, report)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
        end = time.process_time() + seconds
        while number < last and time.process_time() < end and len(wrong) < 20:
            one = mutated_files.damaged(seed, number)
            path.write_bytes(one.content)
            begun = time.process_time()
            try:
                given, told = read(path, report)
            except Exception as error:
                wrong.append(f"{number}: {type(error).__name__}: {error}")
                told, given = "raised", one.whole
            took = time.process_time() - begun
            slowest, packets = max(slowest, took), packets + given
            if took > MOST_S:
                wrong.append(f"{number}: {took:.1f} s")
            if given < one.whole:
                wrong.append(f"{number}: {given} packets, {one.whole} lie before the damage")
            if told and told != "raised" and not re.fullmatch(rf"{re.escape(str(path))}: byte \d+: [^\n]+", told):
                wrong.append(f"{number}: {told}")
            reasons[" ".join(told.rpartition(" byte ")[2].split()[1:4])] += 1
            number += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    return {
        "wrong": wrong, "files": number - first, "packets": packets, "slowest_s": round(slowest, 3), "grown_bytes": grown,
        "reasons": dict(reasons.most_common()),
    }  # fmt: skip


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(main(*map(int, sys.argv[1:])), sys.stdout)
