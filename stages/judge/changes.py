"""Two policies over the same packets: whose fate changes, and how.

A packet's fate is the tools that get it, the cause if none does, and what each map decides. Maps are told apart by their names; one that
is in one of the policies only decides `none` in the other. What the packets of equal outcomes have in common is worked out once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from broker.core.batch import Batch
from stages.judge.parsed import TRANSPORTS
from stages.judge.policy import PACKETS, Judging, Outcome
from stages.wire.key import FRAGMENT6_AT, IP6_AT, KEY, KIND_ARP, KIND_IP6, KIND_OTHER, NOT_IP

MAX_TALKERS = 65_536
"""Conversations that are counted; when there are more the smallest are forgotten."""

MAX_PAIRS = 65_536
EXAMPLES = 10

Amounts = list[int]  # packets, bytes on the wire
assert KEY.fields is not None
_ENDS, _PORTS_AT, _PORTS_END = 32, KEY.fields["ethertype"][1], KEY.fields["kind"][1] + 1


@dataclass(slots=True)
class _Pair:
    """The outcomes of a packet by the old and the new policy."""

    old: Outcome
    new: Outcome
    maps: list[tuple[str, str, str]]  # whose decision differs: name, before, after
    changed: bool
    amounts: Amounts = field(default_factory=lambda: [0, 0])


class Changes:
    """`add` blocks, then `report`."""

    def __init__(self, old: Judging, new: Judging) -> None:
        self.old, self.new = old, new
        self._names = [[m.name for m in judging.generation.config.maps] for judging in (old, new)]
        self._pairs: dict[tuple[int, int], _Pair] = {}
        self.packets = self.changed = self.changed_bytes = 0
        self.maps: dict[tuple[str, str, str], Amounts] = {}
        self.causes: dict[tuple[str, str], Amounts] = {}
        self.tools: dict[tuple[str, bool], Amounts] = {}  # gained: True
        self.talkers: dict[bytes, Amounts] = {}
        self.forgotten = 0
        self.examples: list[dict[str, Any]] = []

    def add(self, batch: Batch, first: int) -> None:
        """A block; its packets are counted from `first`, 0: they have no numbers to be named by."""
        n = int(batch.block["n_packets"][0])
        for begin in range(0, n, PACKETS):
            if (self.old.begin_block() | self.new.begin_block()) or len(self._pairs) > MAX_PAIRS:
                self._fold()
            for i in range(begin, min(begin + PACKETS, n)):
                self._judge(batch, i, first and first + i)
        self.packets += n

    def _judge(self, batch: Batch, i: int, number: int) -> None:
        key = self.old.judge(batch, i), self.new.judge(batch, i)
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = self._pair(self.old.outcome(key[0]), self.new.outcome(key[1]))
        if pair.changed:
            n_bytes = int(batch.packets[i]["wirelen"])
            pair.amounts[0] += 1
            pair.amounts[1] += n_bytes
            self._talk(batch, i, n_bytes)
            if number and len(self.examples) < EXAMPLES:
                self.examples.append({"packet": number, "maps": pair.maps, "before": pair.old.tools, "after": pair.new.tools})

    def _pair(self, old: Outcome, new: Outcome) -> _Pair:
        before, after = (
            {name: kind for name, (kind, _) in zip(names, outcome.decisions, strict=True)}
            for names, outcome in zip(self._names, (old, new), strict=True)
        )
        maps = [
            (name, before.get(name, "none"), after.get(name, "none"))
            for name in dict.fromkeys([*before, *after])
            if before.get(name, "none") != after.get(name, "none")
        ]
        return _Pair(old, new, maps, bool(maps) or set(old.tools) != set(new.tools) or old.cause != new.cause)

    def _fold(self) -> None:
        """Numbers of outcomes are about to mean others."""
        for pair in self._pairs.values():
            if not pair.amounts[0]:
                continue
            self.changed += pair.amounts[0]
            self.changed_bytes += pair.amounts[1]
            for one in pair.maps:
                _add(self.maps, one, pair.amounts)
            if pair.old.cause != pair.new.cause:
                _add(self.causes, (pair.old.cause, pair.new.cause), pair.amounts)
            for tool in set(pair.old.tools) ^ set(pair.new.tools):
                _add(self.tools, (tool, tool in pair.new.tools), pair.amounts)
        self._pairs.clear()

    def _talk(self, batch: Batch, i: int, n_bytes: int) -> None:
        row = self.new.row_bytes()
        packet = batch.packets[i]
        if row[_PORTS_END - 1] == KIND_OTHER:  # no addresses: the Ethernet ones
            at = int(packet["data_at"])
            ends = batch.data[at : at + min(12, int(packet["caplen"]))].tobytes().ljust(_ENDS, b"\0")
        else:
            ends = row[:_ENDS]
        talker = ends + row[_PORTS_AT:_PORTS_END]
        if len(self.talkers) >= MAX_TALKERS and talker not in self.talkers:
            kept = sorted(self.talkers.items(), key=lambda item: -item[1][0])[: MAX_TALKERS // 2]
            self.forgotten += len(self.talkers) - len(kept)
            self.talkers = dict(kept)
        _add(self.talkers, talker, [1, n_bytes])

    def report(self, top: int) -> dict[str, Any]:
        """As `broker.supervisor.judge.Judge.report` says."""
        self._fold()
        by_cause = Counter({key: amounts[0] for key, amounts in self.causes.items()})
        ordered = sorted(self.talkers.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
        return {
            "packets": self.packets,
            "changed": self.changed,
            "changed_bytes": self.changed_bytes,
            "maps": [
                {"map": name, "before": before, "after": after, "packets": a[0], "bytes": a[1]}
                for (name, before, after), a in self.maps.items()
            ],
            "tools": [
                {"tool": tool, "change": "gained" if gained else "lost", "packets": a[0], "bytes": a[1]}
                for (tool, gained), a in sorted(self.tools.items())
            ],
            "causes": [{"before": before, "after": after, "packets": n} for (before, after), n in by_cause.most_common()],
            "talkers": [{**_talker(key), "packets": a[0], "bytes": a[1]} for key, a in ordered[:top]],
            "talkers_forgotten": self.forgotten,
            "examples": self.examples,
        }


def _add(to: dict[Any, Amounts], key: Any, amounts: Amounts) -> None:
    sums = to.setdefault(key, [0, 0])
    sums[0] += amounts[0]
    sums[1] += amounts[1]


def _talker(key: bytes) -> dict[str, Any]:
    ethertype, protocol, source_port, destination_port = (int.from_bytes(key[_ENDS + at : _ENDS + at + 2], "little") for at in (0, 2, 4, 6))
    kind = key[-1]
    if kind == KIND_OTHER:
        return {"source": key[6:12].hex(":"), "destination": key[:6].hex(":"), "protocol": f"ethertype 0x{ethertype:04x}"}
    ends = [
        int.from_bytes(key[at : at + 8], "little") << 64 | int.from_bytes(key[at + 8 : at + 16], "little") for at in (0, 16)
    ]  # halves, each in host order
    source, destination = (str(IPv6Address(end) if kind == KIND_IP6 else IPv4Address(end)) for end in ends)
    if kind == KIND_ARP:
        return {"source": source, "destination": destination, "protocol": f"ethertype 0x{ethertype:04x}"}
    number = protocol - (FRAGMENT6_AT if protocol >= FRAGMENT6_AT else IP6_AT) if kind == KIND_IP6 and protocol != NOT_IP else protocol
    name = "cut off" if protocol == NOT_IP else TRANSPORTS.get(number, f"protocol {number}")
    ports = {"source_port": source_port, "destination_port": destination_port} if source_port or destination_port else {}
    return {"source": source, "destination": destination, "protocol": name, **ports}
