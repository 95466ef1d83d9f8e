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

EXPRESSIONS: tuple[str, ...] = tuple(
    text.strip().replace("\\\\", "\\") for line in _TEXT.strip().splitlines() for text in line.split(" | ")
)


def batches(texts: tuple[str, ...] = EXPRESSIONS) -> list[tuple[str, ...]]:
    """As many at once as there are verdict bits."""
    return [texts[at : at + MAX_MAPS] for at in range(0, len(texts), MAX_MAPS)]
