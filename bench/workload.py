"""Traffic to measure with, written fast: packets of the usual sizes in zipf-distributed flows, the same at every run.

| size | frames of |
|---|---|
| imix | 60, 590 and 1514 bytes, 7 : 4 : 1 |
| 64 | 60 bytes (64 with the FCS) |
| 1514 | 1514 bytes |
| 9000 | 8996 bytes (9000 with the FCS) |

12 % are IPv6, 18 % have a VLAN tag. Each of the 400 servers has one TCP port; every fourth one is worth a rule, so about a quarter of all
packets is selected by 100 rules (an untagged `host` sees no tagged packet, in libpcap and so in ours).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZES = {"imix": ((60, 7), (590, 4), (1514, 1)), "64": ((60, 1),), "1514": ((1514, 1),), "9000": ((8996, 1),)}
N_SERVERS, N_FLOWS = 400, 100_000
IPV6_SHARE, VLAN_SHARE = 0.12, 0.18
START_S = 1_767_258_000
GAP_NS = 1_000
_RECORD = 16
_CHUNK = 16_384  # packets made at once


def server4(i: int) -> str:
    return f"10.200.{i // 250}.{i % 250 + 1}"


def server6(i: int) -> str:
    return f"2001:db8:200::{i + 1:x}"


def server_port(i: int) -> int:
    return 1_000 + 7 * i


def terms(n: int) -> list[str]:
    """n pcap-filter expressions of a host and its port: every fourth server, every eighth of them by its IPv6 address."""
    return [f"host {(server6 if i % 8 == 7 else server4)(4 * i % N_SERVERS)} and port {server_port(4 * i % N_SERVERS)}" for i in range(n)]


@dataclass(frozen=True)
class _Shape:
    """Frames that differ in addresses, ports and time only."""

    frame_len: int
    ipv6: bool
    tagged: bool

    @property
    def l3(self) -> int:
        return 18 if self.tagged else 14

    def template(self) -> NDArray[np.uint8]:
        """Record header and frame; checksums are left 0, nobody on the path looks at them."""
        ethernet = bytes(range(2, 14)) + (struct.pack("!HH", 0x8100, 100) if self.tagged else b"")
        ip_len = max(self.frame_len, self.l3 + (60 if self.ipv6 else 40)) - self.l3
        if self.ipv6:
            header = struct.pack("!HIHBB", 0x86DD, 6 << 28, ip_len - 40, 6, 64) + bytes(32)
        else:
            header = struct.pack("!HBBHHHBBH", 0x0800, 0x45, 0, ip_len, 0, 0, 64, 6, 0) + bytes(8)
        tcp = struct.pack("!HHIIBBHHH", 0, 0, 1, 1, 5 << 4, 0x10, 65_535, 0, 0)
        frame = ethernet + header + tcp
        frame += bytes(i & 0xFF for i in range(self.l3 + ip_len - len(frame)))
        frame = frame.ljust(60, b"\0")
        return np.frombuffer(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame, np.uint8)


def _big_endian(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """[n] -> [n, width] bytes in network order."""
    return values.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - width :]


def _frames(shape: _Shape, times: NDArray[np.int64], flows: NDArray[np.int64], servers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """[n, record bytes] of packets from clients to servers; every second flow is the way back."""
    rows = np.tile(shape.template(), (len(flows), 1))
    rows[:, 0:8] = np.stack([times // 1_000_000_000, times % 1_000_000_000], axis=1).astype("<u4").view(np.uint8)
    at = _RECORD + shape.l3
    client_ports, server_ports = 20_000 + flows % 40_000, 1_000 + 7 * servers
    if shape.ipv6:
        source, width, transport = at + 8, 16, at + 40
        prefix = bytes.fromhex("20010db8")
        client = np.concatenate([np.tile(np.frombuffer(prefix + bytes(8), np.uint8), (len(flows), 1)), _big_endian(flows, 4)], axis=1)
        fixed = np.frombuffer(prefix + bytes.fromhex("0200") + bytes(8), np.uint8)
        server = np.concatenate([np.tile(fixed, (len(flows), 1)), _big_endian(servers + 1, 2)], axis=1)
    else:
        source, width, transport = at + 12, 4, at + 20
        client = _big_endian((10 << 24) + flows, 4)
        server = _big_endian((10 << 24) + (200 << 16) + (servers // 250 << 8) + servers % 250 + 1, 4)
    back = (flows & 1).astype(bool)[:, None]
    rows[:, source : source + width] = np.where(back, server, client)
    rows[:, source + width : source + 2 * width] = np.where(back, client, server)
    ports = _big_endian(np.where(back[:, 0], server_ports << 16 | client_ports, client_ports << 16 | server_ports), 4)
    rows[:, transport : transport + 4] = ports
    return rows


def _chunks(size: str, n_packets: int) -> Iterator[NDArray[np.uint8]]:
    rng = np.random.default_rng(9)
    lengths = np.array([length for length, _ in SIZES[size]])
    weights = np.array([weight for _, weight in SIZES[size]], float)
    # A flow keeps its server, its family and its tag.
    server_of = rng.integers(0, N_SERVERS, N_FLOWS)
    shape_of = (rng.random(N_FLOWS) < IPV6_SHARE).astype(np.int64) * 2 + (rng.random(N_FLOWS) < VLAN_SHARE)
    for begin in range(0, n_packets, _CHUNK):
        n = min(_CHUNK, n_packets - begin)
        flows = (rng.zipf(1.1, n) - 1) % N_FLOWS
        kind = shape_of[flows] * len(lengths) + rng.choice(len(lengths), n, p=weights / weights.sum())
        times = START_S * 1_000_000_000 + (begin + np.arange(n)) * GAP_NS
        made = {}
        record_len = np.zeros(n, np.int64)
        for code in np.unique(kind):
            shape = _Shape(int(lengths[code % len(lengths)]), bool(code // len(lengths) & 2), bool(code // len(lengths) & 1))
            where = np.flatnonzero(kind == code)
            made[code] = where, _frames(shape, times[where], flows[where], server_of[flows[where]])
            record_len[where] = made[code][1].shape[1]
        at = np.concatenate([[0], np.cumsum(record_len)])
        out = np.empty(int(at[-1]), np.uint8)
        for where, rows in made.values():
            out[at[where][:, None] + np.arange(rows.shape[1])] = rows
        yield out


def write_capture(path: Path, size: str, n_packets: int) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
        for chunk in _chunks(size, n_packets):
            chunk.tofile(file)


def frames_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as capture:
        at = 24
        while at < len(capture):
            (caplen,) = struct.unpack_from("<I", capture, at + 8)
            yield capture[at + 16 : at + 16 + caplen]
            at += 16 + caplen
