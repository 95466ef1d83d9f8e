"""The tables of the image: for each field that some test asks for, value by content, bits in the key, and the terms that a value meets.

| value | a packet that | meets terms that allow, of this field |
|---|---|---|
| NONE | does not have the field | any value, or its absence |
| CUT | is cut off before it | any value, or any protocol of IPv4 or IPv6; whatever they allow, if their map is told what cannot be told |
| HIDDEN | is a later fragment | as NONE; and whatever they allow, if their map is told what cannot be told |
| UNKNOWN | has not been looked at closely | all |
| a class | has a value of it | any value, or values of this class |

Ports and details that libpcap would not find (of a fragment whose first is known) have a second bank of values: a class to the maps that
are told what cannot be told, NONE to those that follow libpcap.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from broker.config.policy import classes, tree
from broker.config.policy.classes import Classes, classify
from broker.config.policy.errors import PolicyError
from broker.config.policy.fields import DETAILS, FIELD_OF, IP6_AT, NOT_IP, TABLES, TAG_ETHERTYPES, Term, asks, is_predicate
from broker.config.policy.image import CHUNK_TERMS, FIELD_NUMBER, FIRST_CLASS, KEY_BITS, KEY_WORDS, MODE_LIBPCAP, NONE, Builder
from broker.config.policy.program import Program
from broker.config.policy.tree import Ranges
from broker.core.layout import INPUTS

_CHUNK = (1 << CHUNK_TERMS) - 1
_BANKS = {"source_port": 65536, "destination_port": 65536, "detail": DETAILS}


def add_tables(builder: Builder, program: Program, of_rules: list[list[Term]], unguarded: set[tree.Test], limit: int) -> int:
    """Returns the bytes of the whole image; when they exceed `limit` not all of it has been made."""
    asked: dict[str, list[Ranges]] = {}
    for test in program.tests:
        if not isinstance(test, bool) and not is_predicate(test) and test not in unguarded:
            for table, ranges in asks(test).items():
                asked.setdefault(table, []).append(ranges)
    depth = max((tree.tags(getattr(test, "layer", ())) for test in program.tests), default=0)
    builder.header[0]["depth"] = max(0, depth)
    for tag in range(min(max(0, depth) + 1, 4)):
        asked.setdefault(f"vlan{tag}", [])
    index = _index(builder, of_rules)
    for name in dict.fromkeys(FIELD_OF[table] for table in sorted(asked, key=lambda table: _ORDER.index(FIELD_OF[table]))):
        _add_field(builder, index, name, asked)
        if builder.size_bytes + index.chunk_bytes > limit:
            return builder.size_bytes + index.chunk_bytes
    _add_input(builder, index)
    chunks = b"".join(bits.to_bytes(CHUNK_TERMS // 8, "little") for bits in index.chunks)
    builder.header[0]["chunks_at"] = builder.add(np.frombuffer(chunks, np.uint8))
    return builder.size_bytes


_ORDER = (
    "source", "destination", "source_port", "destination_port", "protocol", "detail", "ethertype", "tag0", "tag1", "tag2", "tag3",
    "length", "source_mac", "destination_mac", "group",
)  # fmt: skip
"""What most packets need first, so that it lands in the first word of the key."""


@dataclass(slots=True)
class _Index:
    """Terms, numbered from 0 in the order of their rules. Sets of them are integers."""

    terms: list[Term]
    of_map: list[int]
    libpcap: int  # those of maps where what cannot be told does not match
    used: list[int] = field(default_factory=lambda: [0] * KEY_WORDS)
    chunks: dict[int, int] = field(default_factory=lambda: {0: 0})  # bits -> number
    kinds: dict[str, int] = field(default_factory=dict)  # values of each field so far

    @property
    def all(self) -> int:
        return (1 << len(self.terms)) - 1

    @property
    def n_chunks(self) -> int:
        return max(1, (len(self.terms) + CHUNK_TERMS - 1) // CHUNK_TERMS)

    @property
    def chunk_bytes(self) -> int:
        return len(self.chunks) * CHUNK_TERMS // 8

    def cut(self, rows: list[int]) -> NDArray[np.uint32]:
        """u4[rows, n_chunks]: numbers of chunks. Most rows are the first one with a few terms more."""
        numbers, first = self.chunks, rows[0]
        found = np.empty((len(rows), self.n_chunks), np.uint32)
        found[:] = [numbers.setdefault(first >> at & _CHUNK, len(numbers)) for at in range(0, self.n_chunks * CHUNK_TERMS, CHUNK_TERMS)]
        for row, out in zip(rows, found, strict=True):
            left = row ^ first
            while left:
                chunk = ((left & -left).bit_length() - 1) // CHUNK_TERMS
                out[chunk] = numbers.setdefault(row >> chunk * CHUNK_TERMS & _CHUNK, len(numbers))
                above = (chunk + 1) * CHUNK_TERMS
                left = left >> above << above
        return found

    def place(self, row: NDArray[np.void], name: str, n_values: int) -> None:
        """The next free bits of the key, in the first word that has room. PolicyError: there is none."""
        bits = max(1, (n_values - 1).bit_length())
        self.kinds[name] = n_values
        for word in range(KEY_WORDS):
            if self.used[word] + bits <= KEY_BITS:
                row["word_at"], row["shift"], row["mask"] = 8 * word, self.used[word], (1 << bits) - 1
                self.used[word] += bits
                return
        most = sorted(self.kinds, key=lambda name: -self.kinds[name])[:4]
        told = ", ".join(f"{self.kinds[name]:,} of {name.replace('_', ' ')}" for name in most)
        raise PolicyError(f"the rules tell more kinds of packets apart than fit the key ({told}): merge ranges that get the same answer")


def _index(builder: Builder, of_rules: list[list[Term]]) -> _Index:
    """Puts the terms into the image, those of each map together."""
    numbers: list[int] = []
    found: list[Term] = []
    of_map, libpcap = [], 0
    for row in builder.maps:
        first = len(found)
        for rule in range(int(row["first_rule"]), int(row["first_rule"]) + int(row["n_rules"])):
            found += of_rules[rule]
            numbers += [rule] * len(of_rules[rule])
        row["first_term"], row["n_terms"] = first, len(found) - first
        mine = (1 << len(found)) - (1 << first)
        of_map.append(mine)
        if row["mode"] == MODE_LIBPCAP:
            libpcap |= mine
    head = builder.header[0]
    index = _Index(found, of_map, libpcap)
    head["n_terms"], head["terms_at"] = len(numbers), builder.add(np.array(numbers, np.uint32))
    head["n_chunks"] = index.n_chunks
    return index


@dataclass(slots=True)
class _Groups:
    """Terms by what they allow in one field."""

    by_table: dict[str, dict[Ranges, int]]
    any_value: int
    absent: int  # allow any value, or that there is none


def _groups(index: _Index, name: str) -> _Groups:
    by_table: dict[str, dict[Ranges, int]] = {table: {} for table, _ in TABLES[name]}
    asking, absent = 0, 0
    numbers: dict[object, list[int]] = {}
    for number, term in enumerate(index.terms):
        if name in term:
            numbers.setdefault(term[name], []).append(number)
    for allowed, those in numbers.items():
        bits = _bits(those)
        asking |= bits
        if allowed.none:  # type: ignore[attr-defined]
            absent |= bits
        for (table, _), ranges in zip(TABLES[name], allowed.ranges, strict=True):  # type: ignore[attr-defined]
            if ranges:
                by_table[table][ranges] = by_table[table].get(ranges, 0) | bits
    return _Groups(by_table, index.all & ~asking, (index.all & ~asking) | absent)


def _unread(groups: _Groups, name: str) -> int:
    """Terms to which it does not matter that the protocol is cut off: all of IPv4's or all of IPv6's will do, as of what is not `icmp6`."""
    found = 0
    if name == "protocol":
        for ranges, bits in groups.by_table[name].items():
            if any(one <= start and last >= start + 255 for one, last in ranges for start in (0, IP6_AT)):
                found |= bits
    return found


def _bits(numbers: Iterable[int]) -> int:
    found = np.array(list(numbers))
    row = np.zeros(int(found[-1]) + 1, np.uint8)
    row[found] = 1
    return int.from_bytes(np.packbits(row, bitorder="little").tobytes(), "little")


def _add_field(builder: Builder, index: _Index, name: str, asked: dict[str, list[Ranges]]) -> None:
    groups = _groups(index, name)
    told = index.all & ~index.libpcap
    rows = [groups.absent, groups.any_value | told | _unread(groups, name), groups.absent | told, index.all]
    assert len(rows) == FIRST_CLASS
    tables = [
        classify(asked.get(table, ()), top, groups.by_table[table], groups.any_value) if table in asked else None
        for table, top in TABLES[name]
    ]
    out = builder.fields[FIELD_NUMBER[name]]
    if name in _BANKS:
        assert tables[0] is not None
        _add_banks(builder, index, name, tables[0], rows)
    elif name in ("source", "destination"):
        for found, number in zip(tables, ("4", "6"), strict=True):
            if found is not None:
                part = builder.fields[FIELD_NUMBER[name + number]]
                table = (classes.trie_table if number == "4" else classes.search_table_128)(found, len(rows))
                part["at"], part["n"], part["shift"] = builder.add(table), len(found.starts), 0
                rows += found.rows
    elif name.startswith("tag"):
        assert tables[0] is not None
        rows += _add_tag(builder, out, tables[0], asked)
    else:
        found = tables[0]
        assert found is not None
        rows += found.rows
        if name == "protocol":
            table = np.append(classes.direct_table(found, NOT_IP), NONE).astype("<u2")
            out["at"], out["n"] = builder.add(table), len(table)
        elif name != "group":
            out["at"], out["n"] = builder.add(classes.search_table(found)), len(found.starts)
            if name == "ethertype":
                out["of_ip"], out["of_ip6"] = (int(classes.direct_table(found, 65536)[kind]) for kind in (0x0800, 0x86DD))
        elif found.n == 1:
            rows += found.rows  # both values of the bit, wherever they are the same
    _finish(builder, index, name, rows)


def _add_banks(builder: Builder, index: _Index, name: str, found: Classes, rows: list[int]) -> None:
    out = builder.fields[FIELD_NUMBER[name]]
    rows += found.rows
    second = 0
    if index.libpcap:
        second, absent = found.n, rows[NONE] & index.libpcap
        rows += [row & ~index.libpcap | absent for row in found.rows]
    if len(rows) > 65535:
        raise PolicyError(f"{found.n} kinds of ports, at most {(65535 - FIRST_CLASS) // 2}")
    table = classes.direct_table(found, _BANKS[name])
    out["at"], out["n"] = builder.add(np.concatenate([table, table + second]).astype("<u2")), len(table)


def _add_tag(builder: Builder, out: NDArray[np.void], vlans: Classes, asked: dict[str, list[Ranges]]) -> list[int]:
    """Rows of the values, which tell kinds of tags apart only as far as tests of the ethertype do."""
    kinds = classify(asked.get("ethertype", []), 65535)
    of_tag = [int(classes.direct_table(kinds, 65536)[tag]) for tag in TAG_ETHERTYPES]
    distinct = sorted(set(of_tag))
    by_id = classes.direct_table(vlans, 4096, 0)
    table = np.concatenate([FIRST_CLASS + by_id * len(distinct) + distinct.index(kind) for kind in of_tag])
    out["at"], out["n"] = builder.add(table.astype("<u2")), len(table)
    return [row for row in vlans.rows for _ in distinct]


def _finish(builder: Builder, index: _Index, name: str, rows: list[int]) -> None:
    out = builder.fields[FIELD_NUMBER[name]]
    index.place(out, name, len(rows))
    out["rows_at"] = builder.add(index.cut(rows))


def _add_input(builder: Builder, index: _Index) -> None:
    """Inputs that the same maps see share a value."""
    if all(int(m["inputs"]) == -1 for m in builder.maps):
        return
    seen_by = [tuple(bool(int(m["inputs"]) >> i & 1) for m in builder.maps) for i in range(INPUTS)]
    seen_by.append(tuple(int(m["inputs"]) == -1 for m in builder.maps))
    known: dict[tuple[bool, ...], int] = {}
    table = np.array([FIRST_CLASS + known.setdefault(maps, len(known)) for maps in seen_by], "<u2")
    rows = [index.all] * FIRST_CLASS
    rows += [sum(terms for terms, seen in zip(index.of_map, maps, strict=True) if seen) for maps in known]
    out = builder.fields[FIELD_NUMBER["input"]]
    out["at"], out["n"] = builder.add(table), len(table)
    _finish(builder, index, "input", rows)
