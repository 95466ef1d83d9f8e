"""Outer headers made ready once a generation: a row of 128 bytes for each tool slot, which the kernel copies and patches.

A row is the outer IP header (20 or 40 bytes), a UDP header (8) where the tunnel runs over one, and the tunnel's own (`inner`, which has the
table of them all).

To add a tunnel:

1. in `inner`: a function that gives its header with all fields that never change, and where in it those are that do; a row in `TUNNELS`
   with the IP protocol that carries it. The outer IP and UDP headers, their lengths and checksums come by themselves;
2. if a field changes with each frame and is none of those in `patches`: a bit there, and a few lines in `headers.write_headers` under it;
3. its name in `broker.core.model.TunnelKind`, its fields in `Tunnel`, its keys in `broker/config/tunnels.py`, what receivers make of it in
   `broker/config/receivers.py`.

`stages/send/sockets.py` takes GRE and UDP as they are; another IP protocol needs a row there.

UDP checksums. Over IPv6 there is one (RFC 8200 section 8.1): sockets leave it to the kernel, for files and packet sockets it is computed.
Over IPv4 there is none unless `udp_checksum` asks for it (RFC 768; RFC 7348 section 4.1.1 and RFC 8926 section 3.3 say so for VXLAN and
Geneve): it would cover the source address too, which over IPv4 the kernel chooses when the header has long been written. RFC 8086 section
2.1 would rather have one in GRE-in-UDP; GRE's own `checksum` covers the packet as well. So what is in a file is what the wire carries, but
for the UDP checksum of what leaves in runs (`stages/send/segments.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import TOOLS
from broker.core.model import Tool, Tunnel
from stages.encapsulate.inner import TUNNELS, UDP_PROTOCOL
from stages.encapsulate.patches import (
    PATCH_IPV4,
    PATCH_IPV6,
    PATCH_SOURCE_PORT,
    PATCH_UDP,
    PATCH_UDP_CHECKSUM,
    SHARE_BY_TOOL,
)
from stages.encapsulate.routes import Address, addresses

HEADER_ROOM = 80  # the longest has 68, see broker.config.lanes.HEADER_BYTES

_FIELDS = (
    "known", "header_len", "patches", "max_data_len", "ip_len", "tunnel_at", "checksum_at", "sequence_at", "ip_sum", "pseudo_sum",
    "tag_mask", "tick_ns",
)  # fmt: skip
TEMPLATE = np.dtype(
    {
        "names": ["header", *_FIELDS],
        "formats": [(np.uint8, HEADER_ROOM)] + ["<u4"] * len(_FIELDS),
        "offsets": [0, *(HEADER_ROOM + 4 * n for n in range(len(_FIELDS)))],
        "itemsize": 128,
    }
)
"""`known`: the configuration has this tool. `*_at`: from the start of the header. `ip_sum`, `pseudo_sum`: see `_words`. `tag_mask`,
`tick_ns`: see `inner.Inner`."""

FIRST_FLOW_PORT = 49_152  # RFC 8086 section 3.2.1, RFC 7348 section 5, RFC 8926 section 3.3: the ephemeral range, 16,384 ports
MAX_IP = 65_535  # RFC 791 total length, RFC 8200 payload length

_DONT_FRAGMENT = 0x4000


def make_templates(tools: Iterable[Tool], generation: int = 0) -> NDArray[np.void]:
    """TEMPLATE[TOOLS] by slot; a row that no tool has is zero. `generation`: for tunnels that tell it."""
    rows = np.zeros(TOOLS, TEMPLATE)
    for tool in tools:
        row = rows[tool.slot : tool.slot + 1]
        row["known"] = 1
        row["patches"] = SHARE_BY_TOOL if tool.tunnel is None or tool.file else 0
        row["max_data_len"] = 0xFFFF_FFFF
        if tool.tunnel is not None:
            _lay(row, replace(tool.tunnel, df=tool.whole), generation, in_file=bool(tool.file), is_final=tool.backend == "packet")
    return rows


def _lay(row: NDArray[np.void], tunnel: Tunnel, generation: int, *, in_file: bool, is_final: bool) -> None:
    shape = TUNNELS[tunnel.kind]
    inner = shape.inner(tunnel, generation)
    source, remote = addresses(tunnel, ask_routes=not in_file)
    v4 = remote.version == 4
    ip = (_ipv4 if v4 else _ipv6)(tunnel, shape.protocol, source, remote)
    patches = inner.patches | (PATCH_IPV4 if v4 else PATCH_IPV6)
    udp = b""
    if shape.protocol == UDP_PROTOCOL:
        udp = struct.pack("!HHHH", tunnel.source_port, tunnel.udp_port, 0, 0)
        patches |= PATCH_UDP
        patches |= PATCH_UDP_CHECKSUM if (tunnel.udp_checksum if v4 else in_file or is_final) else 0
        patches |= PATCH_SOURCE_PORT if not tunnel.source_port else 0
    header = ip + udp + inner.header
    tunnel_at = len(ip) + len(udp)
    row["header"][0, : len(header)] = np.frombuffer(header, np.uint8)
    row["header_len"], row["ip_len"], row["tunnel_at"] = len(header), len(ip), tunnel_at
    row["checksum_at"], row["sequence_at"] = tunnel_at + inner.checksum_at, tunnel_at + inner.sequence_at
    row["tag_mask"], row["tick_ns"] = inner.tag_mask, inner.tick_ns
    row["patches"] |= patches
    row["max_data_len"] = MAX_IP - (len(header) if v4 else len(header) - len(ip))
    row["ip_sum"] = _words(ip) if v4 else 0
    row["pseudo_sum"] = _words(source.packed + remote.packed) + shape.protocol


def _ipv4(tunnel: Tunnel, protocol: int, source: Address, remote: Address) -> bytes:
    """RFC 791."""
    fragment = _DONT_FRAGMENT if tunnel.df else 0
    return struct.pack("!BBHHHBBH4s4s", 0x45, tunnel.dscp << 2, 0, 0, fragment, tunnel.ttl, protocol, 0, source.packed, remote.packed)


def _ipv6(tunnel: Tunnel, protocol: int, source: Address, remote: Address) -> bytes:
    """RFC 8200. The flow label is zero."""
    return struct.pack("!IHBB16s16s", 6 << 28 | tunnel.dscp << 22, 0, protocol, tunnel.ttl, source.packed, remote.packed)


def _words(data: bytes) -> int:
    """Sum of big-endian words, not folded."""
    return sum(struct.unpack(f"!{len(data) // 2}H", data))
