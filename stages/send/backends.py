"""How the frames of a tunnel are handed to the kernel: what `backend: auto` means.

| backend | for | what a frame costs |
|---|---|---|
| `socket` (`sockets`) | every tunnel | the whole way through the IP layer and the queue, each one |
| `packet` (`packet`) | every tunnel whose next hop is on Ethernet | the queue and the driver, each one |
| `segment` (`segments`) | over UDP, not numbered | the whole way once for a run of equal length |

Runs of several flows overtake one another, and RFC 2890 section 2.2 would have a receiver discard what comes out of sequence. Where
nobody cuts a run (veth, lo: `next_hop.keeps_runs`), who captures at the far end sees one long packet, and misses all frames but the first;
where a queue cuts it (tbf, cake), what that drops of it is counted as delivered.

`auto` takes the lowest row that works here, and says which and why (`backend_chosen`). A packet socket goes past what firewalls and
IPsec do with packets that leave; so where there are such rules (`passed_by`), or nobody can see whether there are, `auto` leaves it alone,
also when they come later.
"""

from __future__ import annotations

from typing import Any

from broker.core.model import Tool
from broker.core.stage import Context
from broker.privileges.asking import rules_passed_by
from stages.send.egress import Egress, Notices, Scratch
from stages.send.next_hop import NoHop, find_next_hop, keeps_runs
from stages.send.packet import PacketEgress
from stages.send.segments import SegmentEgress, knows_segments
from stages.send.sockets import SocketEgress


def make_tunnel_egress(tool: Tool, context: Context, scratch: Scratch, log: Any) -> Egress:
    backend: str = tool.backend
    if backend == "auto":
        backend, reason = choose(tool)
        Notices(log, tool).info("backend_chosen", backend=backend, reason=reason)
    if backend == "segment":
        return SegmentEgress(tool, context, scratch, log)
    if backend == "packet":
        return PacketEgress(tool, context, scratch, log)
    return SocketEgress(tool, context, scratch, log)


def choose(tool: Tool) -> tuple[str, str]:
    """(backend, why) of a tool behind a tunnel."""
    assert tool.tunnel is not None
    tunnel = tool.tunnel
    if tunnel.udp_port and knows_segments() and not tunnel.sequence and not keeps_runs(tunnel):
        return "segment", "over UDP frames of one length leave in runs"
    if tunnel.udp_port and ":" in tunnel.remote:
        return "socket", "over IPv6 the kernel computes the UDP checksum"
    hop = find_next_hop(tunnel)
    if isinstance(hop, NoHop) and not hop.passing:
        return "socket", hop.reason
    try:
        passed_by = rules_passed_by()
    except TimeoutError as error:
        passed_by = f"the rules that a packet socket would go past are not known: {error.strerror}"
    if passed_by:
        return "socket", passed_by
    return "packet", "the next hop is on Ethernet, and no rules are passed by"
