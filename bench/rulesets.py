"""ClassBench: rule sets of the published seeds as rules of ours, and headers that lie in their rules and at their edges.

A line is ``@SRC/N  DST/N  LOW : HIGH  LOW : HIGH  PROTOCOL/MASK  FLAGS/MASK``. The high byte of flags are the TCP flags of a TCP rule (0x10
ACK, 0x02 SYN) and the type of an ICMP rule. Ports without a protocol would be those of TCP, UDP and SCTP, as in pcap-filter(7).

A trace has a header a line: SRC DST SPORT DPORT PROTOCOL EXTRA RULE. EXTRA is FLAGS << 16 | MASK of the rule that the header was made
from, or either end of the whole range where that rule asks for none. RULE is that rule, from 0, which is not always the first to match.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rules = NDArray[np.void]

SHARED = Path(os.environ.get("TAPMESH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
DIRECTORY = SHARED / "suites" / "classbench"

ICMP, TCP, UDP, SCTP = 1, 6, 17, 132
WITH_PORTS = (TCP, UDP, SCTP)
_COMMON = np.array([ICMP, 2, TCP, UDP, 47, 50, 51, 89, SCTP])

RULE = np.dtype(
    [
        ("src", "<i8"), ("src_bits", "<i8"), ("dst", "<i8"), ("dst_bits", "<i8"),
        ("sport_low", "<i8"), ("sport_high", "<i8"), ("dport_low", "<i8"), ("dport_high", "<i8"),
        ("protocol", "<i8"), ("protocol_mask", "<i8"), ("flags", "<i8"), ("flags_mask", "<i8"),  # flags: the one byte
    ]
)  # fmt: skip
"""A rule set is RULE[n] in the order of its lines; bounds are inclusive, masks 0 (any) or 255 but for flags."""


@dataclass(frozen=True)
class Headers:
    """What rules ask of IPv4 packets, i8[n] each. `flags`: of TCP, or the type of ICMP; nothing in other protocols."""

    src: Ints
    dst: Ints
    sport: Ints
    dport: Ints
    protocol: Ints
    flags: Ints

    def __len__(self) -> int:
        return len(self.src)

    def __getitem__(self, which: Ints | slice) -> Headers:
        return Headers(self.src[which], self.dst[which], self.sport[which], self.dport[which], self.protocol[which], self.flags[which])


def read_rules(path: Path) -> Rules:
    """RuntimeError: the file is not there, or a line of it is no rule as described above."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise RuntimeError(f"the shared rule sets are needed: {error}") from None
    rules = np.zeros(len(lines), RULE)
    for i, text in enumerate(lines):
        try:
            rules[i] = _rule(text)
        except ValueError as error:
            raise RuntimeError(f"{path}:{i + 1}: {error}") from None
    return rules


def _rule(text: str) -> tuple[int, ...]:
    src, dst, sport_low, _, sport_high, dport_low, _, dport_high, protocol, flags = text.split()
    number, protocol_mask = (int(part, 16) for part in protocol.split("/"))
    value, mask = (int(part, 16) for part in flags.split("/"))
    ports = tuple(int(port) for port in (sport_low, sport_high, dport_low, dport_high))
    if protocol_mask not in (0, 255) or mask & 255 or (mask and number not in (TCP, ICMP)):
        raise ValueError(f"protocol {protocol} with flags {flags} has no meaning here")
    if protocol_mask and number not in WITH_PORTS and ports != (0, 65535, 0, 65535):
        raise ValueError(f"protocol {protocol} has no ports")
    return (*_net(src.removeprefix("@")), *_net(dst), *ports, number & protocol_mask, protocol_mask, (value & mask) >> 8, mask >> 8)


def _net(text: str) -> tuple[int, int]:
    address, _, bits = text.partition("/")
    number = int.from_bytes(bytes(int(part) for part in address.split(".")), "big")
    return number >> 32 - int(bits) << 32 - int(bits), int(bits)


def read_trace(path: Path) -> tuple[Headers, Ints]:
    """The headers, flags as said by the rule of each, and that rule. RuntimeError: not there."""
    try:
        rows = np.loadtxt(path, np.int64, ndmin=2)
    except OSError as error:
        raise RuntimeError(f"the shared traces are needed: {error}") from None
    src, dst, sport, dport, protocol, extra, rule = rows.T
    return Headers(src, dst, sport, dport, protocol, extra >> 24), rule


def expression(rule: np.void) -> str:
    """The rule in the words of pcap-filter(7)."""
    protocol = int(rule["protocol"]) if rule["protocol_mask"] else -1
    name = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}.get(protocol, "")
    terms = []
    for end in ("src", "dst"):
        bits = int(rule[f"{end}_bits"])
        address = ".".join(str(part) for part in int(rule[end]).to_bytes(4, "big"))
        if bits:
            terms.append(f"{end} host {address}" if bits == 32 else f"{end} net {address}/{bits}")
    if not terms or protocol < 0:
        terms.insert(0, "ip")
    if protocol >= 0 and not name:
        terms.append(f"ip proto {protocol}")
    asked = len(terms)
    for end in ("src", "dst"):
        low, high = int(rule[f"{end[0]}port_low"]), int(rule[f"{end[0]}port_high"])
        if (low, high) != (0, 65535):
            terms.append(f"{name} {end} port {low}".lstrip() if low == high else f"{name} {end} portrange {low}-{high}".lstrip())
    mask, value = int(rule["flags_mask"]), int(rule["flags"])
    if mask:
        at = f"{name}[{13 if protocol == TCP else 0}]"
        terms.append(f"{at} = {value}" if mask == 255 else f"{at} & {mask} = {value}")
    if name and len(terms) == asked:
        terms.append(name)
    return " and ".join(terms)


def headers(rules: Rules, n: int, seed: int, *, edges: float = 0.3, strays: float = 0.15) -> Headers:
    """n headers, each around a rule of its own: `edges` of its fields are a bound of that rule, `strays` of them one beyond a bound, a
    bound of another rule, or anything; the others lie within."""
    rng = np.random.default_rng(seed)
    base = rules[rng.integers(len(rules), size=n)]
    share = np.cumsum([1 - edges - strays, edges / 2, edges / 2, strays / 4, strays / 4, strays / 4, strays / 4])

    def pick(low: Ints, high: Ints, top: int) -> Ints:
        within = low + (rng.random(n) * (high - low + 1)).astype(np.int64)
        choices = np.stack([within, low, high, low - 1 & top, high + 1 & top, rng.permutation(low), rng.integers(top + 1, size=n)])
        chosen: Ints = choices[np.minimum(np.searchsorted(share, rng.random(n), "right"), 6), np.arange(n)]
        return chosen

    def address(end: str) -> Ints:
        low = base[end]
        return pick(low, low + (1 << 32 - base[f"{end}_bits"]) - 1, 0xFFFF_FFFF)

    anything = np.where(rng.random(n) < 0.7, rng.choice(_COMMON, n), rng.integers(256, size=n))
    astray = rng.random((2, n)) < strays
    byte = rng.integers(256, size=n)
    return Headers(
        src=address("src"),
        dst=address("dst"),
        sport=pick(base["sport_low"], base["sport_high"], 65535),
        dport=pick(base["dport_low"], base["dport_high"], 65535),
        protocol=np.where(astray[0] | (base["protocol_mask"] == 0), anything, base["protocol"]),
        flags=np.where(astray[1], byte, byte & ~base["flags_mask"] | base["flags"]),
    )


def frames(of: Headers, lengths: Ints, *, ipv6: bool = False, tagged: bool = False) -> NDArray[np.uint8]:
    """[n, bytes]: the frames up to where the payload begins, 60 bytes or as much more as the headers need; `lengths` are those of the
    whole frames. All protocols carry the ports where TCP has them, and the flags too, so that who reads them unasked is found out.
    IPv6 addresses are the same 32 bits below 2001:db8::/96, so no rule is about them; checksums are left 0."""
    l3 = 18 if tagged else 14
    l4 = l3 + (40 if ipv6 else 20)
    rows = np.zeros((len(of), max(60, l4 + 20)), np.uint8)
    rows[:, :12] = range(2, 14)
    if tagged:
        rows[:, 12:16] = (0x81, 0, 0, 100)
    rows[:, l3 - 2 : l3] = (0x86, 0xDD) if ipv6 else (8, 0)
    if ipv6:
        rows[:, l3] = 0x60
        rows[:, l3 + 4 : l3 + 6] = _big_endian(lengths - l4, 2)
        rows[:, l3 + 6], rows[:, l3 + 7] = of.protocol, 64
        for at, end in ((l3 + 8, of.src), (l3 + 24, of.dst)):
            rows[:, at : at + 4] = (0x20, 1, 0x0D, 0xB8)
            rows[:, at + 12 : at + 16] = _big_endian(end, 4)
    else:
        rows[:, l3] = 0x45
        rows[:, l3 + 2 : l3 + 4] = _big_endian(lengths - l3, 2)
        rows[:, l3 + 8], rows[:, l3 + 9] = 64, of.protocol
        rows[:, l3 + 12 : l3 + 20] = np.hstack([_big_endian(of.src, 4), _big_endian(of.dst, 4)])
    rows[:, l4 : l4 + 4] = _big_endian(of.sport << 16 | of.dport, 4)
    rows[:, l4 + 12], rows[:, l4 + 13] = 5 << 4, of.flags
    udp = of.protocol == UDP
    rows[udp, l4 + 4 : l4 + 6] = _big_endian(lengths - l4, 2)[udp]
    icmp = of.protocol == ICMP
    rows[icmp, l4] = of.flags[icmp]
    return rows


def _big_endian(values: Ints, width: int) -> NDArray[np.uint8]:
    """[n] -> [n, width] bytes in network order."""
    return values.astype(">i8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]
