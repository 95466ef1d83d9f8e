"""Tunnels to the wire as whole Ethernet frames (packet(7)): past the IP layer, at two thirds of the cost. Needs CAP_NET_RAW.

The outer IP header is the one that encapsulate has written; the Ethernet header comes before it. Where a frame goes the kernel's tables
say (`next_hop`), which are looked at when the kernel has news of them, and twice a second. The queueing discipline of the interface is
not gone past, so that ``tc`` shapes and counts these frames as any others.

By IP, as with `sockets`, goes what a packet socket cannot do, block by block:

| when | why |
|---|---|
| the kernel is not sure of the neighbour | that makes it ask, and keep or give up what waits; so each neighbour is confirmed now and then |
| no route, several ways, no Ethernet, an interface that is down | what becomes of the frames the kernel decides, and says |
| a frame of the block is longer than the path's MTU | somebody must fragment or refuse it; for a second more: no back and forth |
| `auto`, and there are rules that it would go past | they may have come since: looked for as long as it runs (`passed_by`) |
| the headers have another source address than the socket | they are made when a configuration is loaded, perhaps without a route |

A next hop counts from the second look on that finds it: what the kernel kept while it asked has left by then. What routers say of these
frames (ICMP) the socket hears, because it has the same ends. An MTU that gets smaller is known once the kernel's news of it are read:
until then what is too long is refused, and counted in dropped_too_big.

States: `datagrams`; while the packet socket is down, frames go by IP.
"""

from __future__ import annotations

import ctypes
import socket
import time
from typing import Any

import numpy as np

from broker.core.batch import Batch
from broker.core.model import Tool
from broker.core.netlink import News
from broker.core.stage import Context
from stages.send import kernels
from stages.send.datagrams import DatagramEgress
from stages.send.egress import Scratch
from stages.send.interface import open_interface
from stages.send.next_hop import NEWS, NextHop, NoHop, find_next_hop
from stages.send.sockets import SocketEgress

LOOK_EVERY_NS = 500_000_000
NEWS_EVERY_NS = 20_000_000  # at most: an interface may have a thousand neighbours
BY_IP_NS = 1_000_000_000  # after a frame that is too long
_SOURCE_AT = {4: 12, 16: 8}  # RFC 791, RFC 8200: by the bytes of an address, where in the header the source is


class PacketEgress(DatagramEgress):
    """One tool behind a tunnel. Opens nothing before a block comes."""

    def __init__(self, tool: Tool, context: Context, scratch: Scratch, log: Any) -> None:
        assert tool.tunnel is not None
        super().__init__(tool, context, scratch, log, remote=tool.tunnel.remote)
        self._tunnel = tool.tunnel
        self._by_ip = SocketEgress(tool, context, scratch, log)
        self._ethernet = np.zeros(16, np.uint8)
        self._lead_at = int(self._ethernet.ctypes.data)
        self._hop: NextHop | NoHop = NoHop("it was not looked for yet", passing=True)
        self._is_settled = False  # the last look found the same as the one before
        self._source = b""
        self._opened_index = 0  # the interface of the socket
        self._looked_ns = self._heard_ns = self._by_ip_until_ns = 0
        self._news = News(NEWS)

    def send(self, batch: Batch, rows_at: int, n_rows: int, progress: int) -> None:
        self._look()
        if self._may_pass(batch, rows_at, n_rows):
            super().send(batch, rows_at, n_rows, progress)
            self._by_ip.hear()
        else:
            self._by_ip.send(batch, rows_at, n_rows, progress)

    def _may_pass(self, batch: Batch, rows_at: int, n_rows: int) -> bool:
        if not isinstance(self._hop, NextHop) or not self._is_settled or time.monotonic_ns() < self._by_ip_until_ns:
            return False
        row = ctypes.c_uint32.from_address(rows_at).value
        at = int(batch.frames[row]["header_at"]) + _SOURCE_AT[len(self._source)]
        if ctypes.string_at(batch.headers_at + at, len(self._source)) != self._source:
            self._tell("the headers were made with another source address")
            return False
        if kernels.longest_frame(rows_at, n_rows, batch.frames_at) > self._hop.mtu:
            self._tell("there are frames longer than the path's MTU")
            self._by_ip_until_ns = time.monotonic_ns() + BY_IP_NS
            return False
        return self._socket is not None or (self._retry.due() and self._open())

    def _look(self) -> None:
        now = time.monotonic_ns()
        if now - self._heard_ns < NEWS_EVERY_NS:
            return
        self._heard_ns = now
        if not self._news.came() and self._is_settled and now - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = now
        self._source = self._by_ip.source
        found = find_next_hop(self._tunnel, self._source) if self._source else NoHop("there is no socket")
        if self.tool.backend == "auto" and (rules := self._scratch.rules.now()):
            found = NoHop(rules)
        self._is_settled = found == self._hop
        if self._is_settled:
            return
        self._hop = found
        if isinstance(found, NextHop):
            if found.index != self._opened_index:
                self._shut()
            self._ethernet[: len(found.ethernet)] = np.frombuffer(found.ethernet, np.uint8)
            self._lead_len = len(found.ethernet)
            self._where["interface"] = found.interface
        elif not found.passing:
            self._tell(found.reason)

    def _tell(self, reason: str) -> None:
        self._notices.warn("tool_by_ip", reason, **self._where)

    def _open_socket(self) -> socket.socket:
        assert isinstance(self._hop, NextHop)
        self._opened_index = self._hop.index
        opened = open_interface(self._hop.interface, qdisc_bypass=False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, self._by_ip.priority)
        return opened

    def close(self) -> None:
        super().close()
        self._by_ip.close()
        self._news.close()
