"""The units are what systemd itself accepts, and say the same things about order, restarts and the sandbox."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
SANDBOX = UNITS / "tapmesh-.service.d" / "sandbox.conf"


def settings(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if re.match(r"[A-Z]\w+=", line)]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The units with paths and a user that exist on this machine: systemd looks whether they do."""
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    for path in (*tmp_path.glob("*.service"), tmp_path / SANDBOX.relative_to(UNITS)):
        text = path.read_text().replace("/opt/tapmesh/bin/python", sys.executable).replace("/opt/tapmesh/bin/tapmesh", sys.executable)
        path.write_text(text.replace("User=tapmesh", "User=root"))
    return tmp_path


def analyze(here: Path, *arguments: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{here}:", "SYSTEMD_LOG_LEVEL": "warning"}
    run = subprocess.run(["systemd-analyze", *arguments], cwd=here, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "tapmesh" not in run.stderr, run.stderr
    return run.stdout


def test_systemd_accepts_every_unit_without_a_warning(here: Path) -> None:
    names = [path.name.replace("@", "@0") for path in SERVICES]
    assert len(names) == 6
    analyze(here, "verify", "--man=no", "./tapmesh.target", *(f"./{name}" for name in names))


@pytest.mark.parametrize("name", ["tapmesh.service", "tapmesh-control.service", "tapmesh-capture@0.service", "tapmesh-send@0.service"])
def test_every_unit_is_in_the_sandbox(here: Path, name: str) -> None:
    report = analyze(here, "security", "--offline=true", "--no-pager", f"./{name}")
    passed = {line.split()[1] for line in report.splitlines() if line.startswith("✓")}
    assert {"NoNewPrivileges=", "ProtectSystem=", "ProtectHome=", "PrivateDevices=", "RestrictNamespaces=~user"} <= passed
    assert any("CAP_SYS_ADMIN" in what for what in passed)
    assert not any(what.startswith("MemoryDenyWriteExecute") for what in passed), "kernels could not be compiled"


@pytest.mark.parametrize(("name", "most"), [("tapmesh.service", 25), ("tapmesh-control.service", 25), ("tapmesh-send@0.service", 21)])
def test_the_exposure_that_systemd_reckons_stays_low(here: Path, name: str, most: int) -> None:
    """In tenths, of 100; `here` runs as root, which costs 4 of them."""
    analyze(here, "security", "--offline=true", "--no-pager", f"--threshold={most}", f"./{name}")


def test_only_who_starts_the_opener_has_capabilities() -> None:
    of = {path.name: [line for line in settings(path) if "Capabilit" in line] for path in SERVICES}
    for name in ("capture", "filter", "encapsulate", "send"):
        assert of[f"tapmesh-{name}@.service"] == ["CapabilityBoundingSet="]
    assert of["tapmesh.service"] == of["tapmesh-control.service"] != []


def test_the_whole_agent_has_the_same_sandbox_as_single_stages() -> None:
    assert set(settings(SANDBOX)) <= set(settings(UNITS / "tapmesh.service"))


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_crash_is_restarted_and_a_hopeless_start_is_not(path: Path) -> None:
    assert {"Restart=on-failure", "RestartPreventExitStatus=78"} <= set(settings(path))


def test_the_data_path_outlives_a_crash_of_the_supervisor() -> None:
    assert "KillMode=process" in settings(UNITS / "tapmesh.service")


@pytest.mark.parametrize(("later", "earlier"), [("capture", "filter"), ("filter", "encapsulate"), ("encapsulate", "send")])
def test_stages_start_downstream_first_and_so_stop_upstream_first(later: str, earlier: str) -> None:
    (after,) = [line for line in settings(UNITS / f"tapmesh-{later}@.service") if line.startswith("After=")]
    assert f"tapmesh-{earlier}@%i.service" in after.removeprefix("After=").split()
    assert "tapmesh-control.service" in after


def test_the_target_wants_every_stage_of_lane_0() -> None:
    (wants,) = [line for line in settings(UNITS / "tapmesh.target") if line.startswith("Wants=")]
    names = {path.name.replace("@", "@0") for path in SERVICES} - {"tapmesh.service"}
    assert set(wants.removeprefix("Wants=").split()) == names
