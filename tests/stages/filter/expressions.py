"""Expressions that the tests ask both us and libpcap."""

from __future__ import annotations

from tests.stages.filter.judging import MAX_MAPS

_TEXT = """
ip | ip6 | arp | rarp | tcp | udp | sctp | icmp | icmp6 | igmp | vlan | vlan and ip | vlan 10 | not vlan | vlan or ip | port 80
tcp port 80 | udp port 53 | src port 53 | dst port 53 | udp src or dst port 137 | portrange 1-1023 | tcp portrange 80-8080
src and dst port 53 | host 192.168.1.1 | src host 10.0.0.1 | net 192.168 | net 10 | dst net 224.0.0.0/4 | net 10.0.0.0/8 and tcp
src net 10 and dst net 10 | net 0.0.0.0/0 | ip6 net fe80::/10 | net ff00::/8 | src net fe80::/64 | host ::1 | ip6 net ::/0
broadcast | multicast | ip multicast | ip6 multicast | ether proto 0x800 | ether proto 0x88cc | ether proto 0x42 | stp | iso
netbeui | ether proto 6 | ip proto 47 | ip6 proto 44 | proto 50 | proto 6 | less 100 | greater 200 | len != 60 | not tcp
not port 53 | tcp port 80 or 443 | not (tcp or udp) | arp host 192.168.1.1 | arp src net 10 | vlan and vlan
vlan and tcp port 80 | vlan and not ip | vlan and vlan and ip | vlan 1 or vlan 2 | net 192.0.0.1 mask 255.0.0.255
src net 10.0.0.0 mask 255.0.0.0 | ether host ff:ff:ff:ff:ff:ff | ether src 0:0:0:0:0:0 | ah | esp | pim | vrrp | igrp | port https
tcp and not port 22 and not port 80 | ip and not net 192.168.0.0/16 | icmp or icmp6 or arp | decnet | lat | sca | proto 17 or 6
udp and greater 100 | host 127.0.0.1 | host 255.255.255.255 | dst host 224.0.0.251 | tcp src portrange 1024-65535
tcp dst port 80 and src net 10 | vlan and host 10.0.0.1 | vlan and net 10 or arp | not arp and not ip | not ip and not ip6 and not arp
ip proto 132 | sctp port 2905 | ip6 and tcp | ip6 and udp port 53 | ip6 host fe80::1 | src or dst net fe80::/16
ether multicast and not broadcast | port 0 | portrange 0-65535 | tcp port 443 or udp port 443 | (tcp or udp) and (port 53 or 5353)
net 172.16.0.0/12 or 192.168.0.0/16 or 10.0.0.0/8 | ether proto 0x8847 | ether proto 0x8863 or 0x8864 | ip proto 4 or 41
ip6 proto 58 | ip6 proto 0 | ip6 proto 60 | proto 89 | proto 112 | len = 60 | len > 1500 | 64 <= len | ip and len < 64
vlan and vlan 5 | vlan and port 53 | host 0.0.0.0 | rarp host 0.0.0.0 | src net 0.0.0.0/0 and udp | dst port domain
dst net 239.0.0.0/8 or 224.0.0.0/24 | icmp and src net 10 | ether src host ff:ff:ff:ff:ff:ff or arp | src and dst net 10
not (host 10.0.0.1 or port 80) | vlan and not vlan | not not udp | ip proto \\\\tcp | ether proto \\\\arp | host 10.1 | net 127
ip6 net 2001:db8::/33 | ip6 src net fe80::/127 | dst net 10.0.0.0/31 | mopdl or moprc | port (80 or 443) and not src net (10 or 192.168)
"""

_RARE = """
ip[0] & 0xf != 5 ; tcp[tcpflags] & (tcp-syn|tcp-ack) != 0 ; icmp[icmptype] = icmp-echo ; ether[0] & 1 = 0 and ip[16] >= 224
ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) = 0 ; udp[0] + tcp[1] = 53 ; ip[0] % 7 + 62 = 0 ; ip[8] ^ 3 | 2 = 67
len - 14 = ip[2:2] ; ip6[6] = 44 ; icmp6[0] = 135 ; arp[6:2] = 1 ; ether[12:2] > 0x800 ; vlan and ip[8] > 3 ; rarp[7] = 1
ip[-2:2] = 0x800 ; tcp[-2:2] != 1 ; ip[ip[0] & 3] = 0 ; ether[len - 1] = 0 ; ip[len - 20] = 1 ; tcp[len - 0x22] = 0 ; 5 > 4 ; 4 > 5
10 - 5 = 5 and ip ; ip[0] / (ip[1] + 1) = 69 ; ip[0] << ip[1] = 69 ; ether[0] = ether[6] ; not ether[0:4] = 0 ; 1 | 2 = 3
(ip[0] & 0xf) * 4 = 20 ; igmp[0] = 0x16 ; pim[0] > 3 ; sctp[0:2] = 80 ; vrrp[0] = 33 ; ip[0] & - 2 * 3 = 0x40 ; igrp[0] > 5
icmp[0] + icmp[1] = 8 ; tcp[2:2] = tcp[0:2] ; udp[4:2] = len - 34 ; ip[6:2] & 0x1fff = 0 ; ether[ip[0]] > 5 ; 5 < ip[0] ; 64 >= ip[8]
len = len ; ip[2:2] > len ; udp[1] - 55 > 0xfffffff0 ; ether[0:4] * ether[6:4] > 5 ; ether[2:4] + ether[8:4] = 0xa ; ip[0] % ip[1] = 5
ip[12:4] ^ ip[16:4] = 3 ; ip[12:4] | 0xff = 0x0a0000ff ; (tcp[0:2] > 20 or udp[0:2] > 20) and ip ; - 1 = 0xffffffff ; - ip[0] > 5
(((ip[0]))) = 69 ; port 80 or ip[8] = 64 ; port 80 or (5 > 6) ; port 80 or 443 or (len) > 100 ; ip[0] >> 4 = 4 ; not tcp[0] = tcp[1]
ether[10:2] - ether[4:2] = 0xffff ; 1 << (16 + 16) = 0 and ip ; 0x7fffffff + 1 > 0x7fffffff and ip6 ; decnet[2] & 7 = 2 ; atalk[5] > 3
byte 5 > 3 ; byte 12 = 8 ; byte 1 < 3 ; less 60 or byte 0 = 2 ; lat[0] = 1 or sca[0] = 1 or mopdl[0] = 1 or moprc[0] = 1
mpls ; mpls 5 ; mpls and ip ; mpls 3 and mpls and ip6 ; mpls and tcp port 80 ; mpls and host 10.0.0.1 ; mpls and net fe80::/10
mpls and mpls ; mpls and llc ; mpls and ether host 02:00:00:00:00:0a ; mpls and ip[9] = 6 ; mpls and icmp6[0] > 3 ; mpls and udp[1] = 53
mpls and not ip and not ip6 ; vlan and mpls and ip ; vlan and vlan and mpls ; not mpls ; mpls and geneve ; mpls and geneve and ip
mpls and geneve and mpls ; mpls and protochain 6 ; mpls and tcp portrange 1-1023 ; mpls and ip multicast
pppoed ; pppoes ; pppoes 5 ; pppoes and ip ; pppoes and tcp port 80 ; pppoes and ip6 ; pppoes and iso ; pppoes and decnet ; pppoes and arp
pppoes and ether proto 0x21 ; pppoes and ether proto 0xc021 ; pppoes and mpls ; pppoes and mpls and ip ; pppoes and ether[0:2] = 0x21
pppoes and byte 1 = 33 ; pppoes and pppoes ; pppoes and host 10.0.0.1 ; pppoes and net fe80::/10 ; pppoes and isis ; pppoes or ip
pppoes and tcp[13] & 16 != 0 ; vlan and pppoes and ip ; pppoes or mpls or ip ; pppoes and ip6 protochain 6 ; pppoes and stp
geneve ; geneve 10 ; geneve and ip ; geneve and tcp ; geneve and ether host 02:00:00:00:00:0a ; geneve and vlan ; geneve and vlan and ip
geneve and mpls and ip ; geneve and not ip ; geneve and broadcast ; geneve and multicast ; geneve and llc ; geneve and arp
geneve and ether[12:2] = 0x800 ; geneve and ip[9] = 6 ; geneve and tcp[13] & 16 != 0 ; geneve and stp ; geneve and geneve and ip
vlan and geneve and ip ; pppoes and geneve and ip ; geneve and pppoes and ip ; geneve and ip[-2:2] > 0 ; geneve and len > 100
geneve 5 and udp port 53 ; geneve and net 10 ; geneve and ip6 ; not geneve
llc ; llc i ; llc s ; llc u ; llc rnr ; llc ui ; llc rr ; llc ua ; llc test ; llc frmr ; llc dm ; llc xid ; llc SABME ; llc disc ; llc rej
not llc ; vlan and llc ; clnp ; esis ; isis ; l1 ; l2 ; iih ; lsp ; snp ; csnp ; psnp ; iso proto 5 ; isis proto 17 or 18 ; vlan and isis
atalk ; aarp ; ipx ; vlan and ipx ; vlan and atalk ; ether proto \\ipx or \\aarp ; iso proto \\esis ; not ipx and not atalk
decnet src 1.2 ; decnet host 5 ; decnet dst host 1.2 ; decnet src and dst 1.2
protochain 6 ; ip6 protochain 58 ; ip protochain \\tcp ; ip6 protochain 17 ; protochain 51 ; protochain 4 or 50 ; vlan and protochain 6
"""

EXPRESSIONS: tuple[str, ...] = tuple(
    text.strip().replace("\\\\", "\\") for line in _TEXT.strip().splitlines() for text in line.split(" | ")
)

RARE: tuple[str, ...] = tuple(text.strip().replace("\\\\", "\\") for line in _RARE.strip().splitlines() for text in line.split(" ; "))
"""Bytes and arithmetic, and what few networks carry. No test behind ``geneve or``: libpcap reads memory there that it never wrote."""

RARE_AT_ONCE = 24  # so that some of them have a memo


def batches(texts: tuple[str, ...] = EXPRESSIONS, rare: tuple[str, ...] = RARE) -> list[tuple[str, ...]]:
    """As many at once as there are verdict bits, fewer rare ones."""
    found = [texts[at : at + MAX_MAPS] for at in range(0, len(texts), MAX_MAPS)]
    return found + [rare[at : at + RARE_AT_ONCE] for at in range(0, len(rare), RARE_AT_ONCE)]
