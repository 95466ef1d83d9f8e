"""Sockets on links that are slow, narrow or missing, each in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

ROOT = Path(__file__).resolve().parents[3]


def seen(scenario: str, tmp_path: Path) -> dict[str, Any]:
    command = ["unshare", "-n", sys.executable, "-m", "tests.stages.send.scenarios", scenario, str(tmp_path / "seen")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, Any] = json.loads((tmp_path / "seen").read_text())
    return found


def test_frames_longer_than_the_mtu_arrive_whole(tmp_path: Path) -> None:
    found = seen("small_mtu", tmp_path)
    assert found["same"] == {"gre/4": True, "gre-udp/4": True, "gre/6": True, "gre-udp/6": True}
    assert (found["drops"], found["delivered"]) == ([{}] * 4, [5] * 4)


def test_without_a_route_frames_are_unreachable_until_there_is_one(tmp_path: Path) -> None:
    found = seen("no_route", tmp_path)
    assert found["before"] == [{"unreachable": 5}] * 2
    assert found["sum"] == [5, 5]


def test_what_the_kernels_own_queue_drops_is_not_called_delivered(tmp_path: Path) -> None:
    """No more frames were counted as delivered than left or wait to leave. Over IPv6 neighbour discovery uses the link too."""
    found = seen("full_queue", tmp_path)
    for by_version in found.values():
        assert by_version["queue_dropped"] > 0
        assert by_version["delivered"] + by_version["full"] == 600
    assert found["4"]["delivered"] == found["4"]["left"] > 0
    assert found["6"]["delivered"] <= found["6"]["left"]


def test_a_socket_buffer_that_is_full_costs_counted_frames(tmp_path: Path) -> None:
    found = seen("full_socket", tmp_path)
    for delivered, drops in zip(found["delivered"], found["drops"], strict=True):
        assert drops == {"full": 300 - delivered}
    assert sum(found["delivered"]) > 0
