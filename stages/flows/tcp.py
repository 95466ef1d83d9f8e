"""What TCP segments (RFC 9293) tell of their connection: flags, the round trips of the handshake, repetitions, the end.

| kernel | does |
|---|---|
| payload_of_tcp | offset of the payload in the frame; 0: the header contradicts itself |
| track_tcp | flags, RTT, expected sequence number and state of an entry |

The round trip to the destination is the time from the SYN to the SYN with ACK, that to the source from there to the first ACK: each only
if what it begins with came once (which of two was answered nobody can tell). A segment with payload is repeated if it ends before, or
where, its direction has been already; a keep-alive (RFC 9293 section 3.8.4: at most one byte, right before what comes next) is not.
"""

from __future__ import annotations

from stages.flows.lifecycle import (
    FIRST,
    NEXT,
    RETRANSMITTED,
    RTT,
    RTT_ANSWERED,
    RTT_DONE,
    RTT_HALF,
    RTT_NONE,
    RTT_SPOILT,
    RTT_STATE,
    RTT_SYN,
    STATE_AT,
    STATE_FIN,
    STATE_KNOWN,
    STATE_RST,
    TCP_FLAGS,
)
from stages.flows.seen import AT, FLAGS, L4, PAYLOAD_END, TS
from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, load_be32, store8, store16, store32

FIN, SYN, RST, ACK = 1, 2, 4, 16
_SEQUENCE, _OFFSET, _TCP_BYTES = 4, 12, 20
_MASK = 0xFFFFFFFF
_HALF = 1 << 31
_MOST = 0xFFFF


@kernel
def payload_of_tcp(seen: int) -> int:
    l4 = load32(seen + L4)
    n_bytes = 4 * (load8(load64(seen + AT) + l4 + _OFFSET) >> 4)
    return l4 + n_bytes if n_bytes >= _TCP_BYTES and l4 + n_bytes <= load32(seen + PAYLOAD_END) else 0


@kernel
def _passed_us(entry: int, since_us: int, ts_us: int) -> int:
    """At least 1, also where the clock has gone back."""
    passed = (ts_us - since_us) & _MASK
    return passed if 0 < passed < _HALF and ts_us != load64(entry + FIRST) // 1000 & _MASK else 1


@kernel
def _time_handshake(entry: int, state: int, flags: int, way: int, ts_us: int) -> int:
    """The RTT_* that follows."""
    rtt = state & RTT_STATE
    if flags & SYN and way == 0:
        if rtt == RTT_NONE and flags & ACK == 0:
            store32(entry + RTT + 4, ts_us)
            return RTT_SYN
        return RTT_SPOILT if rtt == RTT_SYN else rtt
    if flags & SYN:
        if rtt == RTT_SYN and flags & ACK:
            store32(entry + RTT + 4, _passed_us(entry, load32(entry + RTT + 4), ts_us))
            store32(entry + RTT, ts_us)
            return RTT_ANSWERED
        return RTT_HALF if rtt == RTT_ANSWERED else rtt
    if rtt == RTT_ANSWERED and way == 0 and flags & ACK:
        store32(entry + RTT, _passed_us(entry, load32(entry + RTT), ts_us))
        return RTT_DONE
    return rtt


@kernel
def _follow_sequence(entry: int, state: int, sequence: int, n_payload: int, n_numbers: int, way: int) -> None:
    """`n_numbers`: of the sequence space: the payload, SYN and FIN."""
    at, end = entry + NEXT + 4 * way, (sequence + n_numbers) & _MASK
    if state & STATE_KNOWN << way == 0:
        store32(at, end)
        return
    next_ = load32(at)
    ahead = (end - next_) & _MASK
    if 0 < ahead < _HALF:
        store32(at, end)
    elif n_payload > 0 and not (n_payload == 1 and sequence == (next_ - 1) & _MASK):
        n = load16(entry + RETRANSMITTED + 2 * way)
        store16(entry + RETRANSMITTED + 2 * way, min(n + 1, _MOST))


@kernel
def track_tcp(entry: int, seen: int, way: int, payload: int) -> None:
    """`payload`: from `payload_of_tcp`."""
    flags, state = load16(seen + FLAGS), load16(entry + STATE_AT)
    store8(entry + TCP_FLAGS + way, load8(entry + TCP_FLAGS + way) | flags)
    rtt = state & RTT_STATE
    if rtt < RTT_SPOILT or rtt == RTT_ANSWERED:
        rtt = _time_handshake(entry, state, flags, way, load64(seen + TS) // 1000 & _MASK)
    if payload > 0:
        n_payload = load32(seen + PAYLOAD_END) - payload
        sequence = load_be32(load64(seen + AT) + load32(seen + L4) + _SEQUENCE)
        n_numbers = n_payload + (1 if flags & SYN else 0) + (1 if flags & FIN else 0)
        _follow_sequence(entry, state, sequence, n_payload, n_numbers, way)
        state |= STATE_KNOWN << way
    if flags & FIN:
        state |= STATE_FIN << way
    if flags & RST:
        state |= STATE_RST
    store16(entry + STATE_AT, state & ~RTT_STATE | rtt)
