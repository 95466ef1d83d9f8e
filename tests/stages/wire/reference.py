"""What is known of a fragment, worked out slowly: slices, lists and a dict without bounds. Written from the RFCs, apart from the kernels.

It knows nothing of buckets, eviction or a limited number of pieces: `loose` says when a datagram is in more of those than the kernels
promise to keep apart, from where on they may call it a conflict and need not be right about anything but that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NONE, FIRST, LATER, FOLLOWED, ATOMIC, TINY, CONFLICT = range(7)
ABSENT, CUT, HIDDEN, SEEN = range(4)
NO_DETAIL, CUT_DETAIL, HIDDEN_DETAIL = 768, 769, 770
PORTS = {6, 17, 132}
NEEDED = {6: 14, 17: 4, 132: 4, 1: 1, 58: 1}
PIECES = 6
TICK_NS = 1 << 20
LIFETIME, COMPLETE_LIFETIME = 60_000_000_000 // TICK_NS, 1_000_000_000 // TICK_NS

Shown = tuple[int, ...]
"""fragment, source state, source port, destination state, destination port, detail"""


@dataclass
class Part:
    """What one packet says of itself."""

    fragment: int
    protocol: int
    transport: bytes | None  # None: not to be looked at
    types: int  # what is added to an ICMP type
    key: tuple[object, ...] = ()
    start: int = 0
    end: int = 0
    more: bool = False
    too_long: bool = False
    is_deep: bool = False  # its fragment header is not where ports are looked for behind
    is_cut: bool = False  # the fragment header is

    def shown(self) -> Shown:
        if self.too_long:
            return (self.fragment, HIDDEN, 0, HIDDEN, 0, HIDDEN_DETAIL)
        if self.is_deep:
            return (self.fragment, ABSENT, 0, ABSENT, 0, NO_DETAIL)
        has_detail = self.protocol == 6 or self.protocol == (1 if self.types == 256 else 58)
        if self.protocol < 0:
            return (self.fragment, CUT, 0, CUT, 0, CUT_DETAIL)
        if self.transport is None:
            state, detail = (CUT, CUT_DETAIL) if self.is_cut else (HIDDEN, HIDDEN_DETAIL)
            state = state if self.protocol in PORTS else ABSENT
            return (self.fragment, state, 0, state, 0, detail if has_detail else NO_DETAIL)
        ports = [(ABSENT, 0)] * 2
        if self.protocol in PORTS:
            fields = self.transport[0:2], self.transport[2:4]
            ports = [(SEEN, int.from_bytes(f, "big")) if len(f) == 2 else (CUT, 0) for f in fields]
        detail = NO_DETAIL
        if has_detail:
            byte, base = (self.transport[13:14], 0) if self.protocol == 6 else (self.transport[:1], self.types)
            detail = base + byte[0] if byte else CUT_DETAIL
        return (self.fragment, *ports[0], *ports[1], detail)


def _later(start: int, protocol: int) -> int:
    return TINY if (start, protocol) == (8, 6) else LATER


def _ip4(packet: bytes) -> Part:
    words, length, bits = packet[0] & 15, int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[6:8], "big")
    start, more, protocol = (bits & 0x1FFF) * 8, bool(bits & 0x2000), packet[9]
    n = length - words * 4
    fragment = NONE
    if start:
        fragment = _later(start, protocol)
    elif more:
        fragment = TINY if n < NEEDED.get(protocol, 0) else FIRST
    transport = packet[words * 4 :] if fragment in (NONE, FIRST) else None
    key = (packet[12:20], packet[4:6], protocol)
    return Part(fragment, protocol, transport, 256, key, start, start + max(0, n), more)


def _ip6(packet: bytes) -> Part:
    end, most = 40 + int.from_bytes(packet[4:6], "big"), 40 + 256
    kind, at, n, header, part = packet[6], 40, 0, -1, None
    too_long, too_short = False, False
    while kind in (0, 43, 44, 51, 60, 135):
        if kind == 44 and header >= 0:
            too_long = True
            break
        if kind == 44:
            too_long |= at + 8 > most
            if len(packet) < at + 8:
                protocol = packet[at] if len(packet) > at else -1  # it could be any
                return Part(LATER, protocol, None, 512, too_long=too_long, is_deep=at > 40, is_cut=True)
            header = at
            bits = int.from_bytes(packet[at + 2 : at + 4], "big")
            start, more, protocol = bits & 0xFFF8, bool(bits & 1), packet[at]
            part = Part(ATOMIC, protocol, None, 512, (packet[8:40], packet[at + 4 : at + 8]), start, start + max(0, end - at - 8), more)
            part.is_deep = at > 40
            if start:
                part.fragment, part.too_long = _later(start, protocol), too_long
                return part
            kind, at = protocol, at + 8
            continue
        n += 1
        if n > 8 or at + 8 > most:
            too_long = True
            break
        if part and part.more and at + 8 > end:
            too_short = True
        if len(packet) < at + 8:
            break
        kind, at = packet[at], at + ((packet[at + 1] + 2) * 4 if kind == 51 else (packet[at + 1] + 1) * 8)
    too_long |= at > most
    if part is None:
        if at > 40 or kind in (0, 43, 51, 60, 135):
            return Part(NONE, kind, None, 512, too_long=too_long, is_deep=True)
        return Part(NONE, kind, packet[40:], 512, too_long=too_long)
    too_long |= part.more and (too_short or at > end)
    part.too_long = too_long
    if part.more:
        part.fragment = TINY if too_long or at + NEEDED.get(kind, 0) > end else FIRST
    if part.fragment != TINY:
        part.transport = packet[header + 8 :]
    return part


def read(frame: bytes) -> tuple[Part | None, tuple[object, ...]]:
    """None: no IPv4 or IPv6 with a whole fixed header. And where it was seen."""
    at, tags = 12, []
    while len(tags) < 4 and frame[at : at + 2] in (b"\x81\0", b"\x88\xa8", b"\x91\0"):
        tags.append(int.from_bytes(frame[at + 2 : at + 4], "big") & 0xFFF)
        at += 4
    kind, packet = frame[at : at + 2], frame[at + 2 :]
    place = (len(tags), *tags[:2])
    if kind == b"\x08\0" and len(packet) >= 20:
        return _ip4(packet), place
    if kind == b"\x86\xdd" and len(packet) >= 40:
        return _ip6(packet), place
    return None, place


@dataclass
class Datagram:
    ts_ns: int
    protocol: int
    pieces: set[tuple[int, int]] = field(default_factory=set)
    end: int | None = None
    reach: int = 0  # of empty ones too
    first: Shown | None = None
    is_conflict: bool = False

    @property
    def loose(self) -> bool:
        return len(self.pieces) > PIECES

    def is_alive(self, now: int) -> bool:
        complete = self.end is not None and sum(end - start for start, end in self.pieces) == self.end
        return now // TICK_NS - self.ts_ns // TICK_NS < (COMPLETE_LIFETIME if complete else LIFETIME)

    def is_contradicted_by(self, part: Part) -> bool:
        piece = (part.start, part.end)
        return (
            part.end > 65_535
            or part.protocol != self.protocol
            or (self.end is not None and (part.end > self.end or (not part.more and part.end != self.end)))
            or (not part.more and part.end < self.reach)
            or (part.start == 0 and self.first is not None and self.first != part.shown())
            or (
                part.end > part.start
                and piece not in self.pieces
                and any(part.start < end and start < part.end for start, end in self.pieces)
            )
        )


@dataclass(frozen=True)
class Answer:
    shown: Shown
    too_long: bool
    datagram: Datagram | None = None


class Reference:
    def __init__(self) -> None:
        self.datagrams: dict[tuple[object, ...], Datagram] = {}

    def judge(self, frame: bytes, ts_ns: int, input_slot: int) -> Answer | None:
        part, place = read(frame)
        if part is None:
            return None
        if part.fragment in (NONE, ATOMIC) or part.is_cut:
            return Answer(part.shown(), part.too_long)
        key = (*part.key, place, input_slot)
        known = self.datagrams.get(key)
        if known is None or not known.is_alive(ts_ns):
            known = self.datagrams[key] = Datagram(ts_ns, part.protocol)
        if known.is_conflict or known.is_contradicted_by(part):
            known.is_conflict = True
            return Answer(self._hidden(part), part.too_long, known)
        if part.end > part.start:
            known.pieces.add((part.start, part.end))
        known.reach = max(known.reach, part.end)
        if not part.more:
            known.end = part.end
        shown = part.shown()
        if part.start == 0:
            known.first = shown
        elif part.fragment == LATER and known.first is not None and known.first[0] == FIRST:
            shown = self._following(shown, known.first)
        return Answer(shown, part.too_long, known)

    @staticmethod
    def _following(own: Shown, known: Shown) -> Shown:
        """A first one whose fragment header is deep shows nothing that could be passed on."""
        ports = own[1:5] if known[1] == ABSENT else known[1:5]
        return (FOLLOWED, *ports, own[5] if known[5] == NO_DETAIL else known[5])

    @staticmethod
    def _hidden(part: Part) -> Shown:
        _, source, _, destination, _, detail = part.shown()
        source, destination = (HIDDEN if state != ABSENT else ABSENT for state in (source, destination))
        return (CONFLICT, source, 0, destination, 0, detail if detail == NO_DETAIL else HIDDEN_DETAIL)
