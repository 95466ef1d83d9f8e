"""Benches run, at sizes that measure nothing, so that they are not found broken on the day they are needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import workload
from bench.__main__ import BENCHES
from bench.replay import count_packets
from tests import libpcap
from tests.classbench import needs_rule_sets
from tests.netns import needs_root

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"bench", "case", "value", "unit", "ratio_to", "machine"}
needs_tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")


NEEDS = {
    "replay": needs_tcpdump,
    "peers": (needs_tcpdump, libpcap.needs_libpcap),
    "filter": needs_tcpdump,
    "classbench": (libpcap.needs_libpcap, needs_rule_sets),
    "explain": needs_rule_sets,
    "live": (pytest.mark.root, needs_root),
    "rfc2544": (pytest.mark.root, needs_root),
}


# tests/live/test_small.py runs that one, on an agent that it has anyway.
@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS.get(name, ())) for name in BENCHES if name != "small"])
def test_every_bench_prints_a_number_on_each_line(name: str) -> None:
    run = subprocess.run([sys.executable, "-m", "bench", name, "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert rows
    for row in rows:
        assert set(row) >= FIELDS
        assert row["bench"] == name
        assert row["value"] > 0 or row["case"].endswith("recovery after that")


def test_an_unknown_bench_is_refused_in_words() -> None:
    run = subprocess.run([sys.executable, "-m", "bench", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert "no bench is called nonsense; there are replay, peers, filter" in run.stderr


@needs_tcpdump
@pytest.mark.parametrize("size", sorted(workload.SIZES))
def test_the_workload_is_what_tcpdump_reads(tmp_path: Path, size: str) -> None:
    capture = tmp_path / "in.pcap"
    n_packets = 2_000 if size == "9000" else 20_000
    workload.write_capture(capture, size, n_packets)

    def selected(expression: str) -> int:
        run = subprocess.run(["tcpdump", "--count", "-r", str(capture), expression], capture_output=True, text=True, check=True)
        return int(run.stdout.split()[0])

    whole = selected("")
    assert whole == count_packets(capture) == n_packets
    assert 0.05 < selected("ip6 or (vlan and ip6)") / whole < 0.2
    assert 0.1 < selected("vlan") / whole < 0.3
    assert 0.2 < selected(" or ".join(f"({term})" for term in workload.terms(100))) / whole < 0.3
    assert selected("greater 1515") == (whole if size == "9000" else selected("vlan and greater 1515"))


def test_the_workload_is_the_same_at_every_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        workload.write_capture(tmp_path / name, "imix", 1_000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
