"""Outer headers made ready once a generation: a row of 128 bytes for each tool slot, which the kernel copies and patches.

| tunnel | bytes of a header (IPv4 / IPv6 outer) | source |
|---|---|---|
| gre | IP 20/40, GRE 4, [checksum 4], [key 4], [sequence 4] | RFC 2784, RFC 2890; payload 0x6558, bridged Ethernet |
| gre-udp | IP 20/40, UDP 8, GRE as above | RFC 8086 |

To add a tunnel:

1. a row in `TUNNELS`: the IP protocol (or UDP) that carries it, and a function that gives its header with all fields that never change,
   and where in it those are that do. The outer IP and UDP headers, their lengths and checksums come by themselves;
2. if a field changes with each frame and is neither a sequence number (32 bits) nor a GRE checksum: a PATCH_* bit here, and a few
   lines in `headers.write_headers` under that bit;
3. its name in `broker.core.model.Tunnel.kind`, its options in `broker/config`, and a backend for its sockets in `stages/send`.

VXLAN needs no more than step 1: ``"vxlan": Shape(UDP, True, lambda t: Inner(struct.pack("!II", 0x08000000, t.vni << 8)))``.

UDP checksums are computed for files only, for IPv4 as for IPv6 (RFC 8086 section 6 wants them by default in both): a file shows what the
wire would carry, and on sockets it is the kernel that writes the UDP header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import TOOLS
from broker.core.model import Tool, Tunnel
from stages.encapsulate.routes import Address, addresses

HEADER_ROOM = 64  # an IPv6, a UDP and the longest GRE header

TEMPLATE = np.dtype(
    {
        "names": [
            "header", "known", "header_len", "patches", "max_data_len", "ip_len", "tunnel_at", "checksum_at", "sequence_at",
            "ip_sum", "pseudo_sum",
        ],
        "formats": [(np.uint8, HEADER_ROOM)] + ["<u4"] * 10,
        "offsets": [0, *range(HEADER_ROOM, HEADER_ROOM + 40, 4)],
        "itemsize": 2 * HEADER_ROOM,
    }
)  # fmt: skip
"""`known`: the configuration has this tool. `*_at`: from the start of the header. `ip_sum`, `pseudo_sum`: see `_words`."""

PATCH_IPV4 = 1  # total length, identification, checksum
PATCH_IPV6 = 2  # payload length
PATCH_UDP = 4  # length
PATCH_UDP_CHECKSUM = 8
PATCH_SOURCE_PORT = 16  # by flow
PATCH_SEQUENCE = 32
PATCH_CHECKSUM = 64  # GRE
SHARE_BY_TOOL = 128  # one send worker takes all frames of the tool; else flows are spread

FIRST_FLOW_PORT = 49_152  # RFC 8086 section 3.2.1: the ephemeral range, 16,384 ports
MAX_IP = 65_535  # RFC 791 total length, RFC 8200 payload length

GRE, UDP = 47, 17
_GRE_CHECKSUM, _GRE_KEY, _GRE_SEQUENCE = 0x8000, 0x2000, 0x1000
_ETHERNET_BRIDGING = 0x6558


@dataclass(frozen=True, slots=True)
class Inner:
    """A tunnel's own header: its bytes, and where in them the fields are that change with each frame (-1: not there)."""

    header: bytes
    checksum_at: int = -1
    sequence_at: int = -1


@dataclass(frozen=True, slots=True)
class Shape:
    protocol: int
    udp: bool
    inner: Callable[[Tunnel], Inner]


def _gre(tunnel: Tunnel) -> Inner:
    """RFC 2890 section 2: the options follow in this order; the checksum is there with a reserved half word."""
    flags, options = 0, b""
    checksum_at = sequence_at = -1
    if tunnel.checksum:
        flags |= _GRE_CHECKSUM
        checksum_at = 4 + len(options)
        options += bytes(4)
    if tunnel.key is not None:
        flags |= _GRE_KEY
        options += struct.pack("!I", tunnel.key)
    if tunnel.sequence:
        flags |= _GRE_SEQUENCE
        sequence_at = 4 + len(options)
        options += bytes(4)
    return Inner(struct.pack("!HH", flags, _ETHERNET_BRIDGING) + options, checksum_at, sequence_at)


TUNNELS: dict[str, Shape] = {
    "gre": Shape(GRE, False, _gre),
    "gre-udp": Shape(UDP, True, _gre),
}


def make_templates(tools: Iterable[Tool]) -> NDArray[np.void]:
    """TEMPLATE[TOOLS] by slot; a row that no tool has is zero."""
    rows = np.zeros(TOOLS, TEMPLATE)
    for tool in tools:
        row = rows[tool.slot : tool.slot + 1]
        row["known"] = 1
        row["patches"] = SHARE_BY_TOOL if tool.tunnel is None or tool.file else 0
        row["max_data_len"] = 0xFFFF_FFFF
        if tool.tunnel is not None:
            _lay(row, tool.tunnel, in_file=bool(tool.file))
    return rows


def _lay(row: NDArray[np.void], tunnel: Tunnel, *, in_file: bool) -> None:
    shape = TUNNELS[tunnel.kind]
    inner = shape.inner(tunnel)
    source, remote = addresses(tunnel, ask_routes=not in_file)
    v4 = remote.version == 4
    ip = (_ipv4 if v4 else _ipv6)(tunnel, shape.protocol, source, remote)
    udp = struct.pack("!HHHH", tunnel.source_port, tunnel.port, 0, 0) if shape.udp else b""
    header = ip + udp + inner.header
    tunnel_at = len(ip) + len(udp)
    patches = PATCH_IPV4 if v4 else PATCH_IPV6
    if shape.udp:
        patches |= PATCH_UDP
        patches |= PATCH_UDP_CHECKSUM if in_file else 0
        patches |= PATCH_SOURCE_PORT if not tunnel.source_port else 0
    if inner.checksum_at >= 0:
        patches |= PATCH_CHECKSUM
        row["checksum_at"] = tunnel_at + inner.checksum_at
    if inner.sequence_at >= 0:
        patches |= PATCH_SEQUENCE
        row["sequence_at"] = tunnel_at + inner.sequence_at
    row["header"][0, : len(header)] = np.frombuffer(header, np.uint8)
    row["header_len"], row["ip_len"], row["tunnel_at"] = len(header), len(ip), tunnel_at
    row["patches"] |= patches
    row["max_data_len"] = MAX_IP - (len(header) if v4 else len(header) - len(ip))
    row["ip_sum"] = _words(ip) if v4 else 0
    row["pseudo_sum"] = _words(source.packed + remote.packed) + shape.protocol


def _ipv4(tunnel: Tunnel, protocol: int, source: Address, remote: Address) -> bytes:
    """RFC 791. Not fragmented, and may be: DF is clear."""
    return struct.pack("!BBHHHBBH4s4s", 0x45, tunnel.dscp << 2, 0, 0, 0, tunnel.ttl, protocol, 0, source.packed, remote.packed)


def _ipv6(tunnel: Tunnel, protocol: int, source: Address, remote: Address) -> bytes:
    """RFC 8200. The flow label is zero."""
    return struct.pack("!IHBB16s16s", 6 << 28 | tunnel.dscp << 22, 0, protocol, tunnel.ttl, source.packed, remote.packed)


def _words(data: bytes) -> int:
    """Sum of big-endian words, not folded."""
    return sum(struct.unpack(f"!{len(data) // 2}H", data))
