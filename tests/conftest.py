"""For every test: where compiled kernels are kept, and that in CI nothing is skipped or left behind unnoticed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TAPMESH_CACHE_DIR", str(ROOT / ".cache" / "tapmesh"))  # before any kernel is imported

IN_CI = os.environ.get("CI") == "true"
ALLOWED_SKIPS: tuple[str, ...] = (
    "control groups cannot be made here",  # bench.limits says it
    "user nobody cannot reach the interpreter",  # tests/live/test_privileges.py
)
"""Beginnings of the reasons for which a test may skip in CI. A machine of CI lacks nothing, but it may be a container whose control groups
are read-only, or have everything in root's home."""

_SHM = Path(os.environ.get("TAPMESH_SHM", "/dev/shm"))
_skipped: list[tuple[str, str]] = []
_complaints: list[str] = []


def _pipelines() -> set[str]:
    return {path.name for path in _SHM.glob("tapmesh-*")}


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        _skipped.append((report.nodeid, reason.removeprefix("Skipped: ")))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = _pipelines()


_BEFORE = pytest.StashKey[set[str]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not IN_CI or hasattr(session.config, "workerinput"):  # the workers of pytest-xdist know of each other's only
        return
    _complaints.extend(f"skipped in CI: {test}: {reason}" for test, reason in _skipped if not reason.startswith(ALLOWED_SKIPS))
    _complaints.extend(f"left behind in {_SHM}: {name}" for name in sorted(_pipelines() - session.config.stash[_BEFORE]))
    if _complaints and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for complaint in _complaints:
        terminalreporter.write_line(f"FAILED {complaint}", red=True)
