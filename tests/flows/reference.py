"""A slow meter: what the flows stage is to make of a capture, in plain Python, with libpcap to read it and no line of the stage's.

Two things depend on when the stage looks for flows that are over, and not on the packets alone: so `ends` are the reasons that a record
may have been ended for, `end` the one that this meter gives.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import libpcap
from tests.flows.fragments import Fragments
from tests.flows.frames import TCP, UDP, Packet, dissect
from tests.flows.named import Name, code_of_dns, question_of_dns, server_of_tls
from tests.libpcap import Record

IDLE, ACTIVE, SEEN, FORCED = 1, 2, 3, 4
FIN, SYN, RST, ACK = 1, 2, 4, 16
CLOSED_NS = 2_000_000_000
SECOND_NS = 1_000_000_000
_HALF, _MASK = 1 << 31, (1 << 32) - 1

End = tuple[bytes, int]
"""Address and port."""


@dataclass(frozen=True)
class Seen:
    """A packet as the meter takes it; `why`: it is in no flow."""

    number: int
    ts_ns: int
    wirelen: int
    why: str = ""
    packet: Packet | None = None
    ports: tuple[int, int] = (0, 0)


@dataclass
class _Side:
    """What one direction has shown, since the flow began."""

    next: int | None = None
    fin: bool = False


@dataclass
class _Flow:
    ends: tuple[End, End]  # source, destination
    packet: Packet  # the first one
    began: bool = False
    continued: bool = False
    rst: bool = False
    sides: tuple[_Side, _Side] = field(default_factory=lambda: (_Side(), _Side()))
    syn_ns: list[int] = field(default_factory=list)
    answer_ns: list[int] = field(default_factory=list)
    rtt_us: list[int] = field(default_factory=lambda: [0, 0])
    name: Name | None = None
    dns_code: int = 255
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def closed(self) -> bool:
        return self.rst or all(side.fin for side in self.sides)


def see(records: Iterable[Record], layer: str = "outer") -> Iterator[Seen]:
    fragments = Fragments()
    for number, record in enumerate(records):
        found = dissect(record, layer)
        if isinstance(found, str):
            yield Seen(number, record.ts_ns, record.wirelen, found)
            continue
        outer = found if layer == "outer" else dissect(record)
        outer_ports = fragments.ports(outer, record.ts_ns) if isinstance(outer, Packet) else (0, 0)
        ports = found.ports if found.tunnel else outer_ports
        yield Seen(number, record.ts_ns, record.wirelen, "", found, ports)


def meter(path: Path, *, layer: str = "outer", idle_s: float = 15, active_s: float = 60) -> list[dict[str, Any]]:
    """All records of a capture file, in the order of `sort_key`."""
    return meter_packets(see(libpcap.read(path).records, layer), idle_s=idle_s, active_s=active_s)


def meter_packets(packets: Iterable[Seen], *, idle_s: float = 15, active_s: float = 60) -> list[dict[str, Any]]:
    meter = _Meter(round(idle_s * SECOND_NS), round(active_s * SECOND_NS))
    for seen in packets:
        if seen.packet is not None:
            meter.take(seen, seen.packet)
    return meter.finish()


def sort_key(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        record[key]
        for key in (
            "first_ns", "last_ns", "version", "protocol", "source", "destination", "source_port", "destination_port", "vlan", "tunnel",
            "tunnel_id", "packets", "bytes",
        )
    )  # fmt: skip


class _Meter:
    def __init__(self, idle_ns: int, active_ns: int) -> None:
        self.idle_ns, self.active_ns = idle_ns, active_ns
        self.flows: dict[object, _Flow] = {}
        self.done: list[dict[str, Any]] = []
        self.now_ns = 0

    def take(self, seen: Seen, packet: Packet) -> None:
        self.now_ns = max(self.now_ns, seen.ts_ns)
        one, other = (packet.source, seen.ports[0]), (packet.destination, seen.ports[1])
        vlan = packet.vlans[0] if packet.vlans else 0
        key = (min(one, other), max(one, other), packet.version, packet.protocol, vlan, packet.tunnel, packet.tunnel_id)
        flags = _flags(packet)
        flow = self.flows.get(key)
        if flow is not None:
            flow = self._goes_on(flow, seen.ts_ns, flags)
        if flow is None:
            turned = flags & (SYN | ACK) == SYN | ACK
            flow = self.flows[key] = _Flow((other, one) if turned else (one, other), packet, began=bool(flags & SYN))
        self._count(flow, seen, packet, flags, 0 if one == flow.ends[0] else 1)

    def _goes_on(self, flow: _Flow, ts_ns: int, flags: int) -> _Flow | None:
        record = flow.record
        silent_ns = ts_ns - record["last_ns"]
        if silent_ns > self.idle_ns:
            self._end(flow, IDLE, {IDLE, SEEN} if flow.closed else {IDLE})
            return None
        if flow.closed and (flags & (SYN | ACK) == SYN or silent_ns > CLOSED_NS):
            self._end(flow, SEEN, {SEEN})
            return None
        if ts_ns - record["first_ns"] >= self.active_ns:
            self._end(flow, ACTIVE, {ACTIVE})
            flow.record = {}
            flow.continued = True
        return flow

    def _count(self, flow: _Flow, seen: Seen, packet: Packet, flags: int, way: int) -> None:
        if not flow.record:
            flow.record = _empty(seen.ts_ns)
        record = flow.record
        record["first_ns"] = min(record["first_ns"], seen.ts_ns)
        record["last_ns"] = max(record["last_ns"], seen.ts_ns)
        short = min(packet.n_bytes, 65_535)
        if record["packets"][way] == 0:
            record["tos"][way] = packet.tos
            record["min_bytes"][way] = short
        record["min_bytes"][way] = min(record["min_bytes"][way], short)
        record["max_bytes"][way] = max(record["max_bytes"][way], short)
        record["packets"][way] += 1
        record["bytes"][way] += packet.n_bytes
        record["fragments"] |= bool(packet.fragment)
        if packet.protocol == TCP and packet.l4 is not None and len(packet.l4) > 13:
            record["tcp_flags"][way] |= flags
            _handshake(flow, seen.ts_ns, flags, way)
            record["retransmitted"][way] += _repeated(flow.sides[way], packet, flags)
            flow.sides[way].fin |= bool(flags & FIN)
            flow.rst |= bool(flags & RST)
        _note_name(flow, packet, seen.ports, way)

    def _end(self, flow: _Flow, end: int, ends: set[int]) -> None:
        first = flow.packet
        name = flow.name or Name("", "")
        source, destination = flow.ends
        self.done.append(
            {key: tuple(value) if isinstance(value, list) else value for key, value in flow.record.items()}
            | {
                "source": str(ipaddress.ip_address(source[0])),
                "destination": str(ipaddress.ip_address(destination[0])),
                "source_port": source[1],
                "destination_port": destination[1],
                "version": first.version,
                "protocol": first.protocol,
                "vlan": first.vlans[0] if first.vlans else 0,
                "tunnel": first.tunnel,
                "tunnel_id": first.tunnel_id,
                "ttl": first.ttl,
                "rtt_us": tuple(flow.rtt_us),
                "began": flow.began,
                "continued": flow.continued,
                "end": end,
                "ends": frozenset(ends),
                "named": name.kind,
                "name": name.text,
                "dns_type": name.dns_type,
                "dns_code": flow.dns_code,
            }
        )

    def finish(self) -> list[dict[str, Any]]:
        for flow in self.flows.values():
            silent_ns = self.now_ns - flow.record["last_ns"]
            if flow.closed:
                self._end(flow, SEEN, {SEEN})
            elif silent_ns > self.idle_ns:
                self._end(flow, IDLE, {IDLE, FORCED})
            else:
                self._end(flow, FORCED, {FORCED})
        return sorted(self.done, key=sort_key)


def _empty(ts_ns: int) -> dict[str, Any]:
    pairs = ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "retransmitted")
    return {"first_ns": ts_ns, "last_ns": ts_ns, "fragments": False, **{key: [0, 0] for key in pairs}}


def _flags(packet: Packet) -> int:
    return packet.l4[13] if packet.protocol == TCP and packet.l4 is not None and len(packet.l4) > 13 else 0


def _handshake(flow: _Flow, ts_ns: int, flags: int, way: int) -> None:
    if flags & SYN and not flags & ACK and way == 0 and not flow.answer_ns:
        flow.syn_ns.append(ts_ns)
    elif flags & SYN and flags & ACK and way == 1 and not flow.rtt_us[0]:
        flow.answer_ns.append(ts_ns)
        if len(flow.syn_ns) == 1 and len(flow.answer_ns) == 1:
            flow.rtt_us[1] = _us(flow.syn_ns[0], ts_ns)
    elif flags & ACK and not flags & SYN and way == 0 and len(flow.answer_ns) == 1 and flow.rtt_us[1] and not flow.rtt_us[0]:
        flow.rtt_us[0] = _us(flow.answer_ns[0], ts_ns)


def _us(since_ns: int, ts_ns: int) -> int:
    """Both are taken in whole microseconds, as most captures have them."""
    return max(1, ts_ns // 1000 - since_ns // 1000)


def _repeated(side: _Side, packet: Packet, flags: int) -> int:
    assert packet.l4 is not None
    header = 4 * (packet.l4[12] >> 4)
    if header < 20 or header > packet.l4_len:
        return 0
    n_payload = packet.l4_len - header
    sequence = int.from_bytes(packet.l4[4:8], "big")
    end = (sequence + n_payload + bool(flags & SYN) + bool(flags & FIN)) & _MASK
    if side.next is None:
        side.next = end
        return 0
    if 0 < (end - side.next) & _MASK < _HALF:
        side.next = end
        return 0
    keeps_alive = n_payload == 1 and sequence == (side.next - 1) & _MASK
    return int(n_payload > 0 and not keeps_alive)


def _note_name(flow: _Flow, packet: Packet, ports: tuple[int, int], way: int) -> None:
    if packet.l4 is None or packet.fragment == "later":
        return
    if packet.protocol == UDP and {53, 5353} & set(ports):
        message = packet.l4[8:]
        flow.name = flow.name or question_of_dns(message)
        if flow.dns_code == 255 and flow.name and flow.name.kind == "dns":
            flow.dns_code = code_of_dns(message)
    elif packet.protocol == TCP and way == 0 and flow.name is None and len(packet.l4) > 20:
        flow.name = server_of_tls(packet.l4[4 * (packet.l4[12] >> 4) :])
