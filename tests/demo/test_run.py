"""The example end to end: what arrives is what tcpdump would have selected, frame by frame, and the run says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from broker.demo.example import example
from tests.packets import read_pcap

TAPMESH = [sys.executable, "-I", "-m", "broker.cli.main"]
needs_tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")

USERS = "(net 10.20.1.0/24 or net 10.20.2.0/24 or ip6 net 2001:db8:20::/64)"
WEB = "(host 10.30.0.10 or host 2001:db8:30::10)"
SERVICES = "(tcp port 443 or tcp port 80)"
LATER_FRAGMENT = "(ip[6:2] & 0x1fff != 0 and tcp)"
# A later fragment does not show its ports: it goes where its first fragment went, and all of these went to the web server.
USERS_TO_WEB = f"{USERS} and {WEB} and ({SERVICES} or {LATER_FRAGMENT})"
KIOSKS_TO_WEB = f"vlan 30 and net 10.20.3.0/24 and {WEB} and {SERVICES}"
WEB_TO_DATABASE = f"{WEB} and host 10.40.0.5 and tcp port 5432"


def selected(capture: Path, *expressions: str) -> Counter[bytes]:
    """The frames that tcpdump writes for any of the expressions."""
    frames: Counter[bytes] = Counter()
    for expression in expressions:
        command = ["tcpdump", "-r", str(capture), "-w", "-", "-U", expression]
        run = subprocess.run(command, capture_output=True, check=True)
        frames.update(frame for _, frame in read_pcap(run.stdout)[1])
    return frames


def test_the_run_delivers_everything_and_says_so() -> None:
    run = subprocess.run([*TAPMESH, "run", "--demo"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "balanced" in run.stdout
    assert "NOT BALANCED" not in run.stdout
    for word in ("capture", "filter", "encapsulate", "send", "users-to-web", "web-to-database", "ids", "recorder", "missing 0"):
        assert word in run.stdout


@needs_tcpdump
def test_each_map_passes_what_tcpdump_selects(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with example(tmp_path) as demo:
        command = [*TAPMESH, "replay", str(demo.capture), "--config", str(demo.config), "--out", str(out)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    users, database = selected(demo.capture, USERS_TO_WEB, KIOSKS_TO_WEB), selected(demo.capture, WEB_TO_DATABASE)
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["balanced"]
    assert selected(demo.capture, f"{USERS} and {WEB} and {LATER_FRAGMENT}").total() > 10
    assert ledger["maps"]["users-to-web"]["undetermined_packets"] == 0
    assert ledger["maps"]["users-to-web"]["passed_packets"] == users.total()
    assert ledger["maps"]["web-to-database"]["passed_packets"] == database.total()
    assert ledger["tools"]["ids"]["delivered_frames"] == users.total() + database.total()
    assert Counter(frame for _, frame in read_pcap((out / "recorder.pcap").read_bytes())[1]) == database
