"""A live interface as a source: AF_PACKET with a TPACKET_V3 ring.

Frames are given as they came, with two exceptions that the kernel makes: a VLAN tag that it had stripped is put back (flagged, counted),
and what GRO, LRO or a virtual switch has merged into a super-frame stays merged. Checksums that the sending side left to its hardware are
not filled in. Times are the kernel's. Frames that this host sends are not captured; those of our own tunnels, in whatever way they come,
are dropped and counted (`own_kernels.py`, `breaker.py`).

A kernel block is given back when the batch with its packets has been published, that is, at the next step.

| what happens | what is lost, and what counts it |
|---|---|
| capture cannot keep up | see `admission.py`: filtered_in_kernel_packets, dropped_shed_in_kernel |
| the kernel's ring is full | dropped_kernel, read with the kernel's statistics after each step and at least ten times a second |
| the worker dies | nothing: the socket and its ring are kept by the opener, and the next worker goes on after what is published |
| it dies where there is no opener, or with the opener | what the kernel's ring and the unpublished block held: dropped_restart of \
the next worker, as of the last reading of the statistics (seen_packets - captured - all dropped); what came after that and before the \
next worker opened is not known |
| the interface goes down, or has no link | nothing; the kernel attaches the socket again when it comes up |
| the interface vanishes, or is not there at the start | what came before is given; then it is looked for four times a second, and opened \
when it is there and up |
| it is renamed | nothing; it is captured on, until another interface has the name that the input says |

What is wrong with the interface stands in source_trouble, as long as it is.

On a dedicated interface frames end behind the tap (`ingress_drop.py`); the first lane sees to it whenever it opens the interface.
"""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.config.policy.image import prefilter_of
from broker.core import log
from broker.core.batch import Batch
from broker.core.layout import SOURCE_ABSENT, SOURCE_DOWN, SOURCE_FINE, SOURCE_NO_LINK
from broker.core.metrics import index
from broker.core.stage import Context, Generation
from broker.privileges import asking, ingress_drop
from stages.capture.admission import Admission
from stages.capture.afpacket_kernels import RING, copy_packets, give_back
from stages.capture.breaker import Breaker
from stages.capture.errors import AbsentError, DownError, SourceError
from stages.capture.own import own_table
from stages.capture.packet_socket import PacketSocket
from stages.capture.reading import Reading
from stages.capture.socket_filter import program

EVENTS = {
    "interface_down": "the interface is down; captured again when it comes up",
    "interface_failed": "the packet socket reports an error, or cannot be opened again: tried until it can",
    "interface_lost": "the interface is not there; looked for until it is",
    "interface_no_link": "the interface is up and has no carrier: nothing can come",
    "interface_renamed": "the interface has another name than its input says; it is captured on, but would not be found at a start",
    "ingress_drop_failed": "frames on a dedicated interface go on to the IP stack, or have ended there and still do: the reason says why",
    "ingress_drop_refused": "the interface is not captured as a dedicated one: something on this host lives from what arrives there",
    "ingress_drop_removed": "what an earlier broker had installed is taken away: frames go on to the IP stack again",
    "prefilter_refused": "the kernel does not take the program made of the policy: everything is captured",
    "interface_returned": "the interface is there, up and captured",
    "interface_taken_over": "a worker has died, and capture goes on with its socket",
    "interface_not_taken_over": "a worker has died, and its socket's ring is not as it should be: a new one is opened",
}

_MS, _S = 1_000_000, 1_000_000_000
_READ_EVERY_NS = _MS  # the statistics, when packets come; when idle, at each step
_LOOK_EVERY_NS = _S // 4  # what has become of the interface
_SETTLE_NS = _S  # after a stop: the longest wait for what the statistics say is in the ring
_RETRY_NS = _S // 4
_TROUBLES = {
    SOURCE_FINE: "interface_returned", SOURCE_ABSENT: "interface_lost", SOURCE_DOWN: "interface_down", SOURCE_NO_LINK: "interface_no_link",
}  # fmt: skip

_SEEN, _KERNEL, _RESTART, _SHED = (
    index("capture", name) for name in ("seen_packets", "dropped_kernel", "dropped_restart", "dropped_shed_in_kernel")
)
_TROUBLE = index("capture", "source_trouble")
_POSITION = tuple(index("capture", name) for name in ("source_file", "source_at", "source_state_a"))  # socket, RING blocks and left
_COMMITTED = tuple(
    index("capture", name)
    for name in (
        "captured_packets", "filtered_in_kernel_packets", "dropped_shed_in_kernel", "dropped_oversize", "dropped_linktype",
        "dropped_malformed", "dropped_own", "dropped_loop",
    )
)  # fmt: skip


class Interface:
    """States: attached (a socket), absent (none; looked for), stopping (the socket takes nothing new), finished."""

    def __init__(self, context: Context) -> None:
        self._context, self._live = context, context.live
        self._input = context.lane.inputs[0]
        self._log = log.get(lane=context.lane.number, stage="capture", interface=self._input.interface)
        self._ring = np.zeros(1, RING)
        self._row: Any = self._ring[0]
        self._row_at = int(self._ring.ctypes.data)
        self._row["input"] = self._input.slot
        self._socket: PacketSocket | None = None
        self._reading = Reading(context.directory, context.lane.number, context.live, _SEEN + self._input.slot, _KERNEL + self._input.slot)
        self._read_ns = self._looked_ns = 0
        self._identity = 0  # of the socket
        self._own: NDArray[np.uint8] | None = None
        self._breaker = Breaker(self._row, context.live[index("capture", "loop_trips") + self._input.slot :], self._log, self._n_shed)
        self._prefilter = b""
        counted = (int(self._live[at + self._input.slot]) for at in (_SEEN, _KERNEL))
        self._admission = Admission(self._input.prefilter, self._input.shed, self._log, *counted)
        self._name = self._input.interface  # that it has now
        self._gone_ns = self._stopped_ns = 0  # when; 0: not
        self._failed = ""  # why it could not be opened again
        self._poll = select.poll()
        self.finished = False
        self.due_ns = 0

    def open(self) -> None:
        """SourceError in words. An interface that is not there or down is waited for: it may come later than we do."""
        try:
            self._attach(refuse=self._context.epoch == 1)
        except AbsentError as error:
            self._tell(SOURCE_DOWN if isinstance(error, DownError) else SOURCE_ABSENT)
            self._count_restart()
            self._retry_later()
        except SourceError:
            if self._socket is not None:
                self._socket.end()  # nobody will come for it
                self._socket = None
            raise

    @property
    def _known(self) -> int:
        """Packets of which it is said what has become of them."""
        live, slot = self._live, self._input.slot
        return sum(int(self._context.counters[at + slot]) for at in _COMMITTED) + int(live[_KERNEL + slot]) + int(live[_RESTART + slot])

    def _count_restart(self) -> None:
        """What had come to a socket that is no more and was not published."""
        live, slot = self._live, self._input.slot
        known, seen = self._known, int(live[_SEEN + slot])
        live[_RESTART + slot] += max(seen - known, 0)
        live[_SEEN + slot] = max(seen, known)  # its last packets came after its last reading

    def load(self, generation: Generation) -> None:
        """Know our own packets by the tools of this generation, and by its rules what nobody wants."""
        self._own = None if self._input.capture_own else own_table(generation.config)
        self._row["own_at"] = 0 if self._own is None else self._own.ctypes.data
        before, self._prefilter = self._prefilter, prefilter_of(generation.image, self._input.slot)
        self._admission.has_prefilter = bool(self._prefilter)
        if self._prefilter != before:
            self._admit()

    @property
    def _program(self) -> bytes:
        return program(self._prefilter if self._admission.prefiltering else b"", self._admission.kept)

    def _admit(self) -> None:
        """Have the kernel let through what is to be let through now."""
        if self._socket is None or self._stopped_ns:
            return
        try:
            self._socket.attach(self._program)
        except OSError as error:
            self._log.warning("prefilter_refused", reason=str(error))
            self._prefilter, self._admission.has_prefilter = b"", False
            self._socket.attach(self._program)

    def _attach(self, *, refuse: bool = False) -> None:
        socket = self._socket = PacketSocket(self._input, self._context.lane, self._program)
        if socket.is_taken_over and not self._take_over(socket):
            self._reading.take(socket.fileno())
            socket.end()
            socket = self._socket = PacketSocket(self._input, self._context.lane, self._program)
        if not socket.is_taken_over:
            self._count_restart()
            for name in ("blocks", "offset", "left", "held"):
                self._row[name] = 0
        self._row["taken"] = self._row["alike"] = 0
        self._row["ring_at"], self._row["block_bytes"], self._row["n_blocks"] = socket.ring_at, socket.block_bytes, socket.n_blocks
        self._identity = socket.identity
        self._poll = select.poll()
        self._poll.register(socket.fileno(), select.POLLIN)
        self._name, self._gone_ns, self.due_ns, self._failed = self._input.interface, 0, 0, ""
        if not self._context.lane.member:
            self._settle_ingress(refuse=refuse)
        self._tell(socket.trouble)

    def _take_over(self, socket: PacketSocket) -> bool:
        """Go on where the worker before me has stood when it published its last block."""
        identity, blocks, left = (int(self._context.counters[at]) for at in _POSITION)
        place = socket.place(blocks, left) if identity == socket.identity else socket.place(0, 0)
        if place is None:
            self._log.warning("interface_not_taken_over")
            return False
        self._row["blocks"], self._row["offset"], self._row["left"], self._row["held"] = place.blocks, place.offset, place.left, place.held
        self._log.info("interface_taken_over")
        return True

    def _settle_ingress(self, *, refuse: bool) -> None:
        """Have frames end behind the tap, or go on, whatever an earlier worker has left there. `refuse`: SourceError if somebody lives from
        them, as at the very start; who captures already goes on without it."""
        name = self._input.interface
        try:
            use = asking.dedicate(name) if self._input.dedicated else ""
            if (use or not self._input.dedicated) and asking.release(name):
                self._log.info("ingress_drop_removed")
        except OSError as error:
            if self._input.dedicated:  # else one was looked for that hardly ever is there
                self._log.warning("ingress_drop_failed", reason=ingress_drop.in_words(error))
            return
        if use and refuse:
            raise SourceError(name, None, f"it cannot be dedicated, for this host would be cut off from it: {use}")
        if use:
            self._log.warning("ingress_drop_refused", reason=use)

    def _finish(self) -> None:
        self.finished = True
        if self._input.dedicated and not self._context.lane.member:
            try:
                asking.release(self._input.interface)
            except OSError as error:
                self._log.warning("ingress_drop_failed", reason=ingress_drop.in_words(error))

    @property
    def wait_fd(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def stop(self) -> None:
        self._stopped_ns = self._stopped_ns or time.monotonic_ns()
        if self._socket is None:
            self._finish()
        else:
            self._socket.reject_all()

    def step(self, batch: Batch) -> int:
        """Packets given and dropped. After `stop` it waits for the kernel's last block, so that 0 means the end."""
        if self.finished:
            return 0
        if self._socket is None:
            self._look_again()
            return 0
        looked = self._take(batch)
        while not looked and self._stopped_ns:
            if self._settled(self._stopped_ns):
                self._detach()
                self._finish()
                return 0
            self._poll.poll(self._input.latency_ms)
            looked = self._take(batch)
        if not looked:
            self._when_idle()
        return looked

    def _take(self, batch: Batch) -> int:
        row = self._row
        row["max_packets"], row["data_bytes"] = batch.max_packets, batch.data_bytes
        give_back(self._row_at)
        looked: int = copy_packets(self._row_at, batch.packets_at, batch.data_at, self._context.counters_at)
        now_ns = time.monotonic_ns()
        if looked:
            block = batch.block[0]
            block["n_packets"], block["data_used"] = row["n_packets"], row["data_used"]
            counters = self._context.counters
            counters[_POSITION[0]], counters[_POSITION[1]], counters[_POSITION[2]] = self._identity, row["blocks"], row["left"]
        if self._own is not None:
            self._breaker.look(now_ns)
        if looked and self._live[_TROUBLE + self._input.slot] and now_ns - self._looked_ns >= _LOOK_EVERY_NS:
            self._look(now_ns)
        if not looked or now_ns - self._read_ns >= _READ_EVERY_NS:
            self._read_statistics(now_ns)
        return looked

    def _read_statistics(self, now_ns: int) -> None:
        assert self._socket is not None
        self._reading.take(self._socket.fileno())
        self._read_ns = now_ns
        asking.keep_again()
        slot = self._input.slot
        crowded = self._socket.waits(int(self._row["blocks"]) + self._socket.n_blocks // 2)
        if self._admission.look(now_ns, int(self._live[_SEEN + slot]), int(self._live[_KERNEL + slot]), crowded):
            self._admit()

    def _n_shed(self) -> int:
        return int(self._context.counters[_SHED + self._input.slot])

    @property
    def _in_ring(self) -> int:
        """Packets that the kernel has put into the ring and that are not walked yet, as of the last reading."""
        return int(self._live[_SEEN + self._input.slot]) - self._known

    def _settled(self, since_ns: int) -> bool:
        """Nothing more will come out of the ring: its open block has had the time to be handed over, and nothing is missing."""
        age_ns = time.monotonic_ns() - since_ns
        return age_ns > _SETTLE_NS or (age_ns > 2 * self._input.latency_ms * _MS and self._in_ring <= 0)

    def _detach(self) -> None:
        assert self._socket is not None
        self._count_restart()
        self._socket.end()
        self._socket = None

    def _when_idle(self) -> None:
        assert self._socket is not None
        error = self._socket.take_error()
        if error and error != errno.ENETDOWN:
            self._log.warning("interface_failed", reason=os.strerror(error))
        now_ns = time.monotonic_ns()
        if self._gone_ns:
            if self._settled(self._gone_ns):
                self._detach()
                self._retry_later()
        elif error or now_ns - self._looked_ns >= _LOOK_EVERY_NS:
            self._look(now_ns)

    def _look(self, now_ns: int) -> None:
        """What has become of the interface."""
        assert self._socket is not None
        self._looked_ns = now_ns
        trouble, name = self._socket.trouble, self._socket.attached_to
        if trouble == SOURCE_ABSENT:
            self._gone_ns = self._gone_ns or now_ns
        elif name != self._name:
            self._name = name
            self._log.warning("interface_renamed", now=name)
        self._tell(trouble)

    def _tell(self, trouble: int) -> None:
        """Remember what is wrong; a change is logged."""
        at = _TROUBLE + self._input.slot
        if int(self._live[at]) != trouble:
            self._live[at] = trouble
            (self._log.warning if trouble else self._log.info)(_TROUBLES[trouble])

    def _retry_later(self) -> None:
        self.due_ns = time.monotonic_ns() + _RETRY_NS

    def _look_again(self) -> None:
        if time.monotonic_ns() < self.due_ns:
            return
        try:
            self._attach()
        except AbsentError as error:
            self._tell(SOURCE_DOWN if isinstance(error, DownError) else SOURCE_ABSENT)
            self._retry_later()
        except SourceError as error:  # no memory, another's fan-out group: that may pass
            if error.reason != self._failed:
                self._failed = error.reason
                self._log.warning("interface_failed", reason=error.reason)
            self._retry_later()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
