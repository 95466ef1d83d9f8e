"""Collectors in use, nfcapd and nfacctd, get the same flows: packets, bytes, times, flags, ends. All formats come at once, each from an
input of its own."""

from __future__ import annotations

import csv
import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from broker.core import flow_layout as layout
from broker.core.flow_model import Export
from broker.flows.export.sinks import make_sink
from tests.flows.export import nfdump
from tests.flows.export.rows import context, some_rows
from tests.waiting import until

SLOTS = {"ipfix": 0, "netflow9": 1, "netflow5": 2}
CONTEXT = context(inputs={slot: name for name, slot in SLOTS.items()}, run_ns=time.time_ns() - 7200 * 1_000_000_000)
NFACCTD = shutil.which("nfacctd", path=os.environ.get("PATH", "") + ":/usr/sbin")


@pytest.fixture(scope="module")
def rows() -> Any:
    """The same flows for each format, of now; of NetFlow 5 no IPv6 can be said."""
    made = some_rows(3 * 60, seed=3, most_bytes=2**32 - 1)
    made["input"] = np.arange(len(made)) % 3
    shift = time.time_ns() - int(made["last_ns"].max())
    made["first_ns"] += shift
    made["last_ns"] += shift
    made["protocol"] = np.where(made["protocol"] == 6, 6, 17)
    for name in ("source_port", "destination_port"):
        made[name] = 1024 + np.arange(len(made))
    made["tcp_flags"][made["protocol"] != 6] = 0
    return made


def deliver(rows: Any, port: int) -> None:
    for kind, slot in SLOTS.items():
        row = np.zeros(1, layout.EXPORT)[0:1]
        export = Export(kind, kind, address="127.0.0.1", port=port)  # type: ignore[arg-type]
        sink = make_sink(export, row[0], CONTEXT)
        sink.tick(time.time_ns())
        sink.take(rows[rows["input"] == slot])
        sink.close(5)
        n_unsaid = ((rows["version"] == 6) & (rows["input"] == slot)).sum() if kind == "netflow5" else 0
        assert row["dropped_records"][0] == n_unsaid
        assert row["records"][0] + n_unsaid == (rows["input"] == slot).sum()


@pytest.fixture(scope="module")
def nfcapd(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What nfdump reads of what nfcapd has received."""
    if shutil.which("nfcapd") is None:
        pytest.skip("nfcapd (nfdump) is not installed")
    return nfdump.nfdump(nfdump.nfcapd(tmp_path_factory.mktemp("nfcapd") / "flows", lambda port: deliver(rows, port)))


def ms(text: str, form: str) -> int:
    moment = datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(milliseconds=1)


def address(row: Any, name: str) -> str:
    data = row[name].tobytes()
    return str(ipaddress.ip_address(data[12:] if row["version"] == 4 else data))


def way(row: Any, n: int) -> tuple[Any, ...]:
    ends = ("source", "destination") if n == 0 else ("destination", "source")
    return (
        *(address(row, name) for name in ends), *(int(row[f"{name}_port"]) for name in ends), int(row["protocol"]),
        int(row["packets"][n]), int(row["bytes"][n]), int(row["tos"][n]), int(row["tcp_flags"][n]),
    )  # fmt: skip


def times(row: Any) -> tuple[int, int]:
    return int(row["first_ns"]) // 1_000_000, int(row["last_ns"]) // 1_000_000


def one_way(rows: Any, slot: int) -> Any:
    some = rows[rows["input"] == slot]
    return some[some["version"] == 4] if slot == SLOTS["netflow5"] else some


def read_nfdump(flow: dict[str, Any]) -> tuple[Any, ...]:
    found = [str(ipaddress.ip_address(flow.get(f"{end}4_addr") or flow[f"{end}6_addr"])) for end in ("src", "dst")]
    flags = sum(1 << (7 - n) for n, mark in enumerate(flow["tcp_flags"]) if mark != ".")
    return (*found, flow["src_port"], flow["dst_port"], flow["proto"], flow["in_packets"], flow["in_bytes"], flow["src_tos"], flags)


def nfdump_times(flow: dict[str, Any]) -> tuple[int, int]:
    return ms(flow["first"], "%Y-%m-%dT%H:%M:%S.%f"), ms(flow["last"], "%Y-%m-%dT%H:%M:%S.%f")


def test_nfcapd_gets_both_directions_of_ipfix(nfcapd: list[dict[str, Any]], rows: Any) -> None:
    found = Counter(
        (*read_nfdump(flow), flow["out_packets"], flow["out_bytes"], flow["src_vlan"], *nfdump_times(flow))
        for flow in nfcapd
        if flow["input_snmp"] == 1
    )
    expected = Counter(
        (*way(row, 0), int(row["packets"][1]), int(row["bytes"][1]), int(row["vlan"]), *times(row)) for row in one_way(rows, SLOTS["ipfix"])
    )
    assert found == expected


@pytest.mark.parametrize("kind", ["netflow9", "netflow5"])
def test_nfcapd_gets_each_direction_of_netflow(nfcapd: list[dict[str, Any]], rows: Any, kind: str) -> None:
    found = Counter((*read_nfdump(flow), *nfdump_times(flow)) for flow in nfcapd if flow["input_snmp"] == SLOTS[kind] + 1)
    expected = Counter((*way(row, n), *times(row)) for row in one_way(rows, SLOTS[kind]) for n in (0, 1) if row["packets"][n])
    assert found == expected


@pytest.fixture(scope="module")
def nfacctd(rows: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """What the print plugin of nfacctd writes."""
    if NFACCTD is None:
        pytest.skip("nfacctd (pmacct) is not installed")
    directory, port = tmp_path_factory.mktemp("nfacctd"), nfdump.free_port()
    config, table = directory / "config", directory / "table"
    config.write_text(
        f"daemonize: false\nnfacctd_ip: 127.0.0.1\nnfacctd_port: {port}\nplugins: memory\nimt_path: {table}\n"
        "aggregate: src_host,dst_host,src_port,dst_port,proto,tos,vlan,tcpflags,in_iface,timestamp_start,timestamp_end\n"
        "plugin_pipe_size: 10240000\n"
    )
    process = subprocess.Popen([NFACCTD, "-f", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=nfdump.ENVIRONMENT)
    n_expected = sum(
        len(some) if kind == "ipfix" else int((some["packets"] > 0).sum()) for kind, slot in SLOTS.items() for some in [one_way(rows, slot)]
    )
    found: list[dict[str, str]] = []

    def has_all() -> bool:
        command = ["pmacct", "-s", "-p", str(table), "-O", "csv"]
        text = subprocess.run(command, capture_output=True, text=True, env=nfdump.ENVIRONMENT).stdout
        found[:] = csv.DictReader(text.splitlines())
        return len(found) >= n_expected

    try:
        until(lambda: nfdump.queued_bytes(port) is not None and table.exists(), "nfacctd to listen")
        deliver(rows, port)
        until(has_all, "nfacctd to count all", 20)
    finally:
        nfdump.ended(process, signal.SIGINT)
    return found


def read_nfacctd(flow: dict[str, str]) -> tuple[Any, ...]:
    protocol = {"tcp": 6, "udp": 17}[flow["PROTOCOL"]]
    ends = [str(ipaddress.ip_address(flow[name])) for name in ("SRC_IP", "DST_IP")]
    numbers = [int(flow[name]) for name in ("PACKETS", "BYTES", "TOS", "TCP_FLAGS")]
    return (*ends, int(flow["SRC_PORT"]), int(flow["DST_PORT"]), protocol, *numbers)


def test_nfacctd_gets_the_direction_of_the_source_of_ipfix(nfacctd: list[dict[str, str]], rows: Any) -> None:
    """It reads no reverse elements: who wants both from it has NetFlow 9."""
    form = "%Y-%m-%dT%H:%M:%S.%fZ"
    found = Counter(
        (*read_nfacctd(flow), int(flow["VLAN"]), ms(flow["TIMESTAMP_START"], form), ms(flow["TIMESTAMP_END"], form))
        for flow in nfacctd
        if flow["IN_IFACE"] == "1"
    )
    assert found == Counter((*way(row, 0), int(row["vlan"]), *times(row)) for row in one_way(rows, SLOTS["ipfix"]))


@pytest.mark.parametrize("kind", ["netflow9", "netflow5"])
def test_nfacctd_gets_each_direction_of_netflow(nfacctd: list[dict[str, str]], rows: Any, kind: str) -> None:
    """Its times of these are whole seconds."""
    chosen = [flow for flow in nfacctd if flow["IN_IFACE"] == str(SLOTS[kind] + 1)]
    expected = {way(row, n): times(row) for row in one_way(rows, SLOTS[kind]) for n in (0, 1) if row["packets"][n]}
    assert Counter(map(read_nfacctd, chosen)) == Counter(expected.keys())
    for flow in chosen:
        for name, at in zip(("TIMESTAMP_START", "TIMESTAMP_END"), expected[read_nfacctd(flow)], strict=True):
            assert abs(ms(flow[name], "%Y-%m-%dT%H:%M:%S.%fZ") - at) <= 1000
