"""What an expression may say, what it may not, and where the error is."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config.policy import PolicyError, parse_expression, read_sets
from broker.config.policy.refused import REFUSED
from tests import libpcap
from tests.stages.filter.expressions import EXPRESSIONS, RARE
from tests.stages.filter.own_expressions import OWN

SETS = {
    "web": ("10.1.0.0/24", "2001:db8::/64", "192.168.1.1"),
    "hosts": ("10.0.0.1", "fe80::1"),
    "ports": ("80", "443", "8000-8080", "domain"),
    "cards": ("02:00:00:00:00:0a",),
    "mixed": ("10.0.0.1", "80"),
    "empty": (),
}

SAME = [
    ("tcp port 80 or 443", "tcp port 80 or tcp port 443"),
    ("tcp port (80 or 443)", "tcp port 80 or tcp port 443"),
    ("host 10.0.0.1", "src or dst host 10.0.0.1"),
    ("dst or src 10.0.0.1", "src or dst host 10.0.0.1"),
    ("src 10.0.0.1", "src host 10.0.0.1"),
    ("net 10.1", "net 10.1.0.0/16"),
    ("net 10", "net 10.0.0.0/8"),
    ("net 10.1 mask 255.255", "net 10.1.0.0 mask 255.255.0.0"),
    ("ip && ! tcp || udp", "ip and not tcp or udp"),
    ("wlan host 2:0:0:0:0:a", "ether host 2:0:0:0:0:a"),
    ("link host 2:0:0:0:0:a", "ether host 02-00-00-00-00-0a"),
    ("ether host 0200.0000.000a", "ether host 02000000000a"),
    ("vlan (10)", "vlan 10"),
    ("portrange 90-80", "portrange 80-90"),
    ("portrange 010-smtp", "portrange 10-25"),
    ("portrange ftp-ftp-data", "tcp portrange 20-21"),
    ("host 010.0.0.0001", "host 10.0.0.1"),
    ("decnet host 1.300", "decnet host 1324"),
    ("portrange 80", "port 80"),
    ("tcp port https", "tcp port 443"),
    ("port http", "tcp port 80"),
    ("udp port domain", "udp port 0x35"),
    ("ip proto \\udp", "ip proto 17"),
    ("ip proto ospf", "ip proto 89"),
    ("carp", "vrrp"),
    ("length > 99", "greater 100"),
    ("100 <= len", "len >= 100"),
    ("len == 60", "len = 60"),
    ("\ttcp \n", "tcp"),
    ("port $ports", "port $ports"),
    ("src $web", "src net $web"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_two_ways_to_say_the_same(one: str, two: str) -> None:
    assert parse_expression(one, SETS) == parse_expression(two, SETS)


MISTAKES = [
    # expression, offset, part of the message
    ("tcp port", 8, "expected what 'tcp port' is about"),
    ("tcp prot 80", 4, "unexpected 'prot'"),
    ("hots 10.0.0.1", 0, "unknown word 'hots' (names are not looked up: write the address)"),
    ("host www.example.org", 5, "names are not looked up: write the address"),
    ("ether host router", 11, "names are not looked up: write the Ethernet address"),
    ("net home", 4, "names are not looked up"),
    ("10.0.0.1", 0, "say what it is"),
    ("ip and", 6, "unexpected the end"),
    ("ip and and tcp", 7, "unexpected 'and'"),
    ("(tcp or udp", 11, "expected ')'"),
    ("tcp)", 3, "expected 'and', 'or' or the end"),
    ("tcp udp", 4, "unexpected 'udp'"),
    ("(port 80) or 443", 13, "no 'host', 'net' or 'port' before it"),
    ("ip or 10.0.0.1", 6, "no 'host', 'net' or 'port' before it"),
    ("vlan 10 or 20", 11, "no 'host', 'net' or 'port' before it"),
    ("port 65536", 5, "port 65536 is above 65535"),
    ("portrange 1-70000", 10, "port 70000 is above 65535"),
    ("port 80-90", 5, "write 'portrange 80-90'"),
    ("port gopherhole", 5, "not a service in the embedded table"),
    ("udp port http", 9, "'http' is a port of tcp, not of udp"),
    ("port 10.0.0.1", 5, "'10.0.0.1' is not a port"),
    ("icmp port 80", 0, "'icmp port' does not exist"),
    ("ip port 80", 0, "'ip port' does not exist"),
    ("host 256.1.1.1", 5, "'256.1.1.1' is not an IPv4 address: a part is above 255"),
    ("host 1.2.3.4.5", 5, "not looked up"),
    ("net 10.0.0.0/33", 13, "at most 32, not 33"),
    ("net 10.0.0.1/24", 4, "bits set that the mask '24' leaves out"),
    ("host 10.0.0.0/24", 5, "write 'net 10.0.0.0...'"),
    ("net 10/8", 4, "write the net as an address: '10.0.0.0/8'"),
    ("net 10.1.2.3 mask 255.0.0.0", 4, "bits set that the mask"),
    ("net 10.0.0.0 mask 8", 18, "expected the mask, as an address"),
    ("net 2001:db8::1/32", 4, "bits set behind its first 32"),
    ("net 2001:db8::/129", 15, "at most 128"),
    ("ip host ::1", 8, "'::1' is an IPv6 address, but 'ip' is asked for"),
    ("ip6 host 10.0.0.1", 9, "'10.0.0.1' is an IPv4 address, but 'ip6' is asked for"),
    ("tcp host 10.0.0.1", 0, "'tcp' has no host: write 'tcp and host ...'"),
    ("host 2:0:0:0:0:a", 5, "write 'ether host'"),
    ("ether host 10.0.0.1", 11, "not an Ethernet address"),
    ("ether host 1:2:3:4:5", 11, "neither an IPv6 nor an Ethernet address"),
    ("ether port 80", 0, "'ether port' does not exist"),
    ("ether", 0, "alone says nothing"),
    ("vlan 4096", 5, "VLAN 4096 is above 4095"),
    ("vlan and vlan and vlan and vlan and vlan", 36, "more than 4 VLAN tags"),
    ("ether proto 65536", 12, "above 65535"),
    ("ether proto nothing", 12, "unknown ethertype 'nothing' (names: ip, arp, "),
    ("iso proto nothing", 10, "unknown OSI protocol 'nothing' (names: clnp, esis, isis)"),
    ("isis proto 300", 11, "300 is above 255: the field cannot hold it"),
    ("ip proto 256", 9, "256 is above 255: the field cannot hold it"),
    ("ip proto nothing", 9, "unknown protocol 'nothing'"),
    ("ip proto icmp", 9, "unexpected 'icmp'"),
    ("tcp proto 6", 0, "'tcp proto' does not exist"),
    ("src proto 6", 4, "'proto' takes no direction"),
    ("src and tcp", 8, "expected 'dst'"),
    ("ip broadcast", 0, "needs a netmask"),
    ("arp multicast", 0, "does not exist"),
    ("tcp[13 = 2", 7, "expected ']'"),
    ("tcp[13]", 7, "expected a comparison"),
    ("tcp[13:3] = 2", 7, "3 bytes cannot be read at once, only 1, 2 or 4"),
    ("tcp[] = 2", 4, "expected a number, 'len' or 'protocol[offset]'"),
    ("tcp[0] > 1 > 0", 11, "expected 'and', 'or' or the end"),
    ("stp[0] = 1", 0, "the bytes of 'stp' cannot be asked for"),
    ("port 80 + 1", 8, "expected 'and', 'or' or the end"),
    ("ip[0] / 0 = 1", 10, "division by zero"),
    ("ip[0] % (2 - 2) = 1", 16, "division by zero"),
    ("ip[0] / tcp[0] = 1", 15, "division by zero"),
    ("ip[0] << 32 = 1", 12, "shift by more than 31 bits"),
    ("ip[0] >> (16 + 16) = 1", 19, "shift by more than 31 bits"),
    ("ip[0] + (((1 +", 14, "expected a number"),
    ("1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+(1+1)))))))))))))))=1", 48, "more than 16 numbers"),
    ("less than 5", 5, "expected a number"),
    ("len 5", 4, "expected a comparison"),
    ("len > len and", 13, "unexpected the end"),
    ("byte 0 & 1", 7, "'byte 0 & 1': libpcap 1.10 computes this without reading the byte: write 'ether[0] & 1 != 0'"),
    ("byte 0 > 256", 9, "256 is above 255"),
    ("byte 0 ! 1", 7, "expected '=', '<' or '>'"),
    ("mpls and arp", 9, "behind 'mpls' only ip and ip6 can be told apart"),
    ("mpls and vlan", 9, "no VLAN tags behind 'mpls'"),
    ("mpls 1048576", 5, "label 1048576 is above 1048575"),
    ("pppoes and vlan", 11, "no VLAN tags behind 'pppoes'"),
    ("pppoes and broadcast", 11, "there are no Ethernet addresses in PPP"),
    ("pppoes 65536", 7, "PPPoE session 65536 is above 65535"),
    ("geneve 16777216", 7, "Geneve VNI 16777216 is above 16777215"),
    ("geneve and protochain 6", 11, "not followed behind 'geneve'"),
    ("mpls and mpls and mpls and mpls and mpls and mpls and mpls and mpls and mpls", 72, "that many headers are not followed: at most 8"),
    ("vxlan 5", 0, "write 'inner vxlan'"),
    ("llc nothing", 4, "unknown type of LLC frame 'nothing' (types: i, s, u, rr, "),
    ("decnet host 1.2.3", 12, "DECnet addresses are 'area.node'"),
    ("decnet net 1.2/16", 15, "have no nets"),
    ("decnet host 64.1", 12, "the field cannot hold it"),
    ("src protochain 6", 4, "'protochain' takes no direction"),
    ("tcp protochain 6", 0, "'tcp protochain' does not exist"),
    ("host 08", 5, "octal"),
    ("less 4294967296", 5, "does not fit in 32 bits"),
    ("gateway 10.0.0.1", 0, "'gateway' is not for this: it asks which of a router's names"),
    ("tcp and inbound", 8, "does not say its direction"),
    ("wlan and subtype beacon", 0, "alone says nothing"),
    ("tcp and subtype beacon", 8, "traffic is Ethernet"),
    ("tcp # web", 4, "unexpected character '#'"),
    ("tcp _x", 4, "unexpected character '_'"),
    ("net $nowhere", 4, "unknown set '$nowhere' (sets: cards, empty, hosts, mixed, ports, web)"),
    ("port $web", 5, "takes ports, but set 'web' has addresses"),
    ("net $ports", 4, "takes addresses, but set 'ports' has ports"),
    ("net $mixed", 4, "but set 'mixed' has ports"),
    ("host $web", 5, "set 'web' has the net 10.1.0.0/24: write 'net $web'"),
    ("ip net $web", 7, "set 'web' has IPv6 addresses"),
    ("ether host $web", 11, "takes Ethernet addresses"),
    ("ip proto $ports", 9, "expected a number or \\name"),
    ("tcp port $", 9, "unexpected character '$'"),
]


@pytest.mark.parametrize(("text", "offset", "message"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_a_mistake_is_refused_where_it_is(text: str, offset: int, message: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_expression(text, SETS)
    assert message in raised.value.message
    assert raised.value.offset == offset


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (("10.0.0.0/33",), "set 's': '10.0.0.0/33': the length after / is above 32"),
        (("10.0.0.1/8",), "set 's': '10.0.0.1/8' has bits set behind its first 8"),
        (("www.example.org",), "set 's': 'www.example.org' is not a service in the embedded table: write the port number"),
        (("10.1",), "set 's': '10.1' is not a service in the embedded table: write the port number"),
        (("80", "70000"), "set 's': port 70000 is above 65535"),
        (("fe80::/x",), "set 's': 'fe80::/x': the length after / is not a number"),
        (("300.1.1.1",), "set 's': '300.1.1.1' is not an IPv4 address: 300 is above 255"),
        (("",), "set 's': an empty element"),
    ],
)
def test_a_set_with_something_else_in_it_is_refused(elements: tuple[str, ...], message: str) -> None:
    with pytest.raises(PolicyError) as raised:
        read_sets({"s": elements})
    assert (raised.value.message, raised.value.offset) == (message, -1)


@libpcap.needs_libpcap
@pytest.mark.parametrize("text", [text for text, _, _ in MISTAKES if "$" not in text])
def test_what_we_refuse_libpcap_refuses_too_or_we_have_said_why_not(text: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_expression(text, {})
    try:
        libpcap.Filter(text)
    except libpcap.RefusedError:
        return
    assert any(reason in raised.value.message for reason in REFUSED.values())


_words = st.sampled_from(
    [
        *sorted({word for text in (*EXPRESSIONS, *RARE) for word in text.replace("(", " ( ").replace(")", " ) ").split()}),
        "$web",
        "$ports",
        "and",
        "or",
    ]
)


_own_words = st.sampled_from(sorted({word for text in OWN for word in re.split(r"([{}(),]|\s)", text) if word.strip()}))


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(st.one_of(st.lists(st.one_of(_words, _own_words), max_size=12).map(" ".join), st.text(max_size=40)))
def test_any_text_is_understood_or_refused_in_words(text: str) -> None:
    refusal = None
    try:
        parse_expression(text, SETS)
    except PolicyError as error:
        refusal = error
    assert refusal is None or (refusal.message and 0 <= refusal.offset <= len(text))


@libpcap.needs_libpcap
@settings(max_examples=1500, deadline=None, derandomize=True)
@given(st.lists(_words.filter(lambda word: "$" not in word), max_size=7).map(" ".join))
def test_of_the_words_we_know_libpcap_takes_what_we_take(text: str) -> None:
    try:
        parse_expression(text, {})
    except PolicyError as error:
        ours = error.message
    else:
        ours = ""
    try:
        libpcap.Filter(text, optimize=False)
        theirs = ""
    except libpcap.RefusedError as error:
        theirs = str(error)
    if not any(reason in ours for reason in REFUSED.values()):
        assert bool(ours) == bool(theirs), (text, ours, theirs)


def test_deep_nesting_is_refused_not_a_crash() -> None:
    nested = ("(" * 3000 + "tcp" + ")" * 3000, "not " * 3000 + "tcp", "port (" + "(" * 3000 + "80" + ")" * 3001, "ip[" * 3000 + "0")
    for text in (*nested, "(" * 3000 + "len" + ")" * 3000 + " > 5"):
        with pytest.raises(PolicyError, match=r"nested too deep|too much arithmetic"):
            parse_expression(text, {})
    long = " or ".join(f"host 10.{i >> 8}.{i & 255}.1" for i in range(700))
    assert len(parse_expression(long, {}).items) == 701  # type: ignore[union-attr]
    with pytest.raises(PolicyError, match="nested too deep"):
        parse_expression(" or ".join(f"tcp and port {i}" for i in range(600)), {})
    with pytest.raises(PolicyError, match="the text is too long: put addresses and ports into sets: 42,000 characters, at most 16,384"):
        parse_expression("host 10.0.0.1 or tcp " * 2000, {})


def test_ten_thousand_rules_are_read_in_seconds() -> None:
    """A second on a quiet machine."""
    sets = read_sets(SETS)
    chosen = random.Random(1)
    texts = [f"src net 10.{chosen.randrange(256)}.0.0/16 and tcp dst port {n} or host fe80::{n:x}" for n in range(10_000)]
    start = time.process_time()
    for text in texts:
        parse_expression(text, sets)
    assert time.process_time() - start < 6
