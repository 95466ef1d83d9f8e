"""From a configuration to the policy image: the program, the class tables of its fields, and where each class goes in the key."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import classes, image, tree
from broker.config.policy.classes import Ranges, classify
from broker.config.policy.errors import PolicyError
from broker.config.policy.image import FIELD_NUMBER, KEY_BITS, KEY_WORDS, PORT_SEEN, Builder
from broker.config.policy.parser import MAX_TAGS, parse
from broker.config.policy.program import Program
from broker.config.policy.sets import read_set
from broker.config.policy.tree import ARP, DESTINATION, IP, IP6, RARP, SOURCE, Test
from broker.core.layout import INPUTS, MAPS
from broker.core.model import Config

MAX_PREDICATES = KEY_BITS // 2
_ETHERTYPE = {IP: 0x0800, ARP: 0x0806, RARP: 0x8035, IP6: 0x86DD}
_TAGS = (0x8100, 0x88A8, 0x9100)
_PROTOCOL_OF_BIT = {1: 6, 2: 17, 4: 132}
_TOP = {4: (1 << 32) - 1, 6: (1 << 128) - 1}

# KEY.protocol: IPv4 protocol, 256 + IPv6 next header, 512 + next header of the fragment header, or not IP
IP6_AT, FRAGMENT6_AT, NOT_IP = 256, 512, 768


def compile_policy(config: Config) -> bytes:
    """PolicyError for an expression that the loader let through, or a policy that is too large."""
    if len(config.maps) > MAPS:
        raise PolicyError(f"{len(config.maps)} maps; there is room for {MAPS}")
    sets = {name: read_set(name, texts) for name, texts in config.sets.items()}
    tool = {t.name: 1 << t.slot for t in config.tools}
    slot = {i.name: i.slot for i in config.inputs}
    program = Program()
    builder = Builder(len(config.maps))
    for row, m in zip(builder.maps, config.maps, strict=True):
        rules = [(rule.action, parse(rule.expression, sets)) for rule in m.rules]
        row["first"] = program.add_map(rules, m.undetermined == "libpcap")
        row["inputs"] = _signed(sum(1 << slot[name] for name in set(m.inputs))) if m.inputs else -1
        row["tools"] = _signed(sum(tool[name] for name in set(m.to)))
        row["slot"] = m.slot
        row["deliver"] = m.undetermined == "deliver"
    builder.header[0]["collector"] = _signed(sum(tool[name] for name in set(config.collector)))
    table = program.table(builder)
    builder.header[0]["n_tests"], builder.header[0]["tests_at"] = len(table), builder.add(table)
    _add_fields(builder, program)
    finished = builder.finish()
    if len(finished) > image.MAX_BYTES:
        raise PolicyError(f"the policy needs {len(finished):,} bytes of tables; at most {image.MAX_BYTES:,}")
    return finished


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits


# ---- fields: what each test asks of each, as ranges


def _one(value: int) -> Ranges:
    return ((value, value),)


def is_range(mask: int) -> bool:
    """The mask is a prefix, so what it matches is one range."""
    rest = ~mask & 0xFFFFFFFF
    return rest & (rest + 1) == 0


def _kinds(kinds: int) -> Ranges:
    return tuple((value, value) for bit, value in _ETHERTYPE.items() if kinds & bit)


def _protocols(test: tree.Protocol | tree.Port) -> list[Ranges]:
    """Ranges of KEY.protocol."""
    if isinstance(test, tree.Port):
        values = [p for bit, p in _PROTOCOL_OF_BIT.items() if test.protocols & bit]
        return [tuple((at + v, at + v) for at in (0, IP6_AT) for v in values), tuple((FRAGMENT6_AT + v, FRAGMENT6_AT + v) for v in values)]
    if test.value > 255:
        return []
    ranges: list[tuple[int, int]] = [(test.value, test.value)] if test.kinds & IP else []
    if test.kinds & IP6:
        ranges.append((IP6_AT + test.value, IP6_AT + test.value))
        ranges.append((FRAGMENT6_AT, FRAGMENT6_AT + 255) if test.value == 44 else (FRAGMENT6_AT + test.value, FRAGMENT6_AT + test.value))
    return [tuple(ranges)]


def asks(test: Test) -> list[tuple[str, Ranges]]:
    """(field, ranges) for everything that the answer of the test depends on, in a packet that shows its headers."""
    match test:
        case tree.EtherType():
            return [("ethertype", _one(test.value))]
        case tree.VlanId():
            return [("vlan", _one(test.value))]
        case tree.Address4():
            net = (test.net, test.net | ~test.mask & 0xFFFFFFFF)
            return [("ethertype", _kinds(test.kinds)), (f"{_side(test)}4", (net,))]
        case tree.Address4Set():
            return [("ethertype", _kinds(test.kinds)), (f"{_side(test)}4", test.ranges)]
        case tree.Address6():
            net = (test.net, test.net | (1 << 128 - test.prefix) - 1)
            return [("ethertype", _kinds(IP6)), (f"{_side(test)}6", (net,))]
        case tree.Address6Set():
            return [("ethertype", _kinds(IP6)), (f"{_side(test)}6", test.ranges)]
        case tree.Protocol():
            return [("protocol", ranges) for ranges in _protocols(test)]
        case tree.Port():
            return [(f"{_side(test)}_port", test.ranges), *(("protocol", ranges) for ranges in _protocols(test))]
        case tree.Mac():
            return [(f"{_side(test)}_mac", _one(test.value))]
        case tree.MacGroup():
            return [("group", _one(1))]
        case tree.Multicast():
            first = 0xE0000000 if test.kind == IP else 0xFF << 120
            return [("ethertype", _kinds(test.kind)), ("destination4" if test.kind == IP else "destination6", ((first, _top(test.kind)),))]
        case tree.Length():
            return [("length", ((test.first, test.last),)) if test.first <= test.last else ("length", ())]
    return []


def _top(kind: int) -> int:
    return _TOP[4 if kind == IP else 6]


def _side(test: tree.Address4 | tree.Address4Set | tree.Address6 | tree.Address6Set | tree.Port | tree.Mac) -> str:
    return {SOURCE: "source", DESTINATION: "destination"}[test.side]


def is_predicate(test: Test | bool) -> bool:
    """No class of values answers it: it is run for each packet and its answer is part of the key."""
    if isinstance(test, tree.Llc | tree.Compare | tree.ProtoChain | tree.FirstFragment) or tree.tags(getattr(test, "layer", ())) < 0:
        return True
    return isinstance(test, tree.Address4) and not is_range(test.mask)


class _Key:
    """Gives each field its bits of the key: the next free ones, in the first word that has room."""

    def __init__(self) -> None:
        self.used = [0] * KEY_WORDS

    def place(self, row: NDArray[np.void], n_values: int) -> None:
        bits = max(1, (n_values - 1).bit_length())
        for word in range(KEY_WORDS):
            if self.used[word] + bits <= KEY_BITS:
                row["word_at"], row["shift"] = 8 * word, self.used[word]
                self.used[word] += bits
                return
        raise PolicyError("the rules tell more kinds of packets apart than fit the key: simplify them")


def _add_fields(builder: Builder, program: Program) -> None:
    head = builder.header[0]
    asked: dict[str, list[Ranges]] = {}
    for test in program.tests():
        if not is_predicate(test):
            for name, ranges in asks(test):
                asked.setdefault(name, []).append(ranges)
    head["depth"] = max((tree.tags(getattr(test, "layer", ())) for test in program.tests()), default=0)

    key = _Key()

    def field(name: str, n_values: int, table: NDArray[np.generic] | None = None, n: int = 0) -> None:
        row = builder.fields[FIELD_NUMBER[name]]
        if table is not None:
            row["at"], row["n"] = builder.add(table), n
        key.place(row, n_values)

    for side in ("source", "destination"):  # what most packets need first: it lands in the first word
        _add_side(builder, field, side, asked)
    if "protocol" in asked:
        found = classify(asked["protocol"], NOT_IP)
        field("protocol", found.n, classes.direct_table(found, NOT_IP + 1), NOT_IP + 1)
    _add_ethertype_and_tags(builder, field, asked)
    _add_input(builder, field)
    for name, top in (("length", _TOP[4]), ("source_mac", (1 << 48) - 1), ("destination_mac", (1 << 48) - 1)):
        if name in asked:
            found = classify(asked[name], top)
            field(name, found.n, classes.search_table(found), len(found.starts))
    if "group" in asked:
        field("group", 2)
    _add_predicates(builder, key, program)


_AddField = Callable[..., None]


def _add_side(builder: Builder, field: _AddField, side: str, asked: dict[str, list[Ranges]]) -> None:
    n_values = 0
    for name, top in ((f"{side}4", _TOP[4]), (f"{side}6", _TOP[6])):
        if name in asked:
            found = classify(asked[name], top)
            table = classes.trie_table(found) if name[-1] == "4" else classes.search_table_128(found)
            row = builder.fields[FIELD_NUMBER[name]]
            row["at"], row["n"], row["shift"] = builder.add(table), len(found.starts), 0
            n_values = max(n_values, found.n)
    if n_values:
        field(side, n_values + 1)  # 0: the packet has none
    if f"{side}_port" in asked:
        found = classify(asked[f"{side}_port"], 65535)
        if found.n + PORT_SEEN > 65535:
            raise PolicyError(f"{found.n} kinds of ports, at most {65535 - PORT_SEEN}")
        field(f"{side}_port", found.n + PORT_SEEN, classes.direct_table(found, 65536) + np.uint16(PORT_SEEN), 65536)


def _add_ethertype_and_tags(builder: Builder, field: _AddField, asked: dict[str, list[Ranges]]) -> None:
    kinds = classify(asked.get("ethertype", []), 65535)
    if "ethertype" in asked:
        field("ethertype", kinds.n, classes.search_table(kinds), len(kinds.starts))
    of_tag = [classes.direct_table(kinds, 65536, "<u4")[tag] for tag in _TAGS]
    distinct = sorted(set(map(int, of_tag)))
    vlans = classify(asked.get("vlan", []), 4095)
    by_id = classes.direct_table(vlans, 4096).astype(np.uint32)
    table = np.concatenate([1 + by_id * len(distinct) + distinct.index(int(kind)) for kind in of_tag])
    n_values = 1 + vlans.n * len(distinct)
    at = builder.add(table.astype("<u2"))
    for depth in range(min(int(builder.header[0]["depth"]) + 1, MAX_TAGS)):
        field(f"tag{depth}", n_values)
        row = builder.fields[FIELD_NUMBER[f"tag{depth}"]]
        row["at"], row["n"] = at, len(table)


def _add_input(builder: Builder, field: _AddField) -> None:
    """Inputs that the same maps see share a class."""
    seen_by = [tuple(bool(int(m["inputs"]) >> i & 1) for m in builder.maps) for i in range(INPUTS)]
    seen_by.append(tuple(int(m["inputs"]) == -1 for m in builder.maps))
    known: dict[tuple[bool, ...], int] = {}
    table = np.array([known.setdefault(maps, len(known)) for maps in seen_by], "<u2")
    if len(known) > 1:
        field("input", len(known), table, len(table))


def _add_predicates(builder: Builder, key: _Key, program: Program) -> None:
    unguarded = program.unguarded()
    rows: dict[object, int] = {}
    for i, row in enumerate(program.rows):
        if is_predicate(row.test) or i in unguarded:
            rows.setdefault((row.test, row.hidden), i)
    builder.header[0]["memo"] = len(rows) <= MAX_PREDICATES
    if rows and len(rows) <= MAX_PREDICATES:
        out = builder.fields[FIELD_NUMBER["predicates"]]
        numbers = np.array(list(rows.values()), np.int64)
        out["at"], out["n"] = builder.add(numbers), len(numbers)
        key.place(out, 1 << 2 * len(numbers))
