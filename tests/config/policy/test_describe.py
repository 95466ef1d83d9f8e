"""Tests in words: every kind has some, they say what is asked, and what a packet shows is what it shows."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from broker.config.policy import parse_expression, tree
from broker.config.policy.describe import describe, reasons
from broker.config.policy.image import FALSE, TRUE, UNDETERMINED
from broker.config.policy.observe import observed, unseen
from broker.config.policy.simplify import simplify
from broker.config.policy.tree import And, Node, Not, Or

SETS = {"few": ("10.0.0.0/8", "192.0.2.1", "2001:db8::/32"), "ports": tuple(str(n) for n in range(1, 20, 2)), "one": ("5-7",)}


def asked_by(text: str) -> list[tree.Test]:
    """Those of an expression, in the order of the tree."""

    def walk(node: Node) -> list[tree.Test]:
        if isinstance(node, Not):
            return walk(node.item)
        if isinstance(node, And | Or):
            return [test for item in node.items for test in walk(item)]
        return [node]

    return walk(simplify(parse_expression(text, SETS)))


WORDS = {
    "src host 10.0.0.1": ["src host 10.0.0.1"],
    "ip src net 10.0.0.0/8": ["ip src net 10.0.0.0/8"],
    "ip dst net 192.0.0.1 mask 255.0.0.255": ["ip dst net 192.0.0.1 mask 255.0.0.255"],
    "arp src host 10.0.0.1": ["arp src host 10.0.0.1"],
    "ip6 dst net 2001:db8::/32": ["ip6 dst net 2001:db8::/32"],
    "ip6 src host ::1": ["ip6 src host ::1"],
    "src net $few": ["src {10.0.0.0-10.255.255.255, 192.0.2.1}", "ip6 src 2001:db8::-2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"],
    "tcp dst port 80": ["tcp dst port 80"],
    "dst port $ports": ["dst port {1, 3, 5, 7, 9, 11 and 4 more}"],
    "udp src port $one": ["udp src port 5-7"],
    "vlan 5": ["vlan", "vlan 5"],
    "vlan and udp dst port 53": ["vlan", "udp dst port 53 behind 1 tag"],
    "ip proto 47": ["ip proto gre"],
    "ether proto 0x88cc": ["ether proto 0x88cc"],
    "ether src host 2:0:0:0:0:1": ["ether src host 02:00:00:00:00:01"],
    "ether multicast": ["ether multicast"],
    "ip multicast": ["ip multicast"],
    "less 100": ["len <= 100"],
    "greater 100": ["len >= 100"],
    "len = 60": ["len = 60"],
    "tcp[tcpflags] & tcp-syn != 0": ["tcp flags syn"],
    "icmp[icmptype] = icmp-echo": ["icmp type 8"],
    "dscp ef": ["dscp 46"],
    "ip ttl <= 5": ["ip ttl 0-5"],
    "fragment later": ["fragment later"],
    "ether src host 02:00:00:00:00:00/ff:ff:ff:00:00:00": ["ether src host 02:00:00:00:00:00/ff:ff:ff:00:00:00"],
    "inner vxlan vni 5000 (tcp dst port 80)": ["inner vxlan vni 5000", "tcp dst port 80 inside the tunnel"],
}


@pytest.mark.parametrize("text", WORDS)
def test_a_test_reads_as_it_would_be_written(text: str) -> None:
    words = [describe(test) for test in asked_by(text)]
    assert [word for word in words if word in WORDS[text]] == WORDS[text], words


LAYER = (tree.VLAN, tree.VLAN)
LOAD = tree.Load((), tree.LINK, tree.Number(3), 2)
ONE_OF_EACH: tuple[tree.Test, ...] = (
    tree.EtherType(LAYER, 0x800), tree.Llc(LAYER, 0x42, False), tree.Tagged(LAYER), tree.VlanId(LAYER, ((1, 1),)),
    tree.Address4(LAYER, 0, tree.IP, 1, 0xFFFFFFFF), tree.Address4Set(LAYER, 1, tree.IP, ((1, 2),)), tree.Address6(LAYER, 0, 1, 128),
    tree.Address6Set(LAYER, 0, ((1, 2), (4, 4))), tree.Protocol(LAYER, tree.IP, 99), tree.Port(LAYER, 1, 7, ((1, 2),)), tree.Mac((), 0, 1),
    tree.MacGroup(()), tree.Multicast(LAYER, tree.IP6), tree.Length(0, 99), tree.Detail(LAYER, tree.IP, 6, ((2, 2), (18, 18))),
    tree.FirstFragment(LAYER), *(tree.Field((), n, 3, ((1, 1),)) for n in range(9)), tree.Tunnel((), tree.VXLAN, ((5, 6),)),
    tree.ProtoChain(LAYER, tree.IP6, 6), tree.Compare(LOAD, "=", tree.Binary("&", tree.WireLength(), LOAD)),
)  # fmt: skip
FRAME: dict[str, Any] = {
    "layers": ["eth", "ip", "tcp"], "eth.src": "02:00:00:00:00:01", "eth.dst": "02:00:00:00:00:02", "eth.type": 0x800,
    "ip.src": "10.0.0.1", "ip.dst": "10.0.0.2", "ip.proto": 6, "tcp.srcport": 4000, "tcp.dstport": 80, "tcp.flags": ["syn"],
    "fragment": "none", "ports": "seen", "headers_cut": False, "wire_bytes": 60, "captured_bytes": 60,
}  # fmt: skip
ARP = {"layers": ["eth", "arp"], "eth.type": 0x806, "arp.src": "10.0.0.1", "arp.dst": "10.0.0.2", "ports": "none"}
TAGS = {"layers": ["eth", "vlan", "ip", "tcp"], "vlan.id": [7]}
LATER = {"fragment": "later", "ports": "hidden", "tcp.srcport": None, "tcp.dstport": None}
CUT = {"captured_bytes": 30, "ports": "cut", "tcp.srcport": None, "tcp.dstport": None, "ip.dst": None, "headers_cut": True}


def packet(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**FRAME, **changes}.items() if value is not None}


def test_there_is_one_of_each_kind_and_it_has_words_for_every_packet() -> None:
    assert {type(test) for test in ONE_OF_EACH} == set(get_args(tree.Test))
    for test in ONE_OF_EACH:
        assert describe(test).strip()
        for changes in ({}, ARP, TAGS, LATER, CUT, {"layers": [], "eth.type": None, "eth.src": None, "eth.dst": None}):
            observed(test, packet(**changes))
            assert unseen(test, packet(**changes))


SEEN = [
    ("tcp dst port 5432", {}, "destination port is 80"),
    ("udp dst port 53", {}, "protocol is tcp"),
    ("src host 10.9.9.9", {}, "source is 10.0.0.1"),
    ("ip6 src host ::1", {}, "it is ip"),
    ("ip proto 47", ARP, "it is arp"),
    ("src net 11.0.0.0/8", ARP, "source is 10.0.0.1"),
    ("vlan 5", TAGS, "vlan is 7"),
    ("vlan 5", {}, "it has no VLAN tags"),
    ("arp", TAGS, "it has 1 VLAN tag"),
    ("less 50", {}, "it has 60 bytes"),
    ("ether src host 2:0:0:0:0:9", {}, "source is 02:00:00:00:00:01"),
    ("tcp[tcpflags] & tcp-fin != 0", {}, "flags are syn"),
    ("dscp ef", {"ip.dsfield.dscp": 0}, "dscp is 0"),
    ("dscp ef", ARP, "it is arp"),
    ("fragment later", {}, "it is no fragment"),
    ("fragment later", {"fragment": "first"}, "it is a first fragment"),
    ("ip ttl 1", {"ip.ttl": 64}, "ttl is 64"),
    ("inner (tcp dst port 80)", {}, ""),
    ("tcp dst port 5432", LATER, "it is a later fragment"),
]


@pytest.mark.parametrize(("text", "changes", "said"), SEEN)
def test_what_the_packet_shows_instead_is_said(text: str, changes: dict[str, Any], said: str) -> None:
    assert observed(asked_by(text)[-1], packet(**changes)) == said


def test_why_a_test_cannot_be_answered_is_said() -> None:
    port, address = asked_by("tcp dst port 80")[-1], asked_by("dst host 10.0.0.2")[-1]
    assert unseen(port, packet(**LATER)) == "it is a later fragment"
    assert unseen(port, packet(**CUT)) == unseen(address, packet(**CUT)) == "only 30 of 60 bytes were captured"
    assert unseen(address, packet()) == "the frame ends after 60 bytes"


A, B, C = (tree.VlanId((), ((n, n),)) for n in range(3))


@pytest.mark.parametrize(
    ("node", "answers", "answer", "tests"),
    [
        (And((A, B)), {A: TRUE, B: FALSE}, FALSE, [B]),
        (And((A, B)), {A: FALSE}, FALSE, [A]),
        (Or((A, B)), {A: FALSE, B: FALSE}, FALSE, [A, B]),
        (Not(Or((A, B))), {A: FALSE, B: TRUE}, FALSE, [B]),
        (And((A, Or((B, C)))), {A: TRUE, B: FALSE, C: FALSE}, FALSE, [B, C]),
        (And((A, B)), {A: UNDETERMINED, B: FALSE}, FALSE, [B]),
        (And((A, B, C)), {A: UNDETERMINED, B: TRUE, C: TRUE}, UNDETERMINED, [A]),
        (Or((A, B, C)), {A: FALSE, B: UNDETERMINED, C: FALSE}, UNDETERMINED, [B]),
        (And(()), {True: TRUE}, TRUE, [True]),
        (Or(()), {False: FALSE}, FALSE, [False]),
    ],
)
def test_the_tests_an_answer_comes_from(node: Node, answers: dict[Any, int], answer: int, tests: list[Any]) -> None:
    assert reasons(node, answers) == (answer, tests)
