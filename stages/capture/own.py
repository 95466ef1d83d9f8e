"""The tunnels of a configuration's tools, as the kernel that recognises our own packets wants them."""

from __future__ import annotations

import ipaddress

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.tree import ERSPAN, GENEVE_TUNNEL, GRE, VXLAN
from broker.core.model import Config, Tunnel
from stages.capture.own_kernels import HEAD, TUNNEL
from stages.wire.headers import UDP
from stages.wire.tunnel import NO_ID

_GRE = 47
_NEVER = 1 << 40  # no packet has this id
_KINDS = {"erspan1": ERSPAN, "erspan2": ERSPAN, "erspan3": ERSPAN, "vxlan": VXLAN, "geneve": GENEVE_TUNNEL}
"""As packets of them are seen; the others are GRE."""


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
        row["protocol"], row["port"] = UDP if tunnel.udp_port else _GRE, tunnel.udp_port
        row["kind"], row["id"] = _signature(tunnel)
        last_bytes |= 1 << (remote[-1] & 63)
    head["n_tunnels"], head["last_bytes"] = len(tunnels), np.uint64(last_bytes).astype(np.int64)
    return memory


def _mapped(address: str) -> bytes:
    found = ipaddress.ip_address(address)
    return found.packed if found.version == 6 else bytes(10) + b"\xff\xff" + found.packed


def _signature(tunnel: Tunnel) -> tuple[int, int]:
    """Kind and id, by which packets of the tunnel are known whatever their addresses. NVGRE has its id in the upper 24 bits of the key, and
    often one key for each flow: it is known by addresses only."""
    kind = _KINDS.get(tunnel.kind, GRE)
    if kind in (VXLAN, GENEVE_TUNNEL):
        return kind, tunnel.vni
    if kind == ERSPAN:
        return kind, NO_ID if tunnel.kind == "erspan1" else tunnel.session
    if tunnel.kind == "nvgre":
        return kind, _NEVER
    return kind, NO_ID if tunnel.key is None else tunnel.key
