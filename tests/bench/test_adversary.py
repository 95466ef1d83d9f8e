"""The packets that the filter's worst case is measured with are what they are called, as libpcap sees them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.adversary import kinds
from bench.rulesets import RULE, Rules
from tests import libpcap

EXPECTED = {
    "random headers": "ip",
    "port scan": "tcp and tcp[13] = 2",
    "SYN flood": "tcp and tcp[13] = 2",
    "runts": "less 54",
    "fragments": "ip and ip[6:2] & 0x3fff != 0",
    "deep headers": "(ip6 and ip6[6] = 0) or (vlan and vlan and vlan and vlan and ip and ip[0] = 0x4f)",
}
N = 400


def some_rules() -> Rules:
    rules = np.zeros(8, RULE)
    rules["src"], rules["src_bits"] = [n << 24 for n in range(10, 18)], 8
    rules["sport_high"] = rules["dport_high"] = 65535
    rules["protocol"], rules["protocol_mask"] = [6, 17] * 4, 255
    return rules


@libpcap.needs_libpcap
@pytest.mark.parametrize("kind", EXPECTED)
def test_an_adversary_sends_what_it_is_called(kind: str) -> None:
    matches = libpcap.Filter(EXPECTED[kind])
    packets = kinds(some_rules(), N, seed=1)[kind]
    assert len(packets) == N
    assert all(matches(packet, len(packet)) for packet in packets)
    assert len(set(packets)) > N * 0.9


def test_the_kinds_are_all_tested() -> None:
    assert set(kinds(some_rules(), 2, seed=1)) == set(EXPECTED)


@libpcap.needs_libpcap
def test_behind_a_chain_of_extension_headers_is_the_transport_header() -> None:
    chains = [packet for packet in kinds(some_rules(), N, seed=1)["deep headers"] if packet[12:14] == b"\x86\xdd"]
    matches = libpcap.Filter("ip6 protochain 6 or ip6 protochain 17", optimize=False)
    assert len(chains) == N // 2
    assert sum(matches(packet, len(packet)) for packet in chains) > N // 8
