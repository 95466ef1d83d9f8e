"""Expressions in our own words, that the tests ask us, the twin and, where it has such a field, tshark."""

from __future__ import annotations

from tests.stages.filter.expressions import batches

_TEXT = r"""
port {80, 443, 8000-8100} | host {10.0.0.1, 10.0.0.2, fe80::1} | src net {10.0.0.0/8, 2001:db8::/32} | proto {tcp, udp, 47}
vlan {10, 20-29} and ip | vlan 1-10 | ether host {02:00:00:00:00:0a, 01:00:5e:00:00:00/24} | dst port {53, 80} or {443}
ether src 02:00:00:00:00:00/02:00:00:00:00:00 | ether dst 01:00:5e:00:00:00/25 | ether src 00:00:00:00:00:0a/00:00:00:00:00:0f
tcp flags syn | tcp flags syn,ack | tcp flags syn/syn,ack | not tcp flags rst | tcp flags 0/0xff | tcp flags fin,psh,urg and port 80
dscp ef | dscp {10, 12-20} | dscp != 0 | ecn ce | ecn {ect0, ect1} | ttl 1 | ttl <= 5 | ttl 1-63 | ip ttl > 64 | ip6 ttl 255
not ttl 64 | fragment | fragment first | fragment later | fragment atomic | fragment none | not fragment
fragment {first, atomic} and ip6 | ip6 ext hopopts | ip6 ext routing | ip6 ext {fragment, dstopts} | ip6 ext ah | ip6 ext esp
not ip6 ext 0 | flowlabel 5 | flowlabel > 5 | pcp 5 | vlan pcp 1 | vlan 10 pcp 0-4 and ip | vlan depth 0 | vlan depth 2
vlan depth >= 3 | vlan depth 8 | vlan and vlan depth 1 | len 64-128 | len {60, 100-200} and tcp | payload[0] = 0x47
payload[0:4] = 0x47455420 | payload[0:2] != 0x1603 | payload begins "GET " | payload begins "\x16\x03\x01" | l4[0:2] = 80
l4[2:2] < 1024 | l4 tcp | l4 {udp, 132} | l4 esp | l4[payload[0]] != 0 | payload[3] & 0xf = 2 | vlan and dscp ef | vlan and ttl 1
vlan and payload begins "GET" | not payload[0] >= 0 | l4[0] + payload[0] > 0x60 | inner | inner (tcp) | inner (not tcp)
not inner (tcp) | inner gre | inner gre key 7 | inner gre key {100, 5001-0xffffffff} (ip) | inner erspan | inner erspan id 100-1023
inner vxlan | inner vxlan vni 5001 (ip) | inner geneve vni {7, 100} | inner geneve (arp) | inner gtp | inner gtp teid != 7 (udp)
inner mpls | inner mpls label 100 | inner mpls label {16, 5001} (ip6) | inner ipip | inner ipip (tcp port {80, 443}) | inner (inner)
inner (inner (tcp)) | inner (inner (inner (ip))) | inner (inner (inner (inner))) | inner (vlan 10 and ip) | inner (vlan or ip)
inner (ether src 02:00:00:00:00:0a) | inner (not broadcast) | inner (ether multicast) | inner (tcp flags syn) | inner (ttl 1)
inner (dscp ef) | inner (fragment) | inner (fragment later and udp) | inner (ip6 ext hopopts) | inner (payload begins "GET ")
inner (l4[0:2] = 80) | inner (ether[0] = 2) | inner (ether[0] != 2) | inner (vlan depth 1) | inner (pcp 5) | inner (port 53)
inner (src net 10.0.0.0/8 or arp) | inner (ip6 net fe80::/10) | inner (icmp) | inner (ip multicast) | vlan and inner (tcp)
inner (tcp) and udp | inner gre (inner vxlan (udp)) | inner vxlan (host 10.0.0.1) or inner gre (host 10.0.0.2) | inner (less 100)
inner (vlan and vlan) | inner (icmp6 or ip6 multicast)
"""

OWN: tuple[str, ...] = tuple(text.strip() for line in _TEXT.strip().splitlines() for text in line.split(" | "))


def own_batches() -> list[tuple[str, ...]]:
    return batches(OWN, ())
