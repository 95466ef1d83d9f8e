"""How the frames of a tunnel are handed to the kernel: what `backend: auto` means.

| backend | for | what a frame costs |
|---|---|---|
| `socket` (`sockets`) | every tunnel | the whole way through the IP layer and the queue, each one |
| `segment` (`segments`) | over UDP | the same once for a run of equal length |

`auto` takes the lowest row that is for the tunnel and works here, and says which and why (`backend_chosen`).
"""

from __future__ import annotations

from typing import Any

from broker.core.model import Tool
from broker.core.stage import Context
from stages.send.egress import Notices, Scratch
from stages.send.segments import SegmentEgress, knows_segments
from stages.send.sockets import SocketEgress


def make_tunnel_egress(tool: Tool, context: Context, scratch: Scratch, log: Any) -> SocketEgress:
    backend: str = tool.backend
    if backend == "auto":
        backend, reason = choose(tool)
        Notices(log, tool).info("backend_chosen", backend=backend, reason=reason)
    return (SegmentEgress if backend == "segment" else SocketEgress)(tool, context, scratch, log)


def choose(tool: Tool) -> tuple[str, str]:
    """(backend, why) of a tool behind a tunnel."""
    assert tool.tunnel is not None
    if not tool.tunnel.udp_port:
        return "socket", "the tunnel does not run over UDP, so that the kernel cuts no runs"
    if not knows_segments():
        return "socket", "this kernel has no UDP_SEGMENT (Linux 4.18)"
    return "segment", "over UDP frames of one length leave in runs"
