"""A control group holds what was started inside it, and nothing else; the kernel says so."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from bench.limits import Limits, limits
from tests.bench.limited import needs_limits
from tests.netns import needs_root

pytestmark = [pytest.mark.root, needs_root, needs_limits]

MIB = 1 << 20


def group(memory_bytes: int) -> contextlib.AbstractContextManager[Limits]:
    return limits(f"tapmesh-test-{os.getpid()}", memory_bytes)


def test_what_is_started_inside_is_held_and_this_process_is_not() -> None:
    with group(256 * MIB) as held:
        with held.inside():
            child = subprocess.Popen(["tail", "-f", "/dev/null"])
        try:
            assert held.pids() == {child.pid}
        finally:
            child.kill()
            child.wait()
        directories = held.directories
        assert all(directory.is_dir() for directory in directories)
    assert not any(directory.exists() for directory in directories)


def test_who_takes_more_memory_is_killed_and_counted() -> None:
    with group(64 * MIB) as held:
        with held.inside():
            child = subprocess.Popen([sys.executable, "-c", f"bytearray({128 * MIB}).count(1)"])
        assert child.wait() == -9
        assert held.killed() == 1
        assert 0 < held.peak_bytes() <= 64 * MIB


def test_who_takes_more_time_has_to_wait() -> None:
    """A twentieth of a core, so that it is less than what a busy machine leaves."""
    with limits(f"tapmesh-test-{os.getpid()}", 256 * MIB, cpus=0.05) as held:
        with held.inside():
            subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.05: pass"], check=True)
        assert throttled(held) > 0


def throttled(held: Limits) -> int:
    for directory in held.directories:
        if (path := directory / "cpu.stat").exists():
            return int(dict(line.split() for line in path.read_text().splitlines())["nr_throttled"])
    raise AssertionError("no cpu.stat")
