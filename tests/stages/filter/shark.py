"""What tshark sees in frames, as the measure of our own words: which of its fields answers which of them.

Its display filters cannot be compared one to one. A field has a value for every header of a packet, at whatever depth (`ip.ttl == 1` is
true of a tunnelled packet too), so all values are asked for, outermost first, together with the stack of protocols; the header that a word
of ours is about is found in that. It goes by lengths that headers state, and so shows nothing behind a UDP header that says its length is 0
(as captures have them from where the network card cuts packets); and it also calls GTP what is not user data.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import packets

_COLUMNS = """
frame.protocols frame.len eth.src vlan.id vlan.priority ieee8021ad.id ieee8021ad.priority ip.dsfield.dscp ip.dsfield.ecn ip.ttl ip.flags.mf
ip.frag_offset ipv6.tclass.dscp ipv6.tclass.ecn ipv6.hlim ipv6.flow ipv6.fraghdr.offset ipv6.fraghdr.more tcp.flags tcp.payload udp.payload
udp.length gre.proto gre.key erspan.spanid vxlan.vni geneve.vni gtp.teid gtp.message mpls.label
"""
COLUMNS = _COLUMNS.split()
_OPTIONS = ("ip.defragment:FALSE", "ipv6.defragment:FALSE", "tcp.desegment_tcp_streams:FALSE", "gtp.dissect_tpdu_as:tpdu heuristic")
_TAGS = ("vlan", "ieee8021ad")
_OTHERS = ("cfp", "cmd", "nsh")  # headers that tshark follows, and we do not
_WCCP = 0x883E  # GRE with one more header
_TUNNELS = ("gre", "vxlan", "geneve", "gtp", "mpls")


@dataclass(frozen=True)
class Row:
    columns: dict[str, str]

    @property
    def stack(self) -> list[str]:
        return [name for name in self.columns["frame.protocols"].split(":") if name != "ethertype"]

    def all(self, name: str) -> list[int]:
        return [int(value, 0) for value in self.columns[name].split(";") if value]

    def first(self, name: str) -> int:
        """-1: it has none."""
        return next(iter(self.all(name)), -1)

    def tag(self, n: int, name: str) -> int:
        """Of the n-th tag; those of 802.1ad stand before the others. -1: there is none."""
        found = [*self.all(f"ieee8021ad.{name}"), *self.all(f"vlan.{name}")]
        return found[n] if n < min(len(found), n_tags(self)) else -1

    def bytes(self, name: str) -> bytes:
        return bytes.fromhex(self.columns[name].split(";")[0])


def rows(frames: Sequence[bytes], directory: Path) -> list[Row]:
    file = directory / "frames.pcap"
    file.write_bytes(packets.pcap(frames))
    command = ["tshark", "-n", "-r", str(file), "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=;", "-E", "separator=/t"]
    for option in _OPTIONS:
        command += ["-o", option]
    for column in COLUMNS:
        command += ["-e", column]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Row(dict(zip(COLUMNS, line.split("\t"), strict=True))) for line in done.stdout.splitlines()]


def is_sound(row: Row) -> bool:
    """tshark found no fault with a header that it shows, and knows none that we do not."""
    stack = row.stack
    gave_up = stack[-1] in ("ip", "ipv6", "gre", "udp") or stack[1:2] == ["data"] or stack[-2:] == ["ipv6", "data"]
    odd = any(name in _OTHERS for name in stack) or _WCCP in row.all("gre.proto") or stack.count("ipv6.fraghdr") > 1
    return not gave_up and not odd and stack.count("tcp") == len(row.all("tcp.flags"))


# ---- the outermost headers


def ip(row: Row) -> int:
    """4 or 6, if that stands right behind an Ethernet header without tags."""
    return {"ip": 4, "ipv6": 6}.get([*row.stack, "", ""][1], 0)


def chain(stack: list[str]) -> list[str]:
    """Extension headers."""
    found = []
    for name in stack:
        if not name.startswith("ipv6.") and name != "ah":
            break
        found.append(name)
    return found


def n_tags(row: Row) -> int:
    n = 0
    while row.stack[1 + n : 2 + n] and row.stack[1 + n] in _TAGS:
        n += 1
    return n


def value(name4: str, name6: str, holds: Callable[[int], bool]) -> Callable[[Row], bool]:
    def answer(row: Row) -> bool:
        found = row.first(name4) if ip(row) == 4 else row.first(name6) if ip(row) == 6 else -1
        return found >= 0 and holds(found)

    return answer


def has_extension(name: str) -> Callable[[Row], bool]:
    return lambda row: ip(row) == 6 and name in chain(row.stack[2:])


def is_fragment(row: Row) -> bool:
    if ip(row) == 4:
        return row.first("ip.flags.mf") == 1 or row.first("ip.frag_offset") > 0
    return has_extension("ipv6.fraghdr")(row) and (row.first("ipv6.fraghdr.offset") > 0 or row.first("ipv6.fraghdr.more") == 1)


def is_atomic(row: Row) -> bool:
    return has_extension("ipv6.fraghdr")(row) and row.first("ipv6.fraghdr.offset") == 0 == row.first("ipv6.fraghdr.more")


def transport(stack: list[str]) -> str:
    """Behind the link-layer header, if there is one, the IP header and its extension headers."""
    stack = stack[1:] if stack[:1] == ["eth"] else stack
    behind = stack[1:] if stack[:1] in (["ip"], ["ipv6"]) else []
    return [*behind[len(chain(behind)) :], ""][0]


def flags(holds: Callable[[int], bool]) -> Callable[[Row], bool]:
    return lambda row: ip(row) > 0 and row.stack[2:3] == ["tcp"] and row.first("tcp.flags") >= 0 and holds(row.first("tcp.flags"))


def is_whole(name: str, holds: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: transport(row.stack) == name and not is_fragment(row) and holds(row)


# ---- tunnels


def tunnel(stack: list[str]) -> tuple[str, list[str]]:
    """The outermost one and the protocols that it carries; "": there is none."""
    in_ip = False
    for at, name in enumerate(stack):
        if name in ("icmp", "icmpv6"):
            break  # what an error quotes is no tunnel
        if name in _TUNNELS:
            inner = stack[at + 1 :]
            while inner and inner[0] in ("mpls", "pwethcw", "pwethheuristic") and name == "mpls":
                inner = inner[1:]
            return ("erspan", inner[1:]) if inner[:1] == ["erspan"] else (name, inner)
        if name in ("ip", "ipv6"):
            if in_ip:
                return "ipip", stack[at:]
            in_ip = True
        elif not name.startswith("ipv6.") and name != "ah":
            in_ip = False
    return "", []


def is_in(*names: str) -> Callable[[Row], bool]:
    return lambda row: tunnel(row.stack)[0] in names


def has_id(kind: str, column: str, holds: Callable[[int], bool]) -> Callable[[Row], bool]:
    """The first value: that of the outermost header."""
    return lambda row: tunnel(row.stack)[0] == kind and row.first(column) >= 0 and holds(row.first(column))


def carries(name: str) -> Callable[[Row], bool]:
    return lambda row: transport(tunnel(row.stack)[1]) == name


WORDS: dict[str, Callable[[Row], bool]] = {
    "dscp cs6": value("ip.dsfield.dscp", "ipv6.tclass.dscp", lambda v: v == 48),
    "dscp != 0": value("ip.dsfield.dscp", "ipv6.tclass.dscp", lambda v: v != 0),
    "ecn {ect0, ect1, ce}": value("ip.dsfield.ecn", "ipv6.tclass.ecn", lambda v: v > 0),
    "ttl <= 5": value("ip.ttl", "ipv6.hlim", lambda v: v <= 5),
    "ttl 64-128": value("ip.ttl", "ipv6.hlim", lambda v: 64 <= v <= 128),
    "flowlabel > 0": lambda row: ip(row) == 6 and row.first("ipv6.flow") > 0,
    "vlan depth 0": lambda row: n_tags(row) == 0,
    "vlan depth 2": lambda row: n_tags(row) == 2,
    "vlan depth >= 3": lambda row: n_tags(row) >= 3,
    "vlan 1-100": lambda row: 1 <= row.tag(0, "id") <= 100,
    "vlan pcp 1-7": lambda row: row.tag(0, "priority") > 0,
    "vlan and vlan {10-30, 4000}": lambda row: 10 <= row.tag(1, "id") <= 30 or row.tag(1, "id") == 4000,
    "len 100-200": lambda row: 100 <= row.first("frame.len") <= 200,
    "ether src 00:00:00:00:00:00/02:00:00:00:00:00": lambda row: int(row.columns["eth.src"][:2], 16) & 2 == 0,
    "fragment": is_fragment,
    "fragment atomic": is_atomic,
    "ip6 ext hopopts": has_extension("ipv6.hopopts"),
    "ip6 ext routing": has_extension("ipv6.routing"),
    "ip6 ext dstopts": has_extension("ipv6.dstopts"),
    "ip6 ext fragment": has_extension("ipv6.fraghdr"),
    "ip6 ext ah": has_extension("ah"),
    "l4 tcp and not fragment": lambda row: transport(row.stack) == "tcp" and not is_fragment(row),
    "l4 udp and not fragment": lambda row: transport(row.stack) == "udp" and not is_fragment(row),
    "tcp flags syn": flags(lambda v: v & 2 != 0),
    "tcp flags syn/syn,ack": flags(lambda v: v & 0x12 == 2),
    "tcp flags fin,ack": flags(lambda v: v & 0x11 == 0x11),
    "l4 tcp and payload[0] >= 0 and not fragment": is_whole("tcp", lambda row: row.bytes("tcp.payload") != b""),
    "l4 udp and payload[1:2] > 0x1000 and not fragment": is_whole("udp", lambda row: row.bytes("udp.payload")[1:3] > b"\x10\x00"),
    "inner gre": is_in("gre", "erspan"),
    "inner erspan": is_in("erspan"),
    "inner vxlan": is_in("vxlan"),
    "inner geneve": is_in("geneve"),
    "inner gtp": lambda row: is_in("gtp")(row) and row.first("gtp.message") == 255,
    "inner mpls": is_in("mpls"),
    "inner ipip": is_in("ipip"),
    "inner gre key > 0": lambda row: is_in("gre", "erspan")(row) and row.first("gre.key") > 0,
    "inner erspan id > 0": has_id("erspan", "erspan.spanid", lambda v: v > 0),
    "inner vxlan vni < 1000": has_id("vxlan", "vxlan.vni", lambda v: v < 1000),
    "inner geneve vni <= 10": has_id("geneve", "geneve.vni", lambda v: v <= 10),
    "inner gtp teid > 1": lambda row: has_id("gtp", "gtp.teid", lambda v: v > 1)(row) and row.first("gtp.message") == 255,
    "inner mpls label 16-20": lambda row: is_in("mpls")(row) and any(16 <= v <= 20 for v in row.all("mpls.label")),
    "inner (l4 tcp)": carries("tcp"),
    "inner (l4 udp)": carries("udp"),
    "inner (icmp)": carries("icmp"),
    "inner (vlan)": lambda row: tunnel(row.stack)[1][1:2] == ["vlan"],
    "inner (inner)": lambda row: tunnel(tunnel(row.stack)[1])[0] != "",
}
