"""What is said of a packet is what was put into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.core.model import Config, Input, Tool
from stages.judge.parsed import fields
from stages.wire.key import KEY
from tests import packets as p
from tests.stages.filter.judging import frame
from tests.stages.judge.judges import One

TCP6 = p.ethernet(p.ipv6("fe80::1", "fe80::2", p.TCP, p.tcp(1, 2)), type=p.ETH_IP6)
LATER = p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, b"x" * 32, offset=1480))
TAGGED = p.ip_frame("10.0.0.1", "10.0.0.2", p.ICMP, p.icmp(3), vlans=(7, 9))
WHOLE: dict[str, Any] = {"fragment": "none", "ports": "seen", "headers_cut": False}
CASES = {
    "tcp": (
        p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80),
        {"layers": ["eth", "ip", "tcp"], "eth.src": p.MAC_A, "eth.dst": p.MAC_B, "eth.type": 0x800, "ip.src": "10.0.0.1"}
        | {"ip.dst": "10.0.0.2", "ip.proto": 6, "tcp.srcport": 4000, "tcp.dstport": 80, "tcp.flags": ["ack"], **WHOLE},
    ),
    "ipv6": (TCP6, {"ipv6.src": "fe80::1", "ipv6.dst": "fe80::2", "ipv6.nxt": 6, "layers": ["eth", "ipv6", "tcp"], **WHOLE}),
    "arp": (
        p.ethernet(p.arp(1, (p.MAC_A, "10.0.0.1"), (p.MAC_B, "10.0.0.2")), type=p.ETH_ARP),
        {"layers": ["eth", "arp"], "arp.src": "10.0.0.1", "arp.dst": "10.0.0.2", "eth.type": 0x806, "ports": "none"},
    ),
    "tags": (
        TAGGED,
        {"layers": ["eth", "vlan", "vlan", "ip", "icmp"], "vlan.id": [7, 9], "vlan.tpid": [0x8100, 0x8100], "icmp.type": 3}
        | {"eth.type": 0x800},
    ),
    "fragment": (LATER, {"fragment": "later", "ports": "hidden", "ip.proto": 6, "tcp.srcport": None, "tcp.flags": None}),
    "cut in the ports": (p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80)[:36], {"tcp.srcport": 4000, "tcp.dstport": None, "ports": "cut"}),
    "cut in the header": (p.tcp_frame("10.0.0.1", 1, "10.0.0.2", 2)[:32], {"ip.src": "10.0.0.1", "ip.dst": None, "headers_cut": True}),
    "cut in the tag": (TAGGED[:15], {"layers": ["eth"], "vlan.id": None, "headers_cut": True}),
    "short": (b"\1\2\3", {"layers": [], "eth.src": None, "eth.type": None, "headers_cut": True}),
    "nothing": (b"", {"layers": [], "headers_cut": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_fields_are_what_the_packet_was_made_of(tmp_path: Path, name: str) -> None:
    data, wanted = CASES[name]
    one = One(tmp_path, Config("n", (Input("in", "pcap"),), (Tool("t", 0, file="-"),), (), collector=("t",)))
    one.judge(frame(data, 200))
    found = fields(np.frombuffer(one.judging.row_bytes(), KEY)[0], data)
    assert {name: found.get(name) for name in wanted} == wanted
