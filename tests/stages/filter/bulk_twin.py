"""The slow twin for many frames at once: trees, maps and three values as columns of numbers, for a million frames in the time of a test.

It answers what `twin.py` answers, except for packets in tunnels of our own words; test_mutated.py holds one against the other. What is
known of fragments it has from the same reference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import parse_expression
from broker.config.policy import tree as t
from broker.config.policy.simplify import simplify
from broker.core.model import Config, Map
from tests.stages.filter.bulk_layers import ABSENT, CUT, HIDDEN, IP, IP6, MOVABLE, OK, TAGS, Bools, Found, Ints, Layers, first, one_of
from tests.stages.filter.mutations import Frames
from tests.stages.wire import reference as r

FALSE, UNDETERMINED, TRUE = range(3)
_PORT_BITS = ((6, 1), (17, 2), (132, 4))
_KINDS = ((IP, t.IP), (IP6, t.IP6), (0x806, t.ARP), (0x8035, t.RARP))


_ANSWERS = tuple(  # by state, and whether it would hold
    np.array((FALSE, TRUE, UNDETERMINED, UNDETERMINED, hidden, hidden, FALSE, FALSE)) for hidden in (UNDETERMINED, FALSE)
)


def within(value: Ints, ranges: t.Ranges) -> Bools:
    found = np.zeros(len(value), bool)
    for one, last in ranges:
        found |= (one <= value) & (value <= last)
    return found


class Answers:
    """Of each test, for one block of frames. `shown`: a row of what is known of its datagram for each frame."""

    def __init__(self, frames: Frames, references: r.Reference) -> None:
        self.layers = Layers(frames)
        self._known: dict[tuple[t.Node, bool], Ints] = {}
        at, going = self.layers.all(14), np.ones(len(frames), bool)
        for _ in range(4):
            kind, says = self.layers.number(at - 2, 2)
            going &= (says == OK) & one_of(kind, TAGS)
            at = at + 4 * going
        self.parsed = at
        self.shown, self.promised = self._ask(frames, references)

    def _ask(self, frames: Frames, references: r.Reference) -> tuple[Ints, Bools]:
        """The reference, about fragments and what may be one."""
        number, at = self.layers.number, self.parsed
        kind = number(at - 2, 2)[0]
        asked = (kind == IP) & (number(at + 6, 2)[0] & 0x3FFF > 0) | (kind == IP6) & one_of(number(at + 6, 1)[0], (*MOVABLE, 44))
        shown, promised = np.zeros((6, len(frames)), np.int64), np.ones(len(frames), bool)
        for i in np.nonzero(asked)[0].tolist():
            answer = references.judge(frames.bytes_of(i), int(frames.times_ns[i]), int(frames.inputs[i]))
            if answer is not None:
                shown[:, i] = answer.shown
                promised[i] = answer.datagram is None or not answer.datagram.loose
        return shown, promised

    def of(self, node: t.Node, libpcap: bool) -> Ints:
        """To libpcap what cannot be told ends the rule; to us FALSE AND it is FALSE, TRUE OR it TRUE."""
        if (node, libpcap) not in self._known:
            self._known[node, libpcap] = self._of(node, libpcap)
        return self._known[node, libpcap]

    def _of(self, node: t.Node, libpcap: bool) -> Ints:
        if isinstance(node, t.Not):
            return TRUE - self.of(node.item, libpcap)
        if isinstance(node, t.And | t.Or):
            neutral = TRUE if isinstance(node, t.And) else FALSE
            found = self.layers.all(neutral)
            for item in node.items:
                one = self.of(item, libpcap)
                if libpcap:
                    found = np.where(found == neutral, one, found)
                else:
                    found = np.minimum(found, one) if neutral == TRUE else np.maximum(found, one)
            return found
        holds, state = self.holds(node, libpcap)
        return _ANSWERS[libpcap][state << 1 | holds]

    def holds(self, node: t.Node, libpcap: bool) -> tuple[Bools, Ints]:
        it, number, fine = self.layers, self.layers.number, self.layers.all(OK)
        match node:
            case t.Length():
                return (node.first <= it.wirelens) & (it.wirelens <= node.last), fine
            case t.Compare():
                (left, one), (right, two) = it.value(node.left, libpcap), it.value(node.right, libpcap)
                return {"=": left == right, ">": left > right, ">=": left >= right}[node.relation], first(one, two)
            case t.Mac(layer=()):
                value, state = number(6 if node.side == t.SOURCE else 0, 6)
                return value & node.mask == node.value, state
            case t.MacGroup(layer=()):
                value, state = number(0, 1)
                return value % 2 == 1, state
            case t.Mac() | t.MacGroup() | t.Tunnel():
                raise TypeError(f"this reference has no answer for {node}: ask the slow twin")
        _, type_, l3, _ = it.place(node.layer)
        kind, state = it.ethertype(node.layer)
        found, says = self.holds_in(node, kind, type_, l3, libpcap)
        return found, first(state, says)

    def holds_in(self, node: t.Node, kind: Ints, type_: Ints, l3: Ints, libpcap: bool) -> tuple[Bools, Ints]:
        number, fine = self.layers.number, self.layers.all(OK)
        match node:
            case t.EtherType():
                return kind == node.value, fine
            case t.Tagged():
                return one_of(kind, TAGS), fine
            case t.VlanId():
                value, state = number(l3, 2)
                return within(value % 4096, node.ranges), state
            case t.Llc():
                value, state = number(l3, 2) if node.wide else number(type_ + 2, 1)
                return value == node.value, np.where(kind <= 1500, state, ABSENT)
            case t.FirstFragment():
                bits, state = number(l3 + 6, 2)
                later = np.where(bits % 8192 > 0, ABSENT if libpcap else CUT, OK)
                return fine == OK, np.where(kind == IP, first(state, later), OK)
            case t.Multicast():
                value, state = number(l3 + (16 if node.kind == t.IP else 24), 1)
                return (value >= 224 if node.kind == t.IP else value == 255), np.where(kind == dict(_BY_BIT)[node.kind], state, ABSENT)
            case t.Protocol():
                return self._protocol(node, kind, l3)
            case t.Address4() | t.Address4Set():
                return self._address4(node, kind, l3)
            case t.Address6() | t.Address6Set():
                return self._address6(node, kind, l3)
            case t.Port():
                return self._port(node, kind, l3, libpcap)
            case t.Detail():
                return self._detail(node, kind, l3, libpcap)
            case t.Field():
                return self._field(node, kind, l3)
            case t.ProtoChain():
                return self._chain(node, kind, l3)
        raise TypeError(f"this reference has no answer for {node}: ask the slow twin")

    def _bit(self, kind: Ints) -> Ints:
        found = self.layers.all(0)
        for ethertype, bit in _KINDS:
            found[kind == ethertype] = bit
        return found

    def _protocol(self, node: t.Protocol, kind: Ints, l3: Ints) -> tuple[Bools, Ints]:
        four, six = (kind == IP) & bool(node.kinds & t.IP), (kind == IP6) & bool(node.kinds & t.IP6)
        value, state = self.layers.either(six, l3 + 6, l3 + 9, 1)
        behind, cut = self.layers.number(l3 + 40, 1)
        looks_on = six & (value == 44) & (value != node.value)
        state = first(state, np.where(looks_on, cut, OK))
        return np.where(looks_on, behind, value) == node.value, np.where(four | six, state, ABSENT)

    def _address4(self, node: t.Address4 | t.Address4Set, kind: Ints, l3: Ints) -> tuple[Bools, Ints]:
        asked = self._bit(kind) & node.kinds > 0
        if isinstance(node, t.Address4) and node.mask == 0:
            return asked, self.layers.all(OK)
        value, state = self.layers.either(kind == IP, l3 + (12, 16)[node.side], l3 + (14, 24)[node.side], 4)
        found = value & node.mask == node.net if isinstance(node, t.Address4) else within(value, node.ranges)
        return found, np.where(asked, state, ABSENT)

    def _address6(self, node: t.Address6 | t.Address6Set, kind: Ints, l3: Ints) -> tuple[Bools, Ints]:
        at, is_six = l3 + (8 if node.side == t.SOURCE else 24), kind == IP6
        words = [self.layers.number(at + 4 * i, 4) for i in range(4)]
        if isinstance(node, t.Address6Set):
            values = [sum(int(word[i]) << 32 * (3 - n) for n, (word, _) in enumerate(words)) for i in range(self.layers.n)]
            found = np.array([any(a <= value <= b for a, b in node.ranges) for value in values])
            return found, np.where(is_six, words[3][1], ABSENT)
        found, state = is_six.copy(), np.where(is_six, OK, ABSENT)
        for i, (word, cut) in enumerate(words[: (node.prefix + 31) // 32]):
            drop = max(0, 32 * (i + 1) - node.prefix)
            state = np.where(found, first(state, cut), state)
            found &= word >> drop == (node.net >> 32 * (3 - i) & 0xFFFFFFFF) >> drop
        return found, state

    def _known_of(self, l3: Ints) -> Ints:
        """It is about the header behind all tags."""
        return np.where(self.parsed == l3, self.shown, 0)

    def _port(self, node: t.Port, kind: Ints, l3: Ints, libpcap: bool) -> tuple[Bools, Ints]:
        number, side, six = self.layers.number, node.side, kind == IP6
        bits_of = np.zeros(256, np.int64)
        for protocol, bit in _PORT_BITS:
            bits_of[protocol] = bit
        protocol, state = self.layers.either(six, l3 + 6, l3 + 9, 1)
        behind, cut = number(l3 + 40, 1)
        looks_on = six & (protocol == 44) & (not libpcap)
        state = first(state, np.where(looks_on, cut, OK))
        has_ports = bits_of[np.where(looks_on, behind, protocol)] & node.protocols > 0
        later = ~six & (number(l3 + 6, 2)[0] % 8192 > 0)
        shown = self._known_of(l3)
        by_row = looks_on | ((later | (~six & one_of(shown[0], (r.TINY, r.CONFLICT)))) & (not libpcap))
        port, is_there = number(l3 + np.where(six, 40, number(l3, 1)[0] % 16 * 4) + 2 * side, 2)
        port = np.where(by_row, shown[2 + 2 * side], port)
        is_there = np.where(by_row, np.where(shown[1 + 2 * side] == r.SEEN, OK, CUT), np.where(later, ABSENT, is_there))
        state = first(state, np.where(has_ports, is_there, ABSENT))
        return within(port, node.ranges), np.where(six | (kind == IP), state, ABSENT)

    def _detail(self, node: t.Detail, kind: Ints, l3: Ints, libpcap: bool) -> tuple[Bools, Ints]:
        number, six = self.layers.number, kind == IP6
        protocol, state = self.layers.either(six, l3 + 6, l3 + 9, 1)
        behind, cut = number(l3 + 40, 1)
        looks_on = six & (protocol == 44)
        state = first(state, np.where(looks_on, cut, OK), np.where(looks_on & libpcap, ABSENT, OK))
        is_it = np.where(looks_on, behind, protocol) == node.protocol
        later = ~six & (number(l3 + 6, 2)[0] % 8192 > 0)
        shown = self._known_of(l3)
        by_row = looks_on | later | (~six & one_of(shown[0], (r.TINY, r.CONFLICT)) & (not libpcap))
        offset = 13 if node.protocol == 6 else 0
        value, is_there = number(l3 + np.where(six, 40, number(l3, 1)[0] % 16 * 4) + offset, 1)
        value = np.where(by_row, shown[5], value + {1: 256, 58: 512}.get(node.protocol, 0))
        from_row = np.where((shown.any(0)) & (shown[5] < r.NO_DETAIL), OK, CUT)
        is_there = np.where(by_row, np.where(later & libpcap, ABSENT, from_row), is_there)
        state = first(state, np.where(is_it, is_there, ABSENT))
        return within(value, node.ranges), np.where(self._bit(kind) & node.kinds > 0, state, ABSENT)

    def _chain(self, node: t.ProtoChain, kind: Ints, l3: Ints) -> tuple[Bools, Ints]:
        """As libpcap goes along it."""
        number, four = self.layers.number, node.kinds == t.IP
        protocol, state = number(l3 + (9 if four else 6), 1)
        at = self.layers.all(0) + l3 + (number(l3, 1)[0] % 16 * 4 if four else 40)
        protocol, state = protocol.copy(), np.where(kind == (IP if four else IP6), state, ABSENT)
        rows = np.arange(self.layers.n)
        for _ in range(256):
            can = one_of(protocol[rows], (51,) if four else (51, 0, 43, 44, 60))
            rows = rows[(state[rows] == OK) & (protocol[rows] != node.value) & can]
            if not len(rows):
                break
            where = at[rows]
            (following, state[rows]), length = number(where, 2, rows), number(where + 1, 1, rows)[0]
            at[rows] = np.where(protocol[rows] == 51, l3 + (length + 2) * 4, where + (length + 1) * 8)
            protocol[rows] = following >> 8
        else:
            state[rows[state[rows] == OK]] = CUT
        return protocol == node.value, state

    # ---- our own fields

    def _field(self, node: t.Field, kind: Ints, l3: Ints) -> tuple[Bools, Ints]:
        it, six = self.layers, kind == IP6
        if node.field == t.PCP:
            value, state = it.number(l3, 1)
            return within(value >> 5, node.ranges), np.where(one_of(kind, TAGS), state, ABSENT)
        if node.field == t.TAGS:
            value, state = self._n_tags(kind, l3)
            return within(value, node.ranges), state
        if node.field == t.EXTENSION:
            found, state = self._extension(node, l3)
        else:
            value, state = self._value(node, l3, six)
            found = within(value, node.ranges)
        return found, np.where(self._bit(kind) & node.kinds > 0, state, ABSENT)

    def _n_tags(self, kind: Ints, l3: Ints) -> Found:
        n, state = self.layers.all(0), self.layers.all(OK)
        for _ in range(t.MAX_TAGS):
            going = (state == OK) & one_of(kind, TAGS)
            following, is_there = self.layers.number(l3 + 2, 2)
            state = np.where(going, is_there, state)
            kind, l3, n = np.where(going, following, kind), l3 + 4 * going, n + going
        return n, state

    def _value(self, node: t.Field, l3: Ints, six: Bools) -> Found:
        number, field = self.layers.number, node.field
        if field == t.TTL:
            return self.layers.either(six, l3 + 7, l3 + 8, 1)
        if field == t.FLOW_LABEL:
            value, state = number(l3, 4)
            return value % (1 << 20), state
        if field in (t.DSCP, t.ECN):
            value, state = number(l3, 2)
            value = value >> np.where(six, 4, 0) & 255
            return (value >> 2 if field == t.DSCP else value & 3), state
        if field == t.FRAGMENT:
            return self._fragment(l3, six)
        protocol, _, state, _ = self.layers.transport(node.layer)
        may_move = six & one_of(protocol, MOVABLE)
        return protocol, np.where((state == HIDDEN) & ~may_move, OK, state)

    def _fragment(self, l3: Ints, six: Bools) -> Found:
        it, number = self.layers, self.layers.number
        bits, state4 = number(l3 + 6, 2)
        value4 = np.where(bits % 8192 > 0, t.LATER, np.where(bits & 0x2000 > 0, t.FIRST, t.NOT_FRAGMENTED))
        protocol, at, state, left = number(l3 + 6, 1)[0], l3 + 40, it.has(l3, 40), it.all(8)
        while True:
            going = (state == OK) & one_of(protocol, MOVABLE)
            if not (six & going).any():
                break
            is_there = first(np.where((left == 0) | (at + 8 > l3 + 40 + 256), CUT, OK), it.has(at, 8))
            following, length = number(at, 1)[0], number(at + 1, 1)[0]
            state = np.where(going, is_there, state)
            moves = going & (is_there == OK)
            at = np.where(moves, at + np.where(protocol == 51, 4 * (length + 2), 8 * (length + 1)), at)
            protocol, left = np.where(moves, following, protocol), left - moves
        bits = number(at + 2, 2)[0]
        value6 = np.where(bits >> 3 > 0, t.LATER, np.where(bits & 1 > 0, t.FIRST, t.ATOMIC))
        value6, state = np.where(protocol == 44, value6, t.NOT_FRAGMENTED), first(state, np.where(protocol == 44, it.has(at, 8), OK))
        return np.where(six, value6, value4), np.where(six, state, state4)

    def _extension(self, node: t.Field, l3: Ints) -> tuple[Bools, Ints]:
        it, number = self.layers, self.layers.number
        protocol, state = number(l3 + 6, 1)
        at = l3 + 40
        for _ in range(10):
            is_fragment, found = protocol == 44, within(protocol, node.ranges)
            going = (state == OK) & ~found & (is_fragment | one_of(protocol, MOVABLE))
            if not going.any():
                break
            following, length, bits = number(at, 1)[0], number(at + 1, 1)[0], number(at + 2, 2)[0]
            is_there = np.where(is_fragment, it.has(at, 8), it.has(at, 2))
            is_last = going & is_fragment & (is_there == OK) & (bits >> 3 > 0)
            state = np.where(going, is_there, state)
            step = np.where(is_fragment, 8, np.where(protocol == 51, 4 * (length + 2), 8 * (length + 1)))
            moves = going & (is_there == OK)
            protocol, at = np.where(moves, following, protocol), np.where(moves, at + step, at)
            hides = is_last & one_of(protocol, MOVABLE) & ~within(protocol, node.ranges)
            state = np.where(hides, HIDDEN, state)
            protocol = np.where(is_last & ~hides & (protocol == 44) & ~within(protocol, node.ranges), -1, protocol)
        else:
            state[moves & ~is_last & (state == OK)] = CUT
        return within(protocol, node.ranges), state


_BY_BIT = tuple((bit, ethertype) for ethertype, bit in _KINDS)


@dataclass
class Judged:
    """`promised`: False of a datagram in more pieces than the filter must remember."""

    verdicts: NDArray[np.uint64]
    causes: NDArray[np.str_]
    promised: Bools


NONE, NOT_SEEN, PASS, DROP, CANNOT_TELL = range(5)


class BulkTwin:
    def __init__(self, config: Config) -> None:
        self.config = config
        self.rules = {m.name: [(rule.action, self.tree(rule.expression)) for rule in m.rules] for m in config.maps}
        self.tools = {tool.name: 1 << tool.slot for tool in config.tools}
        self.inputs = {i.name: i.slot for i in config.inputs}

    def tree(self, expression: str) -> t.Node:
        return simplify(parse_expression(expression, self.config.sets))

    def decide(self, m: Map, frames: Frames, answers: Answers) -> NDArray[np.int8]:
        decided = np.full(len(frames), NONE, np.int8)
        if m.inputs:
            decided[~one_of(frames.inputs, tuple(self.inputs[name] for name in m.inputs))] = NOT_SEEN
        libpcap = m.undetermined == "libpcap"
        for action, node in self.rules[m.name]:
            answer, left = answers.of(node, libpcap), decided == NONE
            decided[left & (answer == TRUE)] = PASS if action == "pass" else DROP
            if not libpcap:
                decided[left & (answer == UNDETERMINED)] = CANNOT_TELL
        return decided

    def judge(self, frames: Frames) -> Judged:
        """Apart from the frames before: nothing that is known of fragments then may still matter."""
        answers = Answers(frames, r.Reference())
        n = len(frames)
        verdicts, passed, dropped, withheld = np.zeros(n, np.uint64), np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, bool)
        for m in self.config.maps:
            decided = self.decide(m, frames, answers)
            delivers = (decided == PASS) | ((decided == CANNOT_TELL) & (m.undetermined == "deliver"))
            passed |= delivers
            dropped |= decided == DROP
            withheld |= (decided == CANNOT_TELL) & ~delivers
            verdicts[delivers] |= np.uint64(sum(self.tools[name] for name in set(m.to)))
        rest = "collected" if self.config.collector else "filtered"
        causes = np.where(passed, "forwarded", np.where(dropped, "dropped_rule", np.where(withheld, "dropped_undetermined", rest)))
        verdicts[causes == "collected"] = sum(self.tools[name] for name in set(self.config.collector))
        return Judged(verdicts, causes, answers.promised)
