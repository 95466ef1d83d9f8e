"""What CI relies on: a skip does not pass unseen, nothing is left behind unseen, and what is installed is pinned by hash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

SKIPS = "import pytest\ndef test_a():\n    pytest.skip('no such tool')\n"
FAILS_AS_KNOWN = "import pytest\n@pytest.mark.xfail(reason='known')\ndef test_a():\n    raise AssertionError\n"
LEAVES = "import os, pathlib\ndef test_a():\n    pathlib.Path(os.environ['TAPMESH_SHM'], 'tapmesh-left').mkdir()\n"


def run_pytest(directory: Path, test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A session of its own that has our conftest and one test."""
    (directory / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", directory / "tests")
    (directory / "tests" / "test_one.py").write_text(test)
    (directory / "shm").mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST") and name != "CI"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), str(directory / "tests")]
    return subprocess.run(
        command,
        cwd=directory,
        env={**inherited, "PYTHONPATH": str(ROOT), "TAPMESH_SHM": str(directory / "shm"), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("test", "environment", "status", "said"),
    [
        (SKIPS, {}, 0, "1 skipped"),
        (SKIPS, {"CI": "true"}, 1, "FAILED skipped in CI: tests/test_one.py::test_a: no such tool"),
        (FAILS_AS_KNOWN, {"CI": "true"}, 0, "1 xfailed"),
        (LEAVES, {}, 0, "1 passed"),
        (LEAVES, {"CI": "true"}, 1, "tapmesh-left"),
    ],
    ids=["a skip at home", "a skip in CI", "a known failure", "a left-over at home", "a left-over in CI"],
)
def test_in_ci_nothing_is_skipped_or_left_behind(tmp_path: Path, test: str, environment: dict[str, str], status: int, said: str) -> None:
    run = run_pytest(tmp_path, test, **environment)
    assert run.returncode == status, run.stdout + run.stderr
    assert said in run.stdout


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_by_hash_and_names_no_place(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert "--index" not in text
    for requirement in re.sub(r"\\\n\s*", "", text).splitlines():
        assert re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement), requirement


@pytest.mark.parametrize(("lock", "extras"), [("agent", ["agent"]), ("test", ["agent", "test"]), ("dev", ["agent", "test", "dev"])])
def test_the_lock_holds_what_the_project_asks_for(lock: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [one for extra in extras for one in project["optional-dependencies"][extra]]
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / f"{lock}.txt").read_text(), re.M))
    assert {re.split(r"[<>=]", one)[0].lower() for one in asked} <= locked


def test_the_agent_takes_nothing_along_that_only_tests_need() -> None:
    agent = (ROOT / "requirements" / "agent.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for one in project["optional-dependencies"]["test"] + project["optional-dependencies"]["dev"]:
        assert not re.search(rf"^{re.split('[<>=]', one)[0].lower()}==", agent, re.M)
