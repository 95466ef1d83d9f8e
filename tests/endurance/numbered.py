"""Numbered, checksummed packets: a process that sends them at a steady rate, one that receives them out of GRE, and what was received.

    python -m tests.endurance.numbered send INTERFACE RATE MAC TALLY    in the namespace of who sends
    python -m tests.endurance.numbered receive RECORDS TALLY            in the namespace of the tool

Both end with SIGTERM. With a MAC packets are sent to it in GRE, from 10.98.0.1 to 10.98.0.2; with `-` as they are.
TALLY is int64[2], mapped: how many, and how many of them were broken. RECORDS is RECORD[n]. Nothing here is the
broker's: the outer header is read by RFC 2784 and 2890, the inner frame is known by its CRC-32.
"""

from __future__ import annotations

import mmap
import signal
import socket
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.packets import GRE, ethernet, gre, ipv4, udp_frame

N_FLOWS = 50
_TAIL = struct.Struct("!HQI")  # flow, number, CRC-32 of all before
RECORD = np.dtype([("sequence", "<u4"), ("flow", "<u4"), ("number", "<u8")])
BURST = 16
SO_RCVBUFFORCE = 33  # asm-generic/socket.h


def templates() -> list[bytes]:
    """A frame of each flow, without its last bytes. Sizes differ; a UDP checksum of zero is none (RFC 768)."""
    made = []
    for flow in range(N_FLOWS):
        frame = bytearray(udp_frame(f"10.1.0.{flow + 1}", 4000 + flow, "10.2.0.1", 53, bytes(20 + flow * 23 % 900) + bytes(_TAIL.size)))
        frame[40:42] = b"\0\0"
        made.append(bytes(frame[: -_TAIL.size]))
    return made


def outer(mac: str, known: list[bytes]) -> list[bytes]:
    """What goes before a frame of each flow."""
    if mac == "-":
        return [b""] * len(known)
    return [ethernet(ipv4("10.98.0.1", "10.98.0.2", GRE, gre(bytes(len(head) + _TAIL.size))), destination=mac)[:38] for head in known]


def frame(known: list[bytes], number: int) -> bytes:
    """The packet of this number; packets of a flow have ascending ones."""
    flow = number * 7 % N_FLOWS
    head = known[flow] + _TAIL.pack(flow, number, 0)[:-4]
    return head + zlib.crc32(head).to_bytes(4, "big")


def read(inner: bytes) -> tuple[int, int] | None:
    """(flow, number) of a frame that is as it was sent; None: it is not."""
    if len(inner) < 42 + _TAIL.size:
        return None
    flow, number, crc = _TAIL.unpack_from(inner, len(inner) - _TAIL.size)
    return (flow, number) if zlib.crc32(inner[:-4]) == crc else None


class Tally:
    """int64[2] in a file that both sides map."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(16))
        with path.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), 16)).cast("q")

    @property
    def n(self) -> int:
        return self._words[0]

    @property
    def n_broken(self) -> int:
        return self._words[1]

    def set(self, n: int, n_broken: int) -> None:
        self._words[0], self._words[1] = n, n_broken


def send(interface: str, rate: int, mac: str, tally: Tally, stopped: list[int]) -> None:
    """Until stopped; what cannot be sent is broken."""
    known, number, n_broken = templates(), 0, 0
    before = outer(mac, known)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as wire:
        wire.bind((interface, 0))
        begun = time.monotonic()
        while not stopped:
            for _ in range(BURST):
                try:
                    wire.send(before[number * 7 % N_FLOWS] + frame(known, number))
                except OSError:
                    n_broken += 1
                number += 1
            tally.set(number, n_broken)
            ahead = begun + number / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            elif ahead < -0.1:  # it was not run for a while: no burst to make up for it
                begun -= ahead


def receive(records: Path, tally: Tally, stopped: list[int]) -> None:
    n = n_broken = 0
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE) as wire, records.open("wb") as out:
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        wire.settimeout(0.1)
        tally.set(0, 0)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            try:
                packet = wire.recv(65_536)
            except TimeoutError:
                out.flush()
                if stopped:
                    return
                continue
            row = unwrapped(packet)
            if row is None:
                n_broken += 1
            else:
                out.write(struct.pack("<IIQ", *row))
                n += 1
            tally.set(n, n_broken)


def unwrapped(packet: bytes) -> tuple[int, int, int] | None:
    """(sequence number, flow, number) of IPv4 with GRE with key 7, a sequence number and an Ethernet frame; None: something is wrong."""
    at = (packet[0] & 15) * 4
    if len(packet) < at + 12 or struct.unpack_from("!HHI", packet, at) != (0x3000, 0x6558, 7):
        return None
    found = read(packet[at + 12 :])
    return None if found is None else (struct.unpack_from("!I", packet, at + 8)[0], *found)


class Received:
    """What arrived, in its order."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        self.n = len(rows)
        _, first, inverse = np.unique(rows["sequence"], return_index=True, return_inverse=True)
        self.n_unique = len(first)
        self.n_repeated = self.n - self.n_unique
        self.repeats_are_alike = bool((rows["number"] == rows["number"][first][inverse]).all())
        kept = rows[np.sort(first)]
        self.numbers = np.sort(kept["number"])
        self.n_gaps = int(kept["sequence"].max()) + 1 - self.n_unique if self.n else 0  # sequence numbers that never came
        self.disordered = [flow for flow in range(N_FLOWS) if (np.diff(kept["number"][kept["flow"] == flow].astype(np.int64)) <= 0).any()]


def main() -> None:
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    what, *words = sys.argv[1:]
    if what == "send":
        send(words[0], int(words[1]), words[2], Tally(Path(words[3])), stopped)
    else:
        receive(Path(words[0]), Tally(Path(words[1])), stopped)


if __name__ == "__main__":
    main()
