"""What the kernel is told to do with each packet before it copies it into its ring: classic BPF (linux/filter.h).

    not outgoing? | prefilter | of a flow that is kept? | take it

The prefilter comes with the policy (`broker/config/policy/prefilter.py`). A packet that goes no further is cut to a mark of one or two
bytes and comes through the ring like the others: what a filter rejects is counted nowhere, what it marks is counted by `copy_packets`,
to the packet and to its length on the wire.

Flows are told apart by addresses, protocol's ports where it is TCP or UDP in one piece and without options, both directions alike;
fragments by addresses alone. What is neither IPv4 nor IPv6 is of no flow, and always kept.
"""

from __future__ import annotations

import struct

from broker.config.policy.prefilter import MARK

MARK_FILTERED, MARK_SHED = MARK, MARK + 1
SHARES = 1 << 16
"""Flows are kept in shares of this many."""

_TAKE = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF_FFFF)
REJECT_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)
_NOT_OUTGOING = b"".join(
    struct.pack("=HBBI", *i)
    for i in ((0x28, 0, 0, 0xFFFF_F004), (0x15, 0, 1, 4), (0x06, 0, 0, 0))  # SKF_AD_PKTTYPE, PACKET_OUTGOING
)

TAKE_ALL = _NOT_OUTGOING + _TAKE

_LOAD, _HALF, _BYTE, _LENGTH, _CONSTANT, _STORE, _TAX, _RECALL_X = 0x20, 0x28, 0x30, 0x80, 0x00, 0x02, 0x07, 0x61
_XOR_X, _MULTIPLY, _SHIFT, _EQUAL, _AT_LEAST, _ANY_BIT, _JUMP, _RETURN = 0xAC, 0x24, 0x74, 0x15, 0x35, 0x45, 0x05, 0x06
_SPREAD = 0x9E37_79B1  # an odd number whose product has its upper half of all bits


def program(prefilter: bytes, kept: int) -> bytes:
    """sock_filter[]. `prefilter`: its body, or nothing; `kept`: flows of SHARES."""
    return _NOT_OUTGOING + prefilter + (_shed(kept) if kept < SHARES else b"") + _TAKE


def _shed(kept: int) -> bytes:
    """Mark packets of flows whose hash is not below `kept`; falls through with all others. Jumps name their targets."""
    words: list[tuple[str, int, int, str, str]] = [  # label, code, k, if true, if false
        ("", _CONSTANT, 0, "", ""), ("", _STORE, 0, "", ""),
        ("", _LENGTH, 0, "", ""), ("", _AT_LEAST, 48, "", "end"),
        ("", _HALF, 12, "", ""), ("", _EQUAL, 0x86DD, "ip6", ""), ("", _EQUAL, 0x0800, "", "end"),
        ("", _BYTE, 14, "", ""), ("", _EQUAL, 0x45, "", "ip"),
        ("", _HALF, 20, "", ""), ("", _ANY_BIT, 0x3FFF, "ip", ""),
        ("", _BYTE, 23, "", ""), ("", _EQUAL, 6, "ports", ""), ("", _EQUAL, 17, "", "ip"),
        ("ports", _HALF, 34, "", ""), ("", _TAX, 0, "", ""), ("", _HALF, 36, "", ""), ("", _XOR_X, 0, "", ""), ("", _STORE, 0, "", ""),
        ("ip", _LOAD, 26, "", ""), ("", _TAX, 0, "", ""), ("", _LOAD, 30, "", ""), ("", _XOR_X, 0, "", ""), ("", _JUMP, 0, "hash", ""),
        ("ip6", _LENGTH, 0, "", ""), ("", _AT_LEAST, 58, "", "end"),
        ("", _BYTE, 20, "", ""), ("", _EQUAL, 6, "ports6", ""), ("", _EQUAL, 17, "", "addresses6"),
        ("ports6", _HALF, 54, "", ""), ("", _TAX, 0, "", ""), ("", _HALF, 56, "", ""), ("", _XOR_X, 0, "", ""), ("", _STORE, 0, "", ""),
        ("addresses6", _LOAD, 22, "", ""),
        *((("", code, k, "", "") for at in range(26, 54, 4) for code, k in ((_TAX, 0), (_LOAD, at), (_XOR_X, 0)))),
        ("hash", _RECALL_X, 0, "", ""), ("", _XOR_X, 0, "", ""), ("", _MULTIPLY, _SPREAD, "", ""), ("", _SHIFT, 16, "", ""),
        ("", _AT_LEAST, kept, "", "end"), ("", _RETURN, MARK_SHED, "", ""),
    ]  # fmt: skip
    at = {label: i for i, (label, *_) in enumerate(words) if label} | {"end": len(words)}
    out = b""
    for i, (_, code, k, yes, no) in enumerate(words):
        to_yes, to_no = (at[label] - i - 1 if label else 0 for label in (yes, no))
        out += struct.pack("=HBBI", code, 0, 0, to_yes) if code == _JUMP else struct.pack("=HBBI", code, to_yes, to_no, k)
    return out
