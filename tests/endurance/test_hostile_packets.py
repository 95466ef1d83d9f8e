"""Hostile packets through all stages: nobody crashes, nobody looks at a byte that is not there, and every sum of the ledger closes.

A million mutated frames here, a billion with `make endurance`, which goes on where it was stopped. What the filter says of such frames is
compared with its slow twins in tests/stages/filter/test_mutated.py; what leaves is shown to tshark here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import libpcap, packets
from tests.endurance.sizes import size
from tests.netns import needs_root
from tests.stages.filter import mutations

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "endurance"
FRAMES = size("hostile_packets", 1_000_000, 1_000_000_000)
SEEDS = (0, 1, 2, 3)  # a process for each; that of 0 sends by sockets, the others write files


def apart(*arguments: object) -> Any:
    command = [sys.executable, "-m", "tests.endurance.hostile_packets", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def test_who_looks_at_a_byte_too_many_dies() -> None:
    assert apart("lie") == {"+0": 0, "+1": signal.SIGSEGV}


@needs_root
def test_a_million_mutated_frames_harm_nobody_and_are_all_accounted_for() -> None:
    n_blocks = -(-FRAMES // mutations.BLOCK // len(SEEDS))
    KEPT.mkdir(parents=True, exist_ok=True)

    def one(seed: int) -> Any:
        return apart("mutated", seed, n_blocks, KEPT / f"hostile-packets-{seed}-{n_blocks}.json")

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, SEEDS))
    for one_found in found:
        assert one_found["wrong"] == []
        assert one_found["packets"] == (n_blocks - one_found["begun at"]) * mutations.BLOCK
    happened = {name for one_found in found for stage in ("filter", "flows", "encapsulate", "send") for name in one_found[stage]}
    assert {
        "forwarded_packets", "fragments_followed_packets", "fragments_overlapping_packets", "ip6_chain_long_packets", "metered_packets",
        "unmetered_cut", "dropped_too_long", "dropped_not_ip", "dropped_sampled", "dropped_duplicate", "dropped_mtu", "dropped_limited",
        "sliced_frames", "stripped_frames", "unstripped_frames", "masked_frames", "segmented_frames", "unsegmented_frames",
        "shared_packets", "merged_frames", "delivered_frames",
    } <= happened  # fmt: skip


@needs_root
@pytest.mark.parametrize("seed", [2, 3])
def test_headers_in_headers_cut_at_every_byte_harm_nobody_and_are_all_accounted_for(seed: int) -> None:
    found = apart("deep", seed)
    assert found["wrong"] == []
    assert found["packets"] > 100_000


def test_what_was_to_be_done_at_length_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(json.dumps({"seed": 1, "block": 3, "of": 4}))
    found = apart("mutated", 1, 4, state)
    assert (found["begun at"], found["packets"], found["wrong"]) == (3, mutations.BLOCK, [])
    assert not state.exists()
    assert os.listdir(tmp_path) == []


TUNNELS = ("gre", "over6", "nvgre", "greip", "one", "two", "three", "vxlan", "geneve", "greudp")
CHECKSUMS = {"gre": "gre.checksum.status", "greip": "gre.checksum.status", "vxlan": "udp.checksum.status"}
NEEDED = ("frame.cap_len", "ip.version", "ip.len", "ip.checksum.status", "ipv6.plen", *dict.fromkeys(CHECKSUMS.values()))


def outermost(capture: Path) -> list[dict[str, str]]:
    """The first of each field, which is that of the outer header."""
    command = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "occurrence=f", "-o", "ip.check_checksum:TRUE"]
    command += ["-o", "udp.check_checksum:TRUE", *(word for name in NEEDED for word in ("-e", name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [dict(zip(NEEDED, line.split("\t"), strict=True)) for line in done.stdout.splitlines()]


def test_tshark_finds_right_what_leaves_of_hostile_packets(tmp_path: Path) -> None:
    """Outer lengths and checksums; and what nothing was to be done with is what had come, byte for byte."""
    found = apart("sample", 5, 0, tmp_path)
    assert found["wrong"] == []
    n_frames = 0
    for tool in TUNNELS:
        rows = outermost(tmp_path / tool)
        n_frames += len(rows)
        assert len(rows) > 10
        for row in rows:
            told = int(row["ip.len"]) if row["ip.version"] == "4" else 40 + int(row["ipv6.plen"])
            assert told == int(row["frame.cap_len"])
            assert row["ip.version"] == "6" or row["ip.checksum.status"] == "1"
            assert row.get(CHECKSUMS.get(tool, ""), "1") == "1"
    bare = packets.read_pcap((tmp_path / "bare").read_bytes())[1]
    n_frames += len(bare) + len(libpcap.read_ethernet(tmp_path / "fewer", 10_000))
    assert n_frames == found["send"]["delivered_frames"]
    came = {frame for _, frame in packets.read_pcap((tmp_path / "frames.pcap").read_bytes())[1]}
    assert len(bare) > 100
    assert {frame for _, frame in bare} <= came
