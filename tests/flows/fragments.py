"""Which ports a later fragment has: those of the first of its datagram, if that came before. In plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.flows.frames import Packet

LIFETIME_NS = 60_000_000_000  # RFC 8200, section 4.5
COMPLETE_NS = 1_000_000_000  # RFC 4963: the identification may be in use again


@dataclass
class _Datagram:
    since_ns: int
    ports: tuple[int, int] | None = None
    pieces: list[tuple[int, int]] = field(default_factory=list)
    size: int = -1  # known from its last piece
    complete_ns: int = -1

    def add(self, at: int, n_bytes: int, more: bool, ts_ns: int) -> None:
        self.pieces.append((at, at + n_bytes))
        self.size = self.size if more else at + n_bytes
        reached = 0
        for start, end in sorted(self.pieces):
            if start > reached:
                return
            reached = max(reached, end)
        if reached == self.size and self.complete_ns < 0:
            self.complete_ns = ts_ns


class Fragments:
    def __init__(self) -> None:
        self._known: dict[object, _Datagram] = {}

    def ports(self, packet: Packet, ts_ns: int) -> tuple[int, int]:
        """Of a packet of any kind."""
        if not packet.fragment:
            return packet.ports
        identification, at, n_bytes, more = packet.datagram
        key = (packet.source, packet.destination, identification, packet.protocol if packet.version == 4 else 0, packet.vlans[:2])
        found = self._known.get(key)
        if found is None or ts_ns - found.since_ns > LIFETIME_NS or (0 <= found.complete_ns < ts_ns - COMPLETE_NS):
            found = self._known[key] = _Datagram(ts_ns)
        found.add(at, n_bytes, more, ts_ns)
        if packet.fragment == "first":
            found.ports = found.ports or packet.ports
            return packet.ports
        return found.ports or (0, 0)
