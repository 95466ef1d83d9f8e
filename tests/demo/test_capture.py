"""The capture of the example is what it claims to be: judged by tshark, tcpdump and our hand-written reader, none of which made it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.demo.generate import generate
from tests.packets import read_pcap

needs_tshark = pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
needs_tcpdump = pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")

LATER_FRAGMENT = "(ip[6:2] & 0x1fff != 0)"
USERS = "(net 10.20.1.0/24 or net 10.20.2.0/24 or ip6 net 2001:db8:20::/64)"
WEB = "(host 10.30.0.10 or host 2001:db8:30::10)"
SERVICES = "(tcp port 443 or tcp port 80)"


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "mirror.pcap"
    generate(path)
    return path


def selected(capture: Path, expression: str) -> int:
    """How many packets tcpdump selects."""
    run = subprocess.run(["tcpdump", "--count", "-r", str(capture), expression], capture_output=True, text=True, check=True)
    return int(run.stdout.split()[0])


def fields(capture: Path, *names: str, where: str = "") -> list[list[str]]:
    checks = [option for layer in ("ip", "tcp", "udp") for option in ("-o", f"{layer}.check_checksum:TRUE")]
    command = ["tshark", "-n", "-r", str(capture), *checks, *(["-Y", where] if where else []), "-T", "fields"]
    run = subprocess.run([*command, *(part for name in names for part in ("-e", name))], capture_output=True, text=True, check=True)
    return [line.split("\t") for line in run.stdout.splitlines()]


def test_the_same_bytes_come_out_at_every_run(capture: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.pcap"
    assert generate(again) == len(read_pcap(capture.read_bytes())[1])
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(capture.read_bytes()).digest()


def test_it_is_about_five_thousand_packets_of_about_a_minute_in_the_order_of_time(capture: Path) -> None:
    linktype, packets = read_pcap(capture.read_bytes())
    times = [ts_ns for ts_ns, _ in packets]
    assert linktype == 1
    assert 4_500 < len(packets) < 5_500
    assert 50e9 < times[-1] - times[0] < 60e9
    assert times == sorted(times)
    assert all(60 <= len(frame) <= 1518 for _, frame in packets)


@needs_tshark
def test_tshark_finds_nothing_malformed_and_no_wrong_checksum(capture: Path) -> None:
    layers = ("ip", "tcp", "udp", "icmp")
    wrong = " || ".join(["_ws.malformed", "tcp.analysis.flags", *(f"{layer}.checksum.status == 0" for layer in layers)])
    assert fields(capture, "frame.number", "frame.protocols", where=wrong) == []
    for layer in layers:
        assert fields(capture, "frame.number", where=f"{layer}.checksum.status == 1"), f"tshark has checked no checksum of {layer}"


@needs_tshark
def test_every_connection_of_a_user_opens_and_closes(capture: Path) -> None:
    users = "(tcp.port == 443 || tcp.port == 80)"
    opened = {row[0] for row in fields(capture, "tcp.stream", where=f"{users} && tcp.flags == 0x002")}
    closed = {row[0] for row in fields(capture, "tcp.stream", where=f"{users} && tcp.flags.fin == 1")}
    assert opened == closed
    assert len(opened) == 150


@needs_tcpdump
@pytest.mark.parametrize(
    ("what", "expression", "at_least"),
    [
        ("users to the web server", f"{USERS} and {WEB} and {SERVICES}", 2_000),
        ("its later fragments", f"{USERS} and {WEB} and tcp and {LATER_FRAGMENT}", 10),
        ("kiosks, tagged", f"vlan 30 and net 10.20.3.0/24 and {WEB} and {SERVICES}", 300),
        ("office, IPv6", "ip6 and tcp", 300),
        ("the web server to its database", "host 10.30.0.10 and host 10.40.0.5 and tcp port 5432", 500),
        ("names", "udp port 53", 200),
        ("logins", "tcp port 22", 100),
        ("backup", "host 10.70.0.2", 200),
        ("pings", "icmp", 50),
        ("ARP", "arp", 50),
        ("broadcasts and multicasts", "ether multicast", 50),
    ],
)
def test_it_holds_what_the_case_is_about_and_the_noise(capture: Path, what: str, expression: str, at_least: int) -> None:
    assert selected(capture, expression) >= at_least, what
