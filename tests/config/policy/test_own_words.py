"""Our own words: two ways to say the same, mistakes and where they are, and that libpcap takes none of them."""

from __future__ import annotations

import pytest

from broker.config.policy import PolicyError, parse_expression
from broker.config.policy.lexer import WORDS
from broker.config.policy.names import SERVICES
from broker.config.policy.own import WORDS as OWN_WORDS
from broker.config.policy.refused import WORDS as REFUSED_WORDS
from tests import libpcap
from tests.stages.filter.own_expressions import OWN

SETS = {
    "web": ("10.1.0.0/24", "2001:db8::/64", "192.168.1.1"),
    "ports": ("80", "443", "8000-8080"),
    "cards": ("02:00:00:00:00:0a",),
    "tags": ("10", "20-29"),
}

SAME = [
    ("port {80, 443}", "port { 443 , 80 }"),
    ("port {80, 81, 82}", "portrange 80-82"),
    ("port {$ports}", "port $ports"),
    ("port {8081-9000, $ports}", "port {80, 443, 8000-9000}"),
    ("tcp port {http}", "tcp port http"),
    ("port {http}", "port http"),
    ("udp port 53 or {67, 68}", "udp port 53 or udp port {67, 68}"),
    ("src {10.0.0.1}", "src host {10.0.0.1}"),
    ("net {$web}", "net $web"),
    ("net {10, 10.1}", "net {10.0.0.0/8}"),
    ("net {192.0.0.1 mask 255.0.0.255}", "net 192.0.0.1 mask 255.0.0.255"),
    ("src net {$web, fe80::/10}", "src net {fe80::/10, 2001:db8::/64, 192.168.1.1/32, 10.1.0.0/24}"),
    ("proto {tcp}", "proto \\tcp"),
    ("ether proto {arp}", "ether proto \\arp"),
    ("proto {icmp6, 17}", "proto 58 or proto 17"),
    ("ether host {$cards}", "ether host $cards"),
    ("ether src 02:00:00:00:00:00/24", "ether src 02:00:00:00:00:00/ff:ff:ff:00:00:00"),
    ("vlan 20-10", "vlan {10-20}"),
    ("vlan {10, 11, 12-20}", "vlan 10-20"),
    ("vlan (10)", "vlan {10}"),
    ("vlan $tags", "vlan {10, 20-29}"),
    ("tcp flags syn,ack", "tcp flags 0x12"),
    ("tcp flags ack,syn", "tcp flags syn,ack/syn,ack"),
    ("tcp flags syn/syn,ack", "tcp flags 2/0x12"),
    ("dscp ef", "dscp 46"),
    ("dscp {af11-af13}", "dscp 10-14"),
    ("dscp cs1", "dscp = 8"),
    ("ecn != not-ect", "ecn 1-3"),
    ("ecn {ect0, ect1}", "ecn 1-2"),
    ("ttl < 5", "ttl 0-4"),
    ("ttl > 5", "ttl >= 6"),
    ("fragment", "fragment {first, later}"),
    ("ip6 ext routing", "ip6 ext 43"),
    ("ip6 fragment later", "ip6 fragment = later"),
    ("len 64-128", "len {64-128}"),
    ("len {60}", "len = 60"),
    ("vlan depth == 2", "vlan depth 2"),
    ("l4 tcp", "l4 6"),
    ('payload begins "A"', "payload[0] = 65"),
    ('payload begins "GET "', "payload[0:4] = 0x47455420"),
    ('payload begins "\\x16\\x03\\x01"', "payload[0:2] = 0x1603 and payload[2] = 1"),
    ("inner gre 7", "inner gre key 7"),
    ("inner vxlan vni 5 (tcp)", "inner vxlan vni 5-5 (tcp)"),
    ("vlan and inner (tcp)", "vlan and (inner (tcp))"),
    ("inner (vlan) and inner (tcp)", "inner (vlan) and (inner (tcp))"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_two_ways_to_say_the_same(one: str, two: str) -> None:
    assert parse_expression(one, SETS) == parse_expression(two, SETS)


MISTAKES = [
    # expression, offset, part of the message
    ("port {80", 8, "expected ',' or '}'"),
    ("port {}", 6, "unexpected '}', expected what 'port' is about"),
    ("port {80 443}", 9, "expected ',' or '}'"),
    ("port {80,}", 9, "unexpected '}'"),
    ("port {10.0.0.1}", 6, "'10.0.0.1' is not a port"),
    ("port {70000}", 6, "port 70000 is above 65535"),
    ("udp port {http}", 10, "'http' is a port of tcp, not of udp"),
    ("port {$web}", 6, "takes ports, but set 'web' has addresses"),
    ("port {$nothing}", 6, "unknown set '$nothing'"),
    ("port {tcp}", 6, "unexpected 'tcp', expected what 'port' is about"),
    ("host {10.0.0.0/8}", 6, "a mask makes a net: write 'net 10.0.0.0...'"),
    ("host {$web}", 6, "set 'web' has the net 10.1.0.0/24"),
    ("ip6 host {10.0.0.1}", 10, "is an IPv4 address, but 'ip6' is asked for"),
    ("proto {nothing}", 7, "unknown protocol 'nothing'"),
    ("{80}", 0, "unexpected '{', expected a test"),
    ("tcp and {80}", 8, "no 'host', 'net' or 'port' before it"),
    ("ether src 02:00:00:00:00:01/24", 10, "has bits set that the mask leaves out"),
    ("ether src 02:00:00:00:00:00/49", 28, "at most 48, not 49"),
    ("ether src 02:00:00:00:00:00/x", 28, "expected the mask"),
    ("geneve and ether src 02:00:00:00:00:00/24", 21, "take no mask"),
    ("vlan 10-5000", 5, "VLAN 5000 is above 4095"),
    ("vlan {10", 8, "expected ',' or '}'"),
    ("vlan $web", 5, "VLAN takes numbers, but set 'web' has addresses"),
    ("vlan pcp", 8, "expected a number up to 7, a range, a comparison or '{'"),
    ("vlan pcp 8", 9, "priority 8 is above 7"),
    ("vlan depth 9", 11, "is above 8"),
    ("mpls and vlan 1-2", 9, "no VLAN tags behind 'mpls'"),
    ("pcp", 3, "expected a number up to 7"),
    ("tcp flags", 9, "expected fin, syn, rst, psh, ack, urg, ece, cwr or a number up to 255"),
    ("tcp flags syn,", 14, "unexpected the end"),
    ("tcp flags sin", 10, "unexpected 'sin'"),
    ("tcp flags syn/ack", 10, "not among those behind it"),
    ("tcp flags 0", 10, "no flag is asked for: write '0/0xff'"),
    ("tcp flags 256", 10, "unexpected '256'"),
    ("udp flags syn", 4, "unexpected 'flags'"),
    ("dscp 64", 5, "DSCP 64 is above 63"),
    ("dscp af55", 5, "expected cs0, cs1, "),
    ("dscp {ef, }", 10, "unexpected '}'"),
    ("dscp = {1}", 7, "unexpected '{'"),
    ("dscp > $ports", 7, "'>' takes one number"),
    ("dscp > 1-2", 7, "'>' takes one number"),
    ("ecn ect2", 4, "expected not-ect, ect1, ect0, ce, a number up to 3, a range, a comparison or '{'"),
    ("ttl", 3, "unexpected the end"),
    ("ttl 256", 4, "TTL 256 is above 255"),
    ("ttl 1 or 2", 9, "no 'host', 'net' or 'port' before it"),
    ("ip flowlabel 5", 3, "there is no 'flowlabel' in IPv4"),
    ("ip ext 0", 3, "there is no 'ext' in IPv4"),
    ("flowlabel 1048576", 10, "flow label 1048576 is above 1048575"),
    ("fragment last", 9, "unexpected 'last'"),
    ("ip6 ext tcp", 8, "expected hopopts, routing, fragment, "),
    ("ip6 ext 6", 8, "6 is no IPv6 extension header"),
    ("len 64-x", 4, "expected a number up to 4294967295"),
    ("len {}", 5, "expected a number"),
    ("l4 nothing", 3, "expected ip, hopopt, "),
    ("l4[0:3] = 1", 5, "3 bytes cannot be read at once"),
    ("payload", 7, "expected 'begins' or '['"),
    ("payload begins GET", 15, "expected text in quotes"),
    ('payload begins ""', 15, "0 bytes, expected 1 to 64"),
    ('payload begins "' + 65 * "a" + '"', 15, "65 bytes, expected 1 to 64"),
    ('payload begins "a\\q"', 17, "'\\q' means nothing"),
    ('payload begins "a', 15, "unexpected character '\"'"),
    ("inner foo", 6, "expected '(' or a tunnel: gre, erspan, vxlan, geneve, gtp, mpls, ipip"),
    ("inner (", 7, "expected a test"),
    ("inner (tcp", 10, "expected ')'"),
    ("inner (inner (inner (inner (inner (tcp)))))", 28, "tunnels are followed 4 deep"),
    ("inner gre key", 13, "expected a number up to 4294967295"),
    ("inner gre vni 5", 10, "unexpected 'vni'"),
    ("inner ipip 5", 11, "unexpected '5'"),
    ("inner vxlan vni 16777216", 16, "VXLAN VNI 16777216 is above 16777215"),
    ("inner erspan id 1024", 16, "ERSPAN session id 1024 is above 1023"),
    ("inner mpls label 1048576", 17, "is above 1048575"),
    ("inner (tcp) or 5", 15, "no 'host', 'net' or 'port' before it"),
    ("host dscp", 5, "unknown name 'dscp': names are not looked up"),
    ("port inner", 5, "not a service"),
    ("vxlan 5", 0, "write 'inner vxlan'"),
]


@pytest.mark.parametrize(("text", "offset", "message"), MISTAKES, ids=[text for text, _, _ in MISTAKES])
def test_a_mistake_is_refused_where_it_is(text: str, offset: int, message: str) -> None:
    with pytest.raises(PolicyError) as raised:
        parse_expression(text, SETS)
    assert message in raised.value.message
    assert raised.value.offset == offset


def test_none_of_our_words_is_a_word_or_a_service_of_libpcap() -> None:
    begin = OWN_WORDS - {"ah", "esp", "mpls", "geneve", "vxlan"}
    assert not begin & WORDS
    assert not begin & REFUSED_WORDS.keys()
    assert not OWN_WORDS & SERVICES.keys()


@libpcap.needs_libpcap
@pytest.mark.parametrize("text", OWN)
def test_libpcap_takes_none_of_them(text: str) -> None:
    parse_expression(text, {})
    with pytest.raises(libpcap.RefusedError):
        libpcap.Filter(text)
