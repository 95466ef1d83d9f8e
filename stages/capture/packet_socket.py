"""A packet socket with a TPACKET_V3 ring on an interface (packet(7); Documentation/networking/packet_mmap.rst; linux/if_packet.h).

The order matters: the socket is bound while a filter rejects everything, because from bind to PACKET_FANOUT it would get the packets of
the whole group. In a group the kernel ignores PACKET_IGNORE_OUTGOING, so the filter that then takes over rejects outgoing packets too.

PACKET_FANOUT_FLAG_DEFRAG is not used: the kernel would hand out the reassembled datagram, not the frames that were on the wire. Without it
all fragments of a datagram go to one member (their hash has no ports), though not always to the one that gets the rest of their flow.
When a member dies or joins, the kernel spreads all flows anew: each packet still goes to one member, but a flow may change lanes then.

The opener keeps the socket, while it still rejects everything: a worker that dies leaves it, its ring and its place in the group to the
next. Nothing is lost then but what does not fit the ring.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
from typing import Any

import numpy as np

from broker.core.layout import SOURCE_ABSENT, SOURCE_DOWN, SOURCE_FINE, SOURCE_NO_LINK
from broker.core.model import Input, Lane
from broker.privileges import asking
from stages.capture.errors import AbsentError, DownError, SourceError
from stages.capture.socket_filter import REJECT_ALL, TAKE_ALL
from stages.capture.taking_over import Place, place_in

_SOL_PACKET, _ETH_P_ALL = 263, 0x0003
_ADD_MEMBERSHIP, _RX_RING, _VERSION, _FANOUT, _IGNORE_OUTGOING = 1, 5, 10, 18, 23
_TPACKET_V3, _MR_PROMISC, _FANOUT_HASH = 2, 1, 0
_STATUS, _USER = 8, 1  # tpacket_block_desc: block_status
_SO_ATTACH_FILTER, _INSTRUCTION_BYTES = 26, 8
_SIOCGIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x1, 0x40  # linux/sockios.h, linux/if.h

BLOCK_BYTES = 256 * 1024  # larger ones fall out of the second-level cache; a super-frame has 64 KiB
_MIN_BLOCK_BYTES = 128 * 1024
_FRAME_BYTES = 2048  # means nothing in version 3, but has to divide the block


class PacketSocket:
    """Open from the start; `close` once. Nothing here is done per packet."""

    def __init__(self, input_: Input, lane: Lane, program: bytes) -> None:
        """`program`: what the kernel lets through, see `socket_filter`. SourceError in words; OSError when it may be kept and cannot be
        had: to be tried again, for another would leave behind what it holds."""
        self.name = input_.interface
        self.block_bytes = BLOCK_BYTES if input_.ring_bytes >= 2 * BLOCK_BYTES else _MIN_BLOCK_BYTES
        self.n_blocks = max(input_.ring_bytes // self.block_bytes, 2)
        self._kept_as = f"capture-{lane.number}"
        self._described = f"{self.name} {input_.ring_bytes} {input_.latency_ms} {input_.promiscuous} {lane.fanout_group}/{lane.fanout_size}"
        taken_over = asking.find_kept(self._kept_as, self._described)
        self.is_taken_over = taken_over is not None
        try:
            self._socket = taken_over or asking.open_socket(socket.AF_PACKET, socket.SOCK_RAW)
        except PermissionError:
            raise SourceError(self.name, None, "capturing needs the capability CAP_NET_RAW (or root)") from None
        except TimeoutError:  # the opener hangs: that may pass
            raise
        except OSError as error:
            raise SourceError(self.name, None, f"no packet socket can be had: {error.strerror or error}") from None
        try:
            if not self.is_taken_over:
                self._set_up(input_)
            self._memory = mmap.mmap(self.fileno(), self.block_bytes * self.n_blocks, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            if not self.is_taken_over:
                self._join(lane)
            self.attach(program)
        except OSError as error:
            self._socket.close()
            self._drop()
            told = {errno.ENODEV: AbsentError, errno.ENXIO: AbsentError, errno.ENETDOWN: DownError}.get(error.errno or 0, SourceError)
            raise told(self.name, None, _in_words(error)) from None
        except SourceError:
            self._socket.close()
            raise
        self.ring_at = int(np.frombuffer(self._memory, np.uint8).ctypes.data)

    def _set_up(self, input_: Input) -> None:
        sock, number = self._socket, self._number()
        n_frames = self.block_bytes // _FRAME_BYTES * self.n_blocks
        sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        ring = struct.pack("7I", self.block_bytes, self.n_blocks, _FRAME_BYTES, n_frames, input_.latency_ms, 0, 0)
        sock.setsockopt(_SOL_PACKET, _RX_RING, ring)
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        if input_.promiscuous:
            sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8s", number, _MR_PROMISC, 0, b""))

    def _join(self, lane: Lane) -> None:
        self.attach(REJECT_ALL)
        self._socket.bind((self.name, _ETH_P_ALL))
        if lane.fanout_size > 1:
            self._socket.setsockopt(_SOL_PACKET, _FANOUT, lane.fanout_group & 0xFFFF | _FANOUT_HASH << 16)
        with contextlib.suppress(OSError):  # then a worker that dies costs what its ring held
            asking.keep(self._kept_as, self._described, self._socket)

    @property
    def identity(self) -> int:
        """No other socket has it, while this one is open anywhere."""
        return os.fstat(self.fileno()).st_ino

    def place(self, blocks: int, left: int) -> Place | None:
        """`place_in` its ring."""
        return place_in(self._memory, self.block_bytes, self.n_blocks, blocks, left)

    def _number(self) -> int:
        """The interface's index; SourceError when it is not there or down."""
        try:
            number = socket.if_nametoindex(self.name)
        except OSError:
            raise AbsentError(self.name, None, "there is no such interface") from None
        if self._trouble_of(self.name) == SOURCE_DOWN:
            raise DownError(self.name, None, "the interface is down")
        return number

    def _trouble_of(self, name: str) -> int:
        try:
            answer = fcntl.ioctl(self._socket, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
        except OSError:
            return SOURCE_ABSENT
        (flags,) = struct.unpack_from("H", answer, 16)
        if not flags & _IFF_UP:
            return SOURCE_DOWN
        return SOURCE_FINE if flags & _IFF_RUNNING else SOURCE_NO_LINK

    def attach(self, program: bytes) -> None:
        """sock_filter[], which replaces the filter that is there. OSError when the kernel refuses it.

        In one step, but where net.core.optmem_max has no room for both at once (20 kB before Linux 6.7): then all that comes in between is
        taken.
        """
        try:
            self._attach(program)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self._attach(TAKE_ALL)
            self._attach(program)

    def _attach(self, program: bytes) -> None:
        code = ctypes.create_string_buffer(program, len(program))
        length = len(program) // _INSTRUCTION_BYTES
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", length, ctypes.addressof(code)))

    def fileno(self) -> int:
        return self._socket.fileno()

    def reject_all(self) -> None:
        """From now on nothing new comes; what the ring holds stays."""
        self.attach(REJECT_ALL)

    def waits(self, block: int) -> bool:
        """Whether this block of the ring has been handed over and not been given back."""
        return bool(self._memory[block % self.n_blocks * self.block_bytes + _STATUS] & _USER)

    def take_error(self) -> int:
        """The pending errno, 0 if none; as long as one is pending, whoever polls is woken at once."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    @property
    def attached_to(self) -> str:
        """The name that the interface has now; empty: it does not exist any more in this namespace."""
        address: Any = self._socket.getsockname()
        return str(address[0])

    @property
    def trouble(self) -> int:
        """SOURCE_* of the interface. One that is renamed is followed, until another takes the name that we were told."""
        now = self.attached_to
        if now != self.name and self._trouble_of(self.name) != SOURCE_ABSENT:
            return SOURCE_ABSENT
        return self._trouble_of(now) if now else SOURCE_ABSENT

    def close(self) -> None:
        """What is kept stays, for who takes over."""
        self._memory.close()
        self._socket.close()

    def end(self) -> None:
        """Close it for good."""
        self.close()
        self._drop()

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            asking.drop_kept(self._kept_as)


def _in_words(error: OSError) -> str:
    match error.errno:
        case errno.ENOMEM:
            return "the kernel has no memory for a ring of this size: lower ring_bytes"
        case errno.EINVAL | errno.EALREADY | errno.ENOSPC:
            return f"the kernel refuses the ring or the fan-out group (is another program using the group?): {error.strerror}"
        case errno.ENODEV | errno.ENXIO:
            return "there is no such interface"
        case errno.EPERM | errno.EACCES:
            return "capturing needs the capability CAP_NET_RAW (or root)"
        case errno.ENETDOWN:
            return "the interface is down"
        case _:
            return os.strerror(error.errno or 0)
