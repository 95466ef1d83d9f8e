"""`decapsulate` on packets in memory of their own; as a program it prints what it makes of damaged ones, a line each.

With NUMBA_DISABLE_JIT=1 every byte that the kernel touches must lie in the packet, the room before it, or INSIDE.
"""

from __future__ import annotations

import random
import sys

import numpy as np

from stages import memory
from stages.wire.decap import HEADROOM, INSIDE, LISTEN_GENEVE, LISTEN_GRE, LISTEN_VXLAN, decapsulate
from tests.stages.wire.tunnels import CASES

LISTEN = {"gre": LISTEN_GRE, "gre-udp": LISTEN_GRE, "vxlan": LISTEN_VXLAN, "geneve": LISTEN_GENEVE}


def run(listen: str, data: bytes) -> tuple[int, dict[str, int], bytes]:
    """Its answer, INSIDE, and the frame inside."""
    room = np.frombuffer(bytes(HEADROOM) + data, np.uint8).copy()
    inside = np.zeros(1, INSIDE)
    memory.forbid_all()
    memory.allow(room.ctypes.data, room.nbytes)
    memory.allow(inside.ctypes.data, inside.nbytes)
    answer = decapsulate(LISTEN[listen], room.ctypes.data + HEADROOM, len(data), inside.ctypes.data)
    memory.forbid_all()
    found = {name: int(inside[0][name]) for name in INSIDE.names or ()}
    return answer, found, room[HEADROOM + found["at"] :].tobytes() if answer == 0 else b""


def damaged(seed: int) -> list[tuple[str, bytes]]:
    """Every case cut at every length of its headers, and with any of its first bytes changed."""
    chosen = random.Random(seed)
    found = []
    for case in CASES:
        found += [(case.listen, case.data[:n]) for n in range(64)]
        for _ in range(60):
            data = bytearray(case.data[: chosen.randrange(30, len(case.data) + 1)])
            for _ in range(chosen.randrange(1, 4)):
                data[chosen.randrange(24)] = chosen.choice((0, 1, 0x40, 0x80, 0xFF, chosen.randrange(256)))
            found.append((case.listen, bytes(data)))
    return found


if __name__ == "__main__":
    for listen, data in damaged(1):
        answer, found, frame = run(listen, data)
        sys.stdout.write(f"{answer} {list(found.values())[1:] if answer == 0 else ''} {frame.hex()}\n")
