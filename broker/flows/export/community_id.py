"""Community ID, version 1, seed 0: the same short name for a flow in every tool that knows it (github.com/corelight/community-id-spec).

The base64 of the SHA-1 of seed, smaller end's address, larger end's address, protocol, 0, and the ports in the same order. The ports of
FLOW rows are those that it defines, also for ICMP.
"""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import sha1

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_ring import Rows

_ICMP, _ICMP6 = 1, 58
_WITH_PORTS = (_ICMP, 6, 17, _ICMP6, 132)
_ANSWERED = {4: (0, 8, 9, 10, 13, 14, 15, 16, 17, 18), 6: (*range(128, 132), *range(133, 137), 139, 140, 144, 145)}
"""Types of ICMP and ICMPv6 that are question or answer: the others go one way."""


def has_answer(rows: Rows) -> NDArray[np.bool_]:
    """Of ICMP rows: whether the type of the first packet has a counterpart."""
    types = rows["icmp"] >> 8
    return np.where(rows["version"] == 4, np.isin(types, _ANSWERED[4]), np.isin(types, _ANSWERED[6]))


def community_ids(rows: Rows) -> list[str]:
    """Of each FLOW row."""
    made = np.empty(len(rows), object)
    has_ports = np.isin(rows["protocol"], _WITH_PORTS)
    for version, n_bytes in ((4, 4), (6, 16)):
        for ports in (False, True):
            chosen = (rows["version"] == version) & (has_ports == ports)
            if chosen.any():
                made[chosen] = _hashed(rows[chosen], n_bytes, ports)
    return list(made)


def _hashed(rows: Rows, n_bytes: int, has_ports: bool) -> list[str]:
    n = len(rows)
    ends = [np.empty((n, n_bytes + 2), np.uint8) for _ in range(2)]
    for end, name in zip(ends, ("source", "destination"), strict=True):
        end[:, :n_bytes] = rows[name][:, 16 - n_bytes :]
        end[:, n_bytes:] = rows[f"{name}_port"].astype(">u2").view(np.uint8).reshape(n, 2)
    compared = [end if has_ports else end[:, :n_bytes] for end in ends]
    swapped = _is_larger(*compared)
    swapped &= ~np.isin(rows["protocol"], (_ICMP, _ICMP6)) | has_answer(rows)
    first, second = (np.where(swapped[:, None], ends[1 - i], ends[i]) for i in range(2))
    text = np.zeros((n, 4 + 2 * n_bytes + 4 * has_ports), np.uint8)  # a seed of 0 first
    text[:, 2 : 2 + n_bytes], text[:, 2 + n_bytes : 2 + 2 * n_bytes] = first[:, :n_bytes], second[:, :n_bytes]
    text[:, 2 + 2 * n_bytes] = rows["protocol"]
    if has_ports:
        text[:, -4:-2], text[:, -2:] = first[:, n_bytes:], second[:, n_bytes:]
    data, size = text.tobytes(), text.shape[1]
    return [
        "1:" + b2a_base64(sha1(data[at : at + size], usedforsecurity=False).digest(), newline=False).decode()
        for at in range(0, len(data), size)
    ]


def _is_larger(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Of each row, bytes compared from the first on."""
    differs = one != other
    at = differs.argmax(axis=1)
    rows = np.arange(len(one))
    return np.asarray(one[rows, at] > other[rows, at])
