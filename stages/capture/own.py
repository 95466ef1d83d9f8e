"""The tunnels of a configuration's tools, as the kernel that recognises our own packets wants them."""

from __future__ import annotations

import ipaddress

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.tree import GRE
from broker.core.model import Config, Tunnel
from stages.capture.own_kernels import HEAD, TUNNEL
from stages.wire.headers import UDP
from stages.wire.tunnel import NO_ID

_GRE = 47
_UDP_KINDS = ("gre-udp",)


def own_table(config: Config) -> NDArray[np.uint8] | None:
    """HEAD[1] and TUNNEL[n]; None when no tool has a tunnel that leads onto a network."""
    tunnels = [tool.tunnel for tool in config.tools if tool.tunnel is not None and not tool.file]
    if not tunnels:
        return None
    memory = np.zeros(HEAD.itemsize + len(tunnels) * TUNNEL.itemsize, np.uint8)
    head, rows = memory[: HEAD.itemsize].view(HEAD), memory[HEAD.itemsize :].view(TUNNEL)
    last_bytes = 0
    for row, tunnel in zip(rows, tunnels, strict=True):
        remote = _mapped(tunnel.remote)
        row["remote"] = np.frombuffer(remote, "<i8")
        if tunnel.source:
            row["source"], row["has_source"] = np.frombuffer(_mapped(tunnel.source), "<i8"), 1
        row["protocol"], row["port"] = (UDP, tunnel.port) if tunnel.kind in _UDP_KINDS else (_GRE, 0)
        row["kind"], row["id"] = _signature(tunnel)
        last_bytes |= 1 << (remote[-1] & 63)
    head["n_tunnels"], head["last_bytes"] = len(tunnels), np.uint64(last_bytes).astype(np.int64)
    return memory


def _mapped(address: str) -> bytes:
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed


def _signature(tunnel: Tunnel) -> tuple[int, int]:
    """Kind and id, by which packets of the tunnel are known whatever their addresses."""
    return GRE, NO_ID if tunnel.key is None else tunnel.key
