"""Flows through real processes: what a replay says of a capture, whoever is killed on the way."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from broker.supervisor.companions import MODULE
from broker.supervisor.processes import find
from tests.cli.tapmesh import Broker, nothing_left, replaying, tapmesh
from tests.packets import arp, ethernet, pcap, tcp_frame, udp_frame
from tests.waiting import until

N_PACKETS = 12_000


def frames() -> list[bytes]:
    """In both directions of some hundred flows, and some that are in none."""
    found = []
    for i in range(N_PACKETS):
        client, port = f"10.{i % 5}.0.{i % 7 + 1}", 20_000 + i % 211
        if i % 100 == 99:
            found.append(ethernet(arp(1, ("02:00:00:00:00:01", client), ("02:00:00:00:00:02", "10.9.0.1")), type=0x0806))
        elif i % 3 == 0:
            found.append(tcp_frame("10.9.0.1", 443, client, port, bytes(i % 900)))
        else:
            found.append((tcp_frame if i % 3 == 1 else udp_frame)(client, port, "10.9.0.1", 443, bytes(i % 300)))
    return found


def truth() -> Counter[tuple[str, int, str, int, int]]:
    """Packets of each direction of each flow, made of what the frames were made of."""
    found: Counter[tuple[str, int, str, int, int]] = Counter()
    for i in range(N_PACKETS):
        client, port = f"10.{i % 5}.0.{i % 7 + 1}", 20_000 + i % 211
        if i % 100 == 99:
            continue
        ends = ("10.9.0.1", 443, client, port) if i % 3 == 0 else (client, port, "10.9.0.1", 443)
        found[*ends, 17 if i % 3 == 2 else 6] += 1
    return found


def write(directory: Path, *, pace: object = "max") -> Path:
    source = directory / "in.pcap"
    source.write_bytes(pcap(frames()))
    config = directory / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {source}, pace: {pace}}}}}
flows:
  idle_s: 0.5
  exports: {{lines: {{kind: json, file: flows.json}}}}
  store: {{kind: parquet, directory: store, flush_s: 1}}
"""
    )
    return config


def told_by_lines(directory: Path) -> Counter[tuple[str, int, str, int, int]]:
    found: Counter[tuple[str, int, str, int, int]] = Counter()
    numbers = {"TCP": 6, "UDP": 17}
    for line in (directory / "flows.json").read_text().splitlines():
        one = json.loads(line)
        ends, proto = (one["src_ip"], one["src_port"], one["dest_ip"], one["dest_port"]), numbers[one["proto"]]
        for key, n in ((ends, one["flow"]["pkts_toserver"]), (ends[2:] + ends[:2], one["flow"]["pkts_toclient"])):
            if n:
                found[*key, proto] += n
    return found


def told_by_store(directory: Path) -> Counter[tuple[str, int, str, int, int]]:
    def address(low: int) -> str:
        return ".".join(str(low >> shift & 255) for shift in (24, 16, 8, 0))

    found: Counter[tuple[str, int, str, int, int]] = Counter()
    rows = duckdb.execute(
        "SELECT source_low, source_port, destination_low, destination_port, protocol, packets, packets_back, lane, number "
        f"FROM read_parquet('{directory}/store/flows/**/*.parquet', hive_partitioning = false)"
    ).fetchall()
    assert len({row[-2:] for row in rows}) == len(rows), "no record is there twice"
    assert sorted(row[-1] for row in rows) == list(range(len(rows))), "and none is missing"
    for source, source_port, destination, destination_port, protocol, n, n_back, *_ in rows:
        ends = (address(source), source_port, address(destination), destination_port)
        for key, packets in ((ends, n), (ends[2:] + ends[:2], n_back)):
            if packets:
                found[*key, protocol] += packets
    return found


def checked(directory: Path) -> dict[str, Any]:
    ledger: dict[str, Any] = json.loads((directory / "out" / "ledger.json").read_text())
    assert ledger["balanced"], ledger["faults"]
    flows = ledger["flows"]
    assert flows["unmetered_packets"] == {"not_ip": N_PACKETS // 100, "cut": 0, "sampled": 0, "unwanted": 0, "skipped": 0}
    assert flows["metered_packets"] == N_PACKETS - N_PACKETS // 100
    assert (flows["live_flows"], flows["dropped_records"]) == (0, 0)
    assert told_by_store(directory) == truth()
    return ledger


def test_every_packet_is_in_the_lines_and_in_the_store_once(tmp_path: Path) -> None:
    config = write(tmp_path)
    done = tapmesh("replay", tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    checked(tmp_path)
    assert told_by_lines(tmp_path) == truth()
    for word in ("metered", "not_ip 120", "lines", "store"):
        assert word in done.stdout


def companions(broker: Broker, kind: str) -> set[int]:
    """Their pids: of none while it is being started again."""
    return {pid for pid, name in find(broker.name, MODULE).items() if name == kind}


@pytest.mark.parametrize("kind", ["flows", "export", "store"])
def test_one_that_is_killed_comes_back_and_every_packet_is_told_once(tmp_path: Path, kind: str) -> None:
    config = write(tmp_path, pace=6000)
    with replaying([tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "out", "--pace", 6000], tmp_path) as broker:
        until(lambda: broker.pipeline() and broker.cursor("flows") >= 3, "the replay to be under way")
        if kind == "flows":
            broker.wait_again(kind, broker.kill(kind))
        else:
            until(lambda: companions(broker, kind), f"{kind} to run")
            (old,) = companions(broker, kind)
            os.kill(old, signal.SIGKILL)
            until(lambda: companions(broker, kind) - {old}, f"{kind} to come back")
        assert broker.process.wait(60) == 0, broker.stderr
        assert find(broker.name, MODULE) == {}
        assert nothing_left(broker.name)
    checked(tmp_path)
