"""What libpcap takes or pcap-filter(7) describes, and we refuse: one list, with the reasons.

Error messages quote a reason as it stands here; the tests compare us with libpcap and forgive what carries one of these, nothing else.
"""

from __future__ import annotations

REFUSED = {
    "name": "names are not looked up",  # of hosts, networks, Ethernet addresses: a policy must mean the same on every machine
    "service": "not a service in the embedded table",
    "protocol name": "not a protocol in the embedded table",
    "direction": "a packet in the ring does not say its direction; name the input in the map",
    "gateway": "it asks which of a router's names has which addresses, and names are not looked up",
    "netmask": "needs a netmask, and mirrored traffic has none",
    "byte": "libpcap 1.10 computes this without reading the byte",
    "constant": "the packet does not matter to that, and it has no value",  # libpcap's optimizer says so too, where it gets to see it
    "too large": "the field cannot hold it, so it is never there",
    "decnet": "DECnet addresses are 'area.node', and have no nets",
    "802.11": "traffic is Ethernet",
    "pf": "it is about OpenBSD's packet filter",
    "ATM": "it is about ATM",
    "SS7": "it is about SS7",
    "newer": "libpcap 1.10 does not know it",
    "vxlan": "libpcap 1.10 does not know it: write 'inner vxlan', 'inner vxlan vni 5001' or 'inner vxlan (...)'",
    "tags": "that many VLAN tags are not followed",
    "steps": "that many headers are not followed",
    "long": "the text is too long: put addresses and ports into sets",
    "nested": "nested too deep",
    "arithmetic": "too much arithmetic in one comparison",
}

_WORDS = {
    "direction": "inbound outbound ifindex",
    "gateway": "gateway",
    "802.11": "radio type subtype dir direction addr1 addr2 addr3 addr4 address1 address2 address3 address4 ra ta",
    "pf": "on ifname rset ruleset rnr rulenum srnr subrulenum reason action",
    "ATM": "lane oam oamf4 oamf4ec oamf4sc metac bcc sc ilmic vpi vci connectmsg metaconnect",
    "SS7": "fisu lssu lsu msu hfisu hlssu hmsu sio opc dpc sls hsio hopc hdpc hsls",
    "newer": "batadv",
    "vxlan": "vxlan",
}

WORDS = {word: REFUSED[kind] for kind, words in _WORDS.items() for word in words.split()}
"""Words of the language that no test begins with here, and why."""
