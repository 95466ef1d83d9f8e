"""The policy as the kernel can ask it before it captures: a program in classic BPF that knows packets which no rule can be about.

It is made of the terms of all rules, pass and drop (`fields.terms`: a packet outside of all of them is matched by none, and undetermined in
none), and only of what they say of tag, protocol, addresses and ports; of IPv6 addresses the first 32 bits. It speaks of plain packets
only, those that the parser's fast path takes: at most one tag, which the kernel has taken off, IPv4 without options and fragments or
IPv6 without extension headers, TCP or UDP, with ports and flags at hand. All others go on. So it may take too much, never too little.

    body | tail        the body ends in MARK for a packet that nobody wants, and runs into the tail with every other

MARK cuts the packet to one byte instead of rejecting it: the kernel does not count what a filter rejects, and what it cuts comes through
the ring, in order, with its length on the wire, so that capture counts it like any other (`stages/capture/admission.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from broker.config.policy.fields import IP6_AT, Term
from broker.config.policy.sets import merge
from broker.config.policy.tree import Ranges
from broker.core.model import Config, Input

MARK = 1
"""Bytes that are left of a packet that no rule is about. No frame is so short."""

MAX_INSTRUCTIONS = 1024  # of the kernel's 4096: a packet that is wanted may be asked all of it
_MAX_ALTERNATIVES = 16
_RANGES = (16, 8, 4, 2, 1)  # of one field: as many as there is room for
_UNTAGGED = 4096  # as a VLAN id

_LOAD, _LOAD_HALF, _LOAD_BYTE, _LOAD_LENGTH = 0x20, 0x28, 0x30, 0x80
_RECALL, _STORE, _CONSTANT = 0x60, 0x02, 0x00
_JUMP, _IF_EQUAL, _IF_GREATER, _IF_AT_LEAST, _AND, _RETURN = 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_TAG, _HAS_TAG = 0xFFFF_F000 + 44, 0xFFFF_F000 + 48  # linux/filter.h: SKF_AD_VLAN_TAG, SKF_AD_VLAN_TAG_PRESENT

_TAG_IS, _PROTOCOL, _SOURCE, _DESTINATION, _SOURCE_PORT, _DESTINATION_PORT = range(6)  # scratch words, and columns of an alternative
_TCP, _UDP = 6, 17

Alternative = tuple[Ranges | None, ...]
"""For each scratch word the values with which a rule may match; None: any."""


def prefilter(config: Config, input_: Input, terms: Sequence[Sequence[Sequence[Term]]]) -> bytes:
    """The body, of sock_filter[]; empty: every packet of this input may be wanted. `terms`: of each map, of each rule."""
    if input_.kind != "afpacket" or input_.prefilter == "off" or config.collector or config.flows:
        return b""
    asked = [
        term
        for m, rules in zip(config.maps, terms, strict=True)
        if not m.inputs or input_.name in m.inputs
        for rule in rules
        for term in rule
    ]
    alternatives = [_few({a for term in asked if (a := _alternative(term, is_ip6)) is not None}) for is_ip6 in (False, True)]
    if all((None,) * 6 in found for found in alternatives):
        return b""
    for n in _RANGES:
        body = _program([[tuple(r and _coarser(r, n) for r in a) for a in found] for found in alternatives])
        if len(body) <= MAX_INSTRUCTIONS:
            return b"".join(struct.pack("=HBBI", *instruction) for instruction in body)
    return b""


def _alternative(term: Term, is_ip6: bool) -> Alternative | None:
    """Where a plain packet of this version may meet the term; None: nowhere."""
    if "ethertype" in term and not _holds(term["ethertype"].ranges[0], 0x86DD if is_ip6 else 0x0800):
        return None
    if any(f"tag{depth}" in term and not term[f"tag{depth}"].none for depth in (1, 2, 3)):
        return None
    found: list[Ranges | None] = [None] * 6
    if "tag0" in term:
        found[_TAG_IS] = term["tag0"].ranges[0] + (((_UNTAGGED, _UNTAGGED),) if term["tag0"].none else ())
        if merge(list(found[_TAG_IS] or ())) == ((0, _UNTAGGED),):
            found[_TAG_IS] = None
    if "protocol" in term:
        base = IP6_AT if is_ip6 else 0
        protocols = [p for p in (_TCP, _UDP) if _holds(term["protocol"].ranges[0], base + p)]
        found[_PROTOCOL] = tuple((p, p) for p in protocols) if len(protocols) < 2 else None
    for column, name in ((_SOURCE, "source"), (_DESTINATION, "destination")):
        if name in term:
            ranges = term[name].ranges[is_ip6]
            found[column] = merge([(first >> 96, last >> 96) for first, last in ranges]) if is_ip6 else ranges
            if found[column] == ((0, 0xFFFF_FFFF),):
                found[column] = None
    for column, name in ((_SOURCE_PORT, "source_port"), (_DESTINATION_PORT, "destination_port")):
        if name in term:
            found[column] = term[name].ranges[0] if term[name].ranges[0] != ((0, 65535),) else None
    return None if () in found else tuple(found)


def _holds(ranges: Ranges, value: int) -> bool:
    return any(first <= value <= last for first, last in ranges)


def _few(found: Iterable[Alternative]) -> list[Alternative]:
    """As they are, or those that ask for the same columns as one, which allows what any of them does."""
    alternatives = sorted(set(found), key=repr)
    if (None,) * 6 in alternatives:
        return [(None,) * 6]
    if len(alternatives) <= _MAX_ALTERNATIVES:
        return alternatives
    alike: dict[tuple[bool, ...], list[Alternative]] = {}
    for a in alternatives:
        alike.setdefault(tuple(ranges is None for ranges in a), []).append(a)
    return [tuple(None if column[0] is None else _union(column) for column in zip(*group, strict=True)) for group in alike.values()]


def _union(column: Iterable[Ranges | None]) -> Ranges:
    return merge([r for ranges in column for r in ranges or ()])


def _coarser(ranges: Ranges, n: int) -> Ranges:
    """At most n ranges that hold all of these: the narrowest gaps are closed."""
    if len(ranges) <= n:
        return ranges
    gaps = sorted(range(1, len(ranges)), key=lambda i: ranges[i - 1][1] - ranges[i][0])[: n - 1]
    starts = [0, *sorted(gaps)]
    return tuple((ranges[a][0], ranges[b - 1][1]) for a, b in zip(starts, [*starts[1:], len(ranges)], strict=True))


class _Body:
    """Instructions; jumps to the tail are filled in at the end."""

    def __init__(self) -> None:
        self.code: list[list[int]] = []
        self._leaves: list[int] = []

    def add(self, code: int, k: int = 0, if_true: int = 0, if_false: int = 0) -> int:
        self.code.append([code, if_true, if_false, k])
        return len(self.code) - 1

    def leave(self) -> None:
        """The packet goes on."""
        self._leaves.append(self.add(_JUMP))

    def unless(self, code: int, k: int) -> None:
        """It goes on if the condition fails."""
        self.add(code, k, 1, 0)
        self.leave()

    def land(self, at: Iterable[int]) -> None:
        """Plain jumps at `at` come here."""
        for i in at:
            self.code[i][3] = len(self.code) - i - 1

    def finish(self) -> list[list[int]]:
        self.land(self._leaves)
        return self.code


def _program(alternatives: Sequence[Sequence[Alternative]]) -> list[list[int]]:
    body = _Body()
    body.add(_LOAD_LENGTH)  # a program that reads beyond the packet rejects it, and nobody counts that
    body.unless(_IF_AT_LEAST, 14 + 20 + 14)
    body.add(_LOAD_HALF, 12)
    body.add(_IF_EQUAL, 0x0800, 0, 1)
    ip = body.add(_JUMP)
    body.unless(_IF_EQUAL, 0x86DD)
    _section(body, alternatives[1], (_LOAD_LENGTH, 0, _IF_AT_LEAST, 14 + 40 + 14), (20, 22, 38, 54, 56))
    body.land([ip])
    _section(body, alternatives[0], (_LOAD_BYTE, 14, _IF_EQUAL, 0x45), (23, 26, 30, 34, 36), fragment_at=20)
    return body.finish()


def _section(
    body: _Body,
    alternatives: Sequence[Alternative],
    plain: tuple[int, int, int, int],
    places: tuple[int, int, int, int, int],
    fragment_at: int = 0,
) -> None:
    """Packets of one version. `plain`: what to load and how to compare it; `places`: of protocol, addresses and ports in the frame."""
    if (None,) * 6 in alternatives:
        body.leave()
        return
    load, at, condition, k = plain
    body.add(load, at)
    body.unless(condition, k)
    if fragment_at:
        body.add(_LOAD_HALF, fragment_at)
        body.add(_AND, 0x3FFF)
        body.unless(_IF_EQUAL, 0)
    protocol, source, destination, source_port, destination_port = places
    body.add(_LOAD_BYTE, protocol)
    body.add(_IF_EQUAL, _TCP, 2, 0)
    body.unless(_IF_EQUAL, _UDP)
    body.add(_STORE, _PROTOCOL)
    for load, at, column in (
        (_LOAD, source, _SOURCE), (_LOAD, destination, _DESTINATION),
        (_LOAD_HALF, source_port, _SOURCE_PORT), (_LOAD_HALF, destination_port, _DESTINATION_PORT),
    ):  # fmt: skip
        body.add(load, at)
        body.add(_STORE, column)
    body.add(_LOAD, _HAS_TAG)
    body.add(_IF_EQUAL, 0, 3, 0)
    body.add(_LOAD, _TAG)
    body.add(_AND, 0xFFF)
    body.add(_JUMP, 1)
    body.add(_CONSTANT, _UNTAGGED)
    body.add(_STORE, _TAG_IS)
    for alternative in alternatives:
        failed = [_check(body, column, ranges) for column, ranges in enumerate(alternative) if ranges is not None]
        body.leave()
        body.land(failed)
    body.add(_RETURN, MARK)


def _check(body: _Body, column: int, ranges: Ranges) -> int:
    """One field: falls through when its value is in the ranges; the jump that is returned is taken when not."""
    body.add(_RECALL, column)
    left = sum(1 if first == last else 2 for first, last in ranges) + 1  # instructions from here to behind the check
    for first, last in ranges:
        if first == last:
            left -= 1
            body.add(_IF_EQUAL, first, left, 0)
        else:
            left -= 2
            body.add(_IF_AT_LEAST, first, 0, 1)
            body.add(_IF_GREATER, last, 0, left)
    return body.add(_JUMP)
