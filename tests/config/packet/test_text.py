"""Fields in one line are the fields of a configuration, and mistakes in them are told in words."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.packet import build, fields_text, parse_fields
from broker.core.errors import ConfigErrors


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("ip.src=10.1.0.5 tcp.dst=5432", {"ip.src": "10.1.0.5", "tcp.dst": "5432"}),
        ("  ip.src = 10.1.0.5\n tcp.dst= 5432 ", {"ip.src": "10.1.0.5", "tcp.dst": "5432"}),
        ("tcp tcp.flags=syn,ack", {"tcp": "true", "tcp.flags": ["syn", "ack"]}),
        ("payload='GET / HTTP' udp", {"payload": "GET / HTTP", "udp": "true"}),
        (r'payload="a\r\n\"b\" \u00e9"', {"payload": 'a\r\n"b" é'}),
        ("vxlan.vni=5 inner=(eth.src=02:00:00:00:00:01 inner=(udp)) length=90",
         {"vxlan.vni": "5", "inner": {"eth.src": "02:00:00:00:00:01", "inner": {"udp": "true"}}, "length": "90"}),
        ("{ip.src: 10.1.0.5, tcp.flags: [syn, ack], inner: {udp: true}}",
         {"ip.src": "10.1.0.5", "tcp.flags": ["syn", "ack"], "inner": {"udp": "true"}}),
        ("", {}),
    ],
)  # fmt: skip
def test_a_line_is_read_as_the_fields_of_a_configuration(text: str, fields: dict[str, object]) -> None:
    assert parse_fields(text) == fields


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tcp.dst=", "packet:1:9: a value of 'tcp.dst' is missing"),
        ("tcp.dst=80 tcp.dst=81", "packet:1:19: 'tcp.dst' is given twice"),
        ("tcp.flags=syn,", "packet:1:15: a value of 'tcp.flags' is missing"),
        ("inner=(udp", "packet:1:11: the parenthesis of 'inner' is not closed"),
        ("udp) tcp", "packet:1:4: found ')', expected a field such as tcp.dst=443"),
        ("udp\n  and tcp.dst!=3", "packet:2:14: found '!', expected a field such as tcp.dst=443"),
        ("=3", "packet:1:1: found '=', expected a field such as tcp.dst=443"),
        ('payload="\\x"', "packet:1:9: the value of 'payload' has an escape that JSON has not"),
        ('payload="', "packet:1:9: a value of 'payload' is missing"),
        ("{udp: [}", "packet:1:8: not YAML: expected the node content, but found '}'"),
    ],
)
def test_what_is_no_field_is_told_with_its_column(text: str, told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_fields(text)
    assert str(caught.value) == told


MISTAKES = [
    ("tcp.sport=1", "unknown field 'tcp.sport'; did you mean 'tcp.srcport'?"),
    ("ttl=3", "unknown field 'ttl'; did you mean 'ip.ttl'?"),
    ("quic=3", "unknown field 'quic'"),
    ("lenght=100", "unknown field 'lenght'; did you mean 'length'?"),
    ("ip.addr=10.0.0.1", "'ip.addr' is either end, expected ip.src or ip.dst"),
    ("udp.port=53", "'udp.port' is either end, expected udp.src or udp.dst"),
    ("tcp.dst=80 tcp.dstport=81", "'tcp.dstport' and 'tcp.dst' are the same field, leave one out"),
    ("tcp.dst=70000", "tcp.dst: 70000 is out of range, expected 0..65535"),
    ("tcp.dst=htps", "tcp.dst: 'htps' is not a port, expected 0..65535 or a name; did you mean 'https'?"),
    ("tcp.dst=80,81", "tcp.dst: found a list, expected a port"),
    ("ip.src=10.1.0", "ip.src: '10.1.0' is not an IPv4 address"),
    ("ip.src=2001:db8::1", "ip.src: '2001:db8::1' is an IPv6 address, expected an IPv4 address; there are ipv6.src and ipv6.dst too"),
    ("ipv6.dst=fe80::1%eth0", "ipv6.dst: 'fe80::1%eth0' is not an IPv6 address"),
    ("eth.src=02:00:00:00:00", "eth.src: '02:00:00:00:00' is not an Ethernet address, expected one such as 02:00:00:00:00:01"),
    ("vlan.id=5,4096", "vlan.id[1]: 4096 is out of range, expected 0..4095"),
    ("vlan.id=1,2,3 vlan.priority=1,2", "vlan.priority: 2 entries, but vlan.id has 3; expected as many, or one for all"),
    ("tcp.flags=syn,akc", "tcp.flags[1]: unknown flag 'akc'; did you mean 'ack'?"),
    ("tcp.flags.syn=yes", "tcp.flags.syn: found 'yes', expected true or false"),
    ("tcp=false", "tcp: found false, expected true; leave it out where the header is not there"),
    ("hex=012", "hex: '012' is not bytes, expected pairs of hexadecimal digits"),
    ("payload=0x0g", "payload: '0x0g' is not bytes, expected pairs of hexadecimal digits"),
    ("hex=0011 tcp", "hex is the whole frame, expected no other fields"),
    ("tcp.dst=80 udp.dst=53", "tcp and udp in one packet, expected one of them (another packet inside is 'inner')"),
    ("ip.src=10.0.0.1 ipv6.dst=::2", "ip and ipv6 in one packet, expected one of them (another packet inside is 'inner')"),
    ("vxlan gre", "gre and vxlan in one packet, expected one of them (another packet inside is 'inner')"),
    ("vxlan erspan", "ERSPAN is carried in GRE, and there is vxlan"),
    ("vxlan.vni=1 tcp.dst=3", "vxlan is not carried in tcp"),
    ("ip icmpv6", "icmpv6 in ip, expected icmp"),
    ("icmp ipv6", "icmp in ipv6, expected icmpv6"),
    ("arp tcp.dst=4", "tcp and arp in one packet"),
    ("ip.proto=udp tcp.dst=4", "ip.proto: 17, but the other fields make it 6; leave it out"),
    ("eth.type=0x9999 tcp.dst=4", "eth.type: 0x9999, but the other fields make it 0x0800; leave it out"),
    ("ip.frag_offset=1 tcp.dst=4", "a fragment that is not the first has no header of tcp; say ip.proto: tcp for what it is part of"),
    ("ip.frag_offset=1 inner=(ip)", "a fragment that is not the first has no packet inside"),
    ("tcp.dst=4 inner=(ip)", "no packet is inside tcp without a tunnel such as vxlan or gre"),
    ("vlan=4 inner=(ip)", "nothing that a packet is inside of, expected a tunnel such as gre, vxlan, ip or mpls"),
    ("gre payload=a inner=(ip)", "'payload' and 'inner' in one packet, expected one of them"),
    ("gre inner=(payload=a)", "inner: expected an IP packet inside, or an Ethernet frame with fields of eth"),
    ("gtp inner=(eth.src=02:00:00:00:00:01)", "inner: expected an IP packet inside gtp, without Ethernet, labels and arp"),
    ("ip inner=(vlan=3 ip)", "inner: expected an IP packet inside ip, without Ethernet, labels and arp"),
    ("gre.proto=ip6 inner=(ip)", "gre.proto: 0x86dd, but what is inside makes it 0x0800; leave it out"),
    ("geneve.proto_type=ip inner=(vlan=3 ip)", "geneve.proto_type: 0x0800, but what is inside makes it 0x6558; leave it out"),
    ("gre inner=(ip length=90)", "inner: length is of the whole frame, not of a packet inside"),
    ("gre inner=(ip inner=3)", "inner.inner: found '3', expected fields such as {ip.src: 10.1.0.5, tcp.dst: 443}"),
    ("tcp length=20", "length: 20, but the packet takes 54 bytes"),
    ("tcp cut=60", "cut: 60, but the packet has 54 bytes; give its 'length' too"),
    ("", "found an empty mapping, expected fields such as {ip.src: 10.1.0.5, tcp.dst: 443}"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES)
def test_a_mistake_in_a_field_is_told_in_these_words(text: str, told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        build(parse_fields(text))
    assert str(caught.value).partition("; known are")[0] == told


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigErrors) as caught:
        build(parse_fields("ip.ttl=300 tcp.dst=x udp foo=1 inner=(bar=2)"))
    assert len(str(caught.value).splitlines()) == 5


def test_packets_in_one_another_have_an_end() -> None:
    text = "ip"
    for _ in range(30):
        text = f"ip inner=({text})"
    with pytest.raises(ConfigErrors, match="more than 8 packets in one another"):
        build(parse_fields(text))


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = st.from_regex(r"[a-z0-9_.]{1,8}", fullmatch=True)
trees = st.recursive(
    words | st.lists(words, min_size=2, max_size=3), lambda values: st.dictionaries(names, values, max_size=3), max_leaves=8
)


@given(st.dictionaries(names, trees, max_size=4))
def test_a_line_says_all_that_the_fields_say(fields: dict[str, object]) -> None:
    assert parse_fields(fields_text(fields)) == fields


pieces = st.sampled_from([*"=(), '\"\\{}.\n", "ip", "tcp.dst", "inner", "80", "payload", "0x", "é", "\0"])


@given(st.lists(pieces, max_size=20).map("".join))
def test_whatever_is_written_is_built_or_told(text: str) -> None:
    with contextlib.suppress(ConfigErrors):
        packet = build(parse_fields(text))
        assert len(packet.frame) == packet.wirelen >= 14
