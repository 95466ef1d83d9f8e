"""The far end of tunnels as a source: what senders have encapsulated comes out as it was captured there.

A packet is given as it was in the tunnel; one that had no Ethernet header gets one (`wire/decap.py`). Its time is that of its arrival
here. Every sender is measured by its sequence numbers (`sender_kernels.py`); the table of senders outlives the worker.

| what happens | what is lost, and what counts it |
|---|---|
| the socket's buffer is full | dropped_kernel, as of the last reading (after each step, at most every millisecond) |
| it is no packet for us | dropped_source, dropped_key, dropped_protocol, dropped_checksum, dropped_malformed |
| the worker dies | what it had taken from the sockets and not published: dropped_restart of the next worker, and lost_packets of senders \
that number their packets. The sockets are kept by the opener, with what they hold |
| it dies where there is no opener, or with the opener | that, what the sockets held, and what came until the next worker opened: \
lost_packets; of senders that do not number nothing says it |
| a fragment of a datagram is missing | the datagram: the kernel's ReasmFails (`nstat`), and lost_packets |
"""

from __future__ import annotations

import ipaddress
import select
import socket
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core import log
from broker.core.batch import Batch
from broker.core.errors import PipelineError
from broker.core.metrics import index
from broker.core.model import Input
from broker.core.senders import make_senders
from broker.core.stage import Context, Generation
from broker.privileges import asking
from stages.capture import endpoint_sockets
from stages.capture.endpoint_kernels import ENDPOINT, LONG_BYTES, NET, SLOT_BYTES, VECTORS, receive_packets
from stages.capture.errors import SourceError
from stages.capture.received import Received
from stages.capture.sender_kernels import fold_notes
from stages.wire.decap import INSIDE, LISTEN_GENEVE, LISTEN_GRE, LISTEN_VXLAN, NONE

EVENTS = {"endpoint_opened": "a tunnel input listens"}

_LISTEN = {"gre": LISTEN_GRE, "gre-udp": LISTEN_GRE, "vxlan": LISTEN_VXLAN, "geneve": LISTEN_GENEVE}
_KERNEL, _RESTART = index("capture", "dropped_kernel"), index("capture", "dropped_restart")
_COMMITTED = tuple(
    index("capture", name)
    for name in ("captured_packets", "dropped_malformed", "dropped_source", "dropped_key", "dropped_protocol", "dropped_checksum")
)
_READ_EVERY_NS = 1_000_000
_ADDRESS_BYTES = 16


class Endpoint:
    """States: open, stopping (the sockets take nothing new), finished (they are empty)."""

    due_ns = 0

    def __init__(self, context: Context) -> None:
        self._context, self._input = context, context.lane.inputs[0]
        self._live, self._live_at = context.live, context.live_at + 8 * self._input.slot
        self._log = log.get(lane=context.lane.number, stage="capture", input=self._input.name)
        self._sockets: list[socket.socket] = []
        self._read_ns = 0
        self._first_step = True
        self._stopping = False
        self.finished = False

    def open(self) -> None:
        """SourceError in words."""
        context, input_ = self._context, self._input
        try:
            self._table = make_senders(context.directory, context.lane.number, context.geometry.max_packets)
            self._received = Received(context.directory, context.lane.number)
        except PipelineError as error:
            raise SourceError(endpoint_sockets.described(input_), None, str(error)) from None
        try:
            for family in endpoint_sockets.families(input_):
                self._sockets.append(endpoint_sockets.open_socket(input_, family, context.lane.number))
        except SourceError:
            self.close()
            raise
        for i, opened in enumerate(self._sockets):
            self._received.opened(i, endpoint_sockets.identity(opened), endpoint_sockets.dropped(opened))
        self._read_drops()
        self._count_restart()
        self._epoll = select.epoll()
        for opened in self._sockets:
            self._epoll.register(opened, select.EPOLLIN)
        self._make_rows()
        self._log.info("endpoint_opened", listen=endpoint_sockets.described(input_), senders=input_.senders)

    def _count_restart(self) -> None:
        """What the workers before me had taken and did not publish."""
        slot = self._input.slot
        self._live[_RESTART + slot] = self._received.datagrams - sum(int(self._context.counters[at + slot]) for at in _COMMITTED)

    def _make_rows(self) -> None:
        """The kernel's memory."""
        input_, n = self._input, len(self._sockets)
        self._long = np.empty((n, VECTORS, LONG_BYTES), np.uint8)
        self._kept = np.empty((n, VECTORS, SLOT_BYTES), np.uint8)
        self._scratch = np.zeros(INSIDE.itemsize + _ADDRESS_BYTES, np.uint8)
        self._nets = _nets(input_)
        self._rows = self._received.sockets[:n]
        for i, opened in enumerate(self._sockets):
            row, is_ip6 = self._rows[i], opened.family == socket.AF_INET6
            row["fd"], row["is_ip6"], row["skip_ip"] = opened.fileno(), is_ip6, input_.listen == "gre" and not is_ip6
            row["vectors_at"], row["long_at"], row["kept_at"] = (m[i].ctypes.data for m in (self._received.vectors, self._long, self._kept))
        self._endpoint = np.zeros(1, ENDPOINT)
        row = self._row = self._endpoint[0]
        row["sockets_at"], row["n_sockets"], row["listen"] = self._rows.ctypes.data, n, _LISTEN[input_.listen]
        row["key"] = NONE if input_.key is None else input_.key
        row["session"] = NONE if input_.vni is None else input_.vni
        row["nets_at"], row["n_nets"], row["input"] = self._nets.ctypes.data, len(self._nets), input_.slot
        row["senders_at"], row["notes_at"] = self._table.rows_at, self._table.notes_at
        self._endpoint_at, self._scratch_at = int(self._endpoint.ctypes.data), int(self._scratch.ctypes.data)

    def load(self, generation: Generation) -> None:
        """What comes out of a tunnel is taken, whatever the policy says."""

    @property
    def wait_fd(self) -> int:
        return self._epoll.fileno()

    def stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._read_drops()  # what the filter rejects from now on counts there too
            for i, opened in enumerate(self._sockets):
                self._received.stopped(i)
                endpoint_sockets.reject_all(opened)

    def step(self, batch: Batch) -> int:
        """Datagrams given and dropped; 0 after `stop`: the end."""
        if self.finished:
            return 0
        self._fold(batch.seq)
        now_ns = time.time_ns()
        row: Any = self._row
        row["max_packets"], row["data_bytes"], row["now_ns"] = batch.max_packets, batch.data_bytes, now_ns
        looked: int = receive_packets(self._endpoint_at, batch.packets_at, batch.data_at, self._context.counters_at, self._scratch_at)
        if looked:
            block = batch.block[0]
            block["n_packets"], block["data_used"] = row["n_packets"], row["data_used"]
            self._table.head["n_notes"] = row["n_packets"]
        elif self._stopping:
            self._finish()
        else:
            for opened in self._sockets:
                endpoint_sockets.take_error(opened)
        if not self._stopping and (not looked or now_ns - self._read_ns >= _READ_EVERY_NS):
            self._read_ns = now_ns
            self._read_drops()
            asking.keep_again()
        return looked

    def _fold(self, seq: int) -> None:
        """Count what the block before told of its senders, and begin the notes of block `seq`. A worker before this one may have left
        notes of the very block: it was not published."""
        head = self._table.head
        if not (self._first_step and int(head["noted_seq"][0]) == seq):
            fold_notes(self._table.head_at, self._table.rows_at, self._table.notes_at, self._live_at)
        self._first_step = False
        head["n_notes"] = 0
        head["n_folded"] = 0
        head["noted_seq"] = seq

    def _read_drops(self) -> None:
        for i, opened in enumerate(self._sockets):
            self._received.read(i, endpoint_sockets.dropped(opened))
        self._live[_KERNEL + self._input.slot] = self._received.dropped

    def _finish(self) -> None:
        self.finished = True
        for opened in self._sockets:
            endpoint_sockets.end(opened, self._context.lane.number)
        self._sockets = []

    def close(self) -> None:
        for opened in self._sockets:
            opened.close()
        self._sockets = []


def _nets(input_: Input) -> NDArray[np.void]:
    """NET[n]; IPv4 is mapped into ::ffff:0:0/96."""
    made = np.zeros(len(input_.senders), NET)
    for row, text in zip(made, input_.senders, strict=True):
        net = ipaddress.ip_network(text)
        mapped = net.version == 4
        value = (b"\0" * 10 + b"\xff\xff" if mapped else b"") + net.network_address.packed
        bits = net.prefixlen + (96 if mapped else 0)
        row["value"] = np.frombuffer(value, "<i8")
        row["mask"] = np.frombuffer(((1 << 128) - (1 << 128 - bits)).to_bytes(16, "big"), "<i8")
    return made
