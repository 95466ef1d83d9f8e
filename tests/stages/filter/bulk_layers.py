"""Where headers are and what bytes say, of many frames at once: the bulk twin's numbers. Apart from the kernels, as `twin_layers.py` is.

A number of each frame comes with a state: OK, CUT (undetermined), HIDDEN (in another fragment) or ABSENT (the packet has no such thing).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import tree as t
from tests.stages.filter.mutations import WIDTH, Frames

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Found = tuple[Ints, Ints]
"""Value and state."""
Place = tuple[Ints | int, Ints | int, Ints | int, Ints]
"""Offsets of link-layer header, type and payload; state."""
Transport = tuple[Ints, Ints, Ints, Bools]
"""Protocol, offset, state, whether more fragments follow."""

OK, CUT, HIDDEN, ABSENT = range(4)
IP, IP6 = 0x800, 0x86DD
TAGS = (0x8100, 0x88A8, 0x9100)
EXTENSIONS = (0, 43, 60, 135)
MOVABLE = (*EXTENSIONS, 51)
_TOP = 2**32
_ALL = slice(None)
_PPP = ((0x21, IP), (0x57, IP6))


def first(*states: Ints) -> Ints:
    """What goes wrong first is what counts."""
    found = states[0]
    for state in states[1:]:
        found = np.where(found != OK, found, state)
    return found


def one_of(value: Ints, wanted: tuple[int, ...]) -> Bools:
    found = value == wanted[0]
    for other in wanted[1:]:
        found |= value == other
    return found


class Layers:
    def __init__(self, frames: Frames) -> None:
        self.n, self.ends, self.wirelens = len(frames), frames.lengths, frames.wirelens
        self._data, self._bytes, self._rows = frames.data, frames.data.ravel(), np.arange(self.n) * WIDTH
        self._fixed: dict[tuple[int, int], Found] = {}
        self._places: dict[t.Layer, Place] = {}
        self._types: dict[t.Layer, Found] = {}
        self._transports: dict[t.Layer, Transport] = {}

    def all(self, value: int) -> Ints:
        return np.full(self.n, value, np.int64)

    def number(self, at: Ints | int, size: int, rows: Ints | slice = _ALL) -> Found:
        """`at`: of all the same, or of each its own; or of each of these rows."""
        if isinstance(at, int):
            if (at, size) not in self._fixed:
                value = sum(self._data[:, at + i].astype(np.int64) << 8 * (size - 1 - i) for i in range(size))
                self._fixed[at, size] = value, self.has(at, size)  # type: ignore[assignment]
            return self._fixed[at, size]
        good = (at >= 0) & (at + size <= self.ends[rows])
        base = self._rows[rows] + np.where(good, at, 0)
        value = self._bytes[base].astype(np.int64)
        for i in range(1, size):
            value = value << 8 | self._bytes[base + i]
        return value, np.where(good, OK, CUT)

    def has(self, at: Ints | int, size: int) -> Ints:
        return np.where(at + size <= self.ends, OK, CUT)

    def either(self, six: Bools, at6: Ints | int, at4: Ints | int, size: int) -> Found:
        """By the kind of IP header."""
        (one, two), (three, four) = self.number(at6, size), self.number(at4, size)
        return np.where(six, one, three), np.where(six, two, four)

    def place(self, layer: t.Layer) -> Place:
        if layer not in self._places:
            self._places[layer] = self._place(layer)
        return self._places[layer]

    def _place(self, layer: t.Layer) -> Place:
        if not layer:
            return 0, 12, 14, self.all(OK)
        link, type_, payload, state = self.place(layer[:-1])
        match layer[-1]:
            case t.VLAN:
                return link, type_ + 4, payload + 4, state
            case t.MPLS:
                return link, type_, payload + 4, state
            case t.PPPOE:
                return payload + 6, payload + 6, payload + 8, state
            case t.GENEVE:
                header, state = self._geneve(payload, *self.ethertype(layer[:-1]))
                inside = header + 8 + 4 * (self.number(header, 1)[0] % 64)
                is_ethernet = self.number(header + 2, 2)[0] == 0x6558
                return inside, np.where(is_ethernet, inside + 12, header + 2), np.where(is_ethernet, inside + 14, inside), state
        raise TypeError(f"this reference has no answer for {layer}: ask the slow twin")

    def _geneve(self, l3: Ints, kind: Ints, kind_state: Ints) -> Found:
        six = kind == IP6
        protocol, state = self.either(six, l3 + 6, l3 + 9, 1)
        is_later = ~six & (self.number(l3 + 6, 2)[0] % 8192 > 0)
        l4 = l3 + np.where(six, 40, self.number(l3, 1)[0] % 16 * 4)
        is_other = (self.number(l4 + 2, 2)[0] != 6081) | (self.number(l4 + 8, 1)[0] >= 64)
        no_ip, no_udp = np.where(six | (kind == IP), OK, ABSENT), np.where((protocol == 17) & ~is_later, OK, ABSENT)
        return l4 + 8, first(kind_state, no_ip, state, no_udp, self.has(l4, 12), np.where(is_other, ABSENT, OK))

    def ethertype(self, layer: t.Layer) -> Found:
        if layer not in self._types:
            self._types[layer] = self._ethertype(layer)
        return self._types[layer]

    def _ethertype(self, layer: t.Layer) -> Found:
        _, type_, payload, state = self.place(layer)
        if t.MPLS in layer:
            if t.GENEVE in layer and t.MPLS not in layer[len(layer) - layer[::-1].index(t.GENEVE) :]:
                return self.all(0), first(state, self.all(CUT))
            bottom, is_there = self.number(payload - 2, 1)
            nibble, says = self.number(payload, 1)
            found = np.where(nibble >> 4 == 4, IP, np.where(nibble >> 4 == 6, IP6, 0))
            return np.where(bottom % 2 == 0, 0, found), first(state, is_there, np.where(bottom % 2 == 0, OK, says))
        found, says = self.number(type_, 2)
        if [step for step in layer if step in (t.PPPOE, t.GENEVE)][-1:] == [t.PPPOE]:
            plain = found
            for number, kind in _PPP:
                found = np.where(plain == number, kind, np.where(plain == kind, -kind, found))
        return found, first(state, says)

    # ---- behind extension headers

    def transport(self, layer: t.Layer) -> Transport:
        if layer not in self._transports:
            self._transports[layer] = self._transport(self.place(layer)[2], self.ethertype(layer)[0] == IP6)
        return self._transports[layer]

    def _transport(self, l3: Ints | int, six: Bools) -> Transport:
        protocol, state = self.either(six, l3 + 6, l3 + 9, 1)
        bits = self.number(l3 + 6, 2)[0]
        at = start = l3 + np.where(six, 40, self.number(l3, 1)[0] % 16 * 4)
        state = first(state, np.where(~six & (bits % 8192 > 0), HIDDEN, OK), np.where(at < l3 + 20, CUT, OK))
        more = ~six & (bits & 0x2000 > 0)
        headers, fragments = self.all(0), self.all(0)
        while True:
            is_fragment = six & (protocol == 44)
            goes_on = (state == OK) & (is_fragment | (protocol == 51) | (six & one_of(protocol, EXTENSIONS)))
            if not goes_on.any():
                return protocol, at, first(state, np.where(protocol == 59, ABSENT, OK)), more
            following, length, bits = self.number(at, 1)[0], self.number(at + 1, 1)[0], self.number(at + 2, 2)[0]
            is_there = np.where(is_fragment, self.has(at, 8), self.has(at, 2))
            is_later = is_fragment & (bits >> 3 > 0)
            step = np.where(is_fragment, 8, np.where(protocol == 51, 4 * (length + 2), 8 * (length + 1)))
            more |= goes_on & is_fragment & (is_there == OK) & ~is_later & (bits & 1 > 0)
            headers, fragments = headers + (goes_on & ~is_fragment), fragments + (goes_on & is_fragment)
            moves = goes_on & (is_there == OK)
            protocol, at = np.where(moves, following, protocol), np.where(moves, at + step, at)
            too_long = (headers > 8) | (fragments > 1) | (at - start > 256)
            state = np.where(goes_on, first(is_there, np.where(is_later, HIDDEN, OK), np.where(too_long, CUT, OK)), state)

    def payload(self, layer: t.Layer, six: Bools) -> tuple[Ints, Ints, Bools]:
        protocol, at, state, more = self.transport(layer)
        words, is_there = self.number(at + 12, 1)
        length = words // 16 * 4
        tcp = first(is_there, np.where(length < 20, CUT, OK))
        fixed = one_of(protocol, (17, 136)) | (protocol == np.where(six, 58, 1))
        size = np.where(protocol == 6, length, np.where(protocol == 132, 12, 8))
        may_move = (state == HIDDEN) & six & one_of(protocol, MOVABLE)
        other = ~fixed & ~one_of(protocol, (6, 132))
        state = np.where(((state == OK) | (state == HIDDEN)) & other, np.where(may_move, HIDDEN, ABSENT), state)
        return at + size, first(state, np.where(protocol == 6, tcp, OK)), more

    def behind(self, layer: t.Layer, base: int, index: Ints, size: int) -> Found:
        """Bytes of transport header or payload, as far as the IP header says that they are there."""
        l3, six = self.place(layer)[2], self.ethertype(layer)[0] == IP6
        at, state, more = self.transport(layer)[1:] if base == t.L4 else self.payload(layer, six)
        length = self.either(six, l3 + 4, l3 + 2, 2)[0]
        beyond = (length > 0) & (at + index + size > l3 + length + np.where(six, 40, 0))
        value, is_there = self.number(at + index, size)
        return value, first(state, np.where(beyond, np.where(more, HIDDEN, ABSENT), OK), is_there)

    # ---- formulas

    def value(self, node: t.Arithmetic, libpcap: bool) -> Found:
        if isinstance(node, t.Number):
            return self.all(node.value), self.all(OK)
        if isinstance(node, t.WireLength):
            return self.wirelens, self.all(OK)
        if isinstance(node, t.Load):
            index, state = self.value(node.index, libpcap)
            value, is_there = self.loaded(node, index, libpcap)
            return value, first(state, is_there)
        (a, one), (b, two) = self.value(node.left, libpcap), self.value(node.right, libpcap)
        state = first(one, two)
        if node.operator in ("/", "%"):
            state, b = first(state, np.where(b == 0, CUT, OK)), np.maximum(b, 1)
            return (a // b if node.operator == "/" else a % b), state
        shift = np.minimum(b, 31)
        found = {
            "+": a + b, "-": a - b, "*": a * b, "&": a & b, "|": a | b, "^": a ^ b,
            "<<": np.where(b > 31, 0, a << shift), ">>": np.where(b > 31, 0, a >> shift),
        }[node.operator]  # fmt: skip
        return found % _TOP, state

    def loaded(self, node: t.Load, index: Ints, libpcap: bool) -> Found:
        link, type_, payload, state = self.place(node.layer)
        if node.base in (t.L4, t.PAYLOAD):
            kind, says = self.ethertype(node.layer)
            value, is_there = self.behind(node.layer, node.base, index, node.size)
            return value, first(says, np.where((kind == IP) | (kind == IP6), is_there, ABSENT))
        known = {t.LINK: link, t.TYPE: type_, t.NETWORK: payload, t.BEHIND6: payload + 40, t.TRANSPORT: payload}[node.base]
        computed = self.all(0)
        if node.base == t.TRANSPORT:
            words, is_there = self.number(payload, 1)
            computed = words % 16 * 4
            if not libpcap:
                later = (self.has(payload, 8) == OK) & (self.number(payload + 6, 2)[0] % 8192 > 0)
                is_there = first(is_there, np.where(later, CUT, OK))
            state = first(state, is_there)
        if t.GENEVE in node.layer:
            known, computed = self.all(0), known + computed
        moved, fixed = (known, computed) if isinstance(node.index, t.Number) else (computed, known)
        value, is_there = self.number((moved + index) % _TOP + fixed, node.size)
        return value, first(state, is_there)
