"""The far end of the example: takes GRE in UDP (RFC 8086, RFC 2890) on loopback and writes the frames in it to a capture file.

    python -m broker.demo.receiver --out FILE [--port PORT]

Says ``{"port": N}`` when it listens. On SIGTERM it takes what has arrived, and says ``{"packets": .., "bytes": .., "missing": ..,
"refused": ..}``: frames written, their bytes, sequence numbers that never came, datagrams that are not GRE with an Ethernet frame.

It shares nothing with the sending side: what it finds is evidence.
"""

from __future__ import annotations

import argparse
import json
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import BinaryIO

_CHECKSUM, _KEY, _SEQUENCE, _VERSION = 0x8000, 0x2000, 0x1000, 0x0007
_ETHERNET_FRAME = 0x6558
_BUFFER_BYTES = 4 << 20


@dataclass
class Received:
    packets: int = 0
    bytes: int = 0
    missing: int = 0
    refused: int = 0


@dataclass
class Unwrapper:
    """Counts and strips; the sequence numbers of each key are a run that should have no hole."""

    received: Received = field(default_factory=Received)
    runs: dict[int, tuple[int, int, int]] = field(default_factory=dict)  # key: lowest, highest, how many

    def unwrap(self, datagram: bytes) -> bytes | None:
        """The frame in it, or nothing."""
        if len(datagram) < 4:
            self.received.refused += 1
            return None
        flags, protocol = struct.unpack_from("!HH", datagram)
        n_words = [bool(flags & bit) for bit in (_CHECKSUM, _KEY, _SEQUENCE)]
        at = 4 + 4 * sum(n_words)
        if protocol != _ETHERNET_FRAME or flags & _VERSION or len(datagram) < at:
            self.received.refused += 1
            return None
        if flags & _SEQUENCE:
            (number,) = struct.unpack_from("!I", datagram, at - 4)
            (key,) = struct.unpack_from("!I", datagram, at - 8) if flags & _KEY else (-1,)
            lowest, highest, count = self.runs.get(key, (number, number, 0))
            self.runs[key] = (min(lowest, number), max(highest, number), count + 1)
        frame = datagram[at:]
        self.received.packets += 1
        self.received.bytes += len(frame)
        return frame

    def summary(self) -> Received:
        self.received.missing = sum(max(0, highest - lowest + 1 - count) for lowest, highest, count in self.runs.values())
        return self.received


def _record(file: BinaryIO, frame: bytes) -> None:
    seconds, rest_ns = divmod(time.time_ns(), 1_000_000_000)
    file.write(struct.pack("<IIII", seconds, rest_ns, len(frame), len(frame)) + frame)


def serve(port: int, file: BinaryIO) -> Received:
    """Until SIGTERM or SIGINT; then what the socket still holds."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    listener.bind(("127.0.0.1", port))
    listener.setblocking(False)
    file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1))
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    unwrapper = Unwrapper()
    stopping = False
    while not stopping:
        readable, _, _ = select.select([listener, woken], [], [])
        stopping = woken in readable
        while True:
            try:
                datagram = listener.recv(65_536)
            except BlockingIOError:
                break
            frame = unwrapper.unwrap(datagram)
            if frame is not None:
                _record(file, frame)
    return unwrapper.summary()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m broker.demo.receiver", description="GRE in UDP to a capture file")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    arguments = parser.parse_args()
    with open(arguments.out, "wb") as file:
        received = serve(arguments.port, file)
    sys.stdout.write(json.dumps(asdict(received)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
