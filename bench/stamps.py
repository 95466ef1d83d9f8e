"""How long a packet takes through the broker: frames that carry the time they were sent at, and the kernel's time of their arrival.

``python -m bench.stamps send INTERFACE RATE N``           one frame after another
``python -m bench.stamps receive INTERFACE LENGTH N SECONDS``  prints `ready`, then what came as one JSON line: microseconds of each

The receiver's kernel stamps a frame (SO_TIMESTAMPNS) when it reaches the packet socket, so the receiver may be slow. A filter lets it
see frames of LENGTH only, so that others may pass beside them. It ends with the Nth, or when nothing has come for SECONDS.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import time

FRAME_BYTES = 300  # as long as nothing else that is sent here
_MAGIC = b"tapmesh-stamp"
_SO_ATTACH_FILTER, _SO_TIMESTAMPNS, _SO_RCVBUFFORCE = 26, 35, 33
_ETH_P_ALL = 3
_HEADERS = 42  # Ethernet, IPv4, UDP


def frame(ip_len: int = FRAME_BYTES - 14) -> bytes:
    """UDP of 10.0.0.0/8; the time goes behind the magic."""
    ethernet = bytes.fromhex("020000000b00 020000000a00 0800")
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_len, 0, 0, 64, 17, 0, bytes((10, 9, 9, 1)), bytes((10, 9, 9, 2)))
    udp = struct.pack("!HHHH", 4000, 4001, ip_len - 20, 0)
    return (ethernet + ip + udp + _MAGIC).ljust(14 + ip_len, b"\0")


def send(interface: str, rate: float, n: int) -> None:
    data = bytearray(frame())
    at = _HEADERS + len(_MAGIC)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((interface, 0))
        due = time.monotonic()
        for _ in range(n):
            time.sleep(max(0.0, due - time.monotonic()))
            struct.pack_into("<Q", data, at, time.time_ns())
            out.send(data)
            due += 1 / rate


def receive(interface: str, length: int, n: int, seconds: float) -> list[float]:
    code = struct.pack("HBBI" * 4, 0x80, 0, 0, 0, 0x15, 0, 1, length, 0x06, 0, 0, 0x40000, 0x06, 0, 0, 0)  # the length, or nothing
    program = ctypes.create_string_buffer(code)
    found: list[float] = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as tap:
        tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 4, ctypes.addressof(program)))
        tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
        tap.bind((interface, _ETH_P_ALL))
        print("ready", flush=True)
        tap.settimeout(seconds)
        while len(found) < n:
            try:
                data, ancillary, _, _ = tap.recvmsg(2048, 256)
            except TimeoutError:
                break
            at = data.find(_MAGIC)
            if at < 0:
                continue
            (sent_ns,) = struct.unpack_from("<Q", data, at + len(_MAGIC))
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                    s, ns = struct.unpack("qq", value)
                    found.append((s * 1_000_000_000 + ns - sent_ns) / 1000)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(receive(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
