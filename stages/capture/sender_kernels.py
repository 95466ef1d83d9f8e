"""Which sender a packet is of, and what its sequence number says: lost, late, repeated, begun anew (`broker/core/senders.py`).

| number, from the next one expected | is | counts |
|---|---|---|
| 0 | in order | |
| up to MAX_GAP above | behind a gap | the gap as lost |
| in the window below, not seen | late | reordered, and no longer lost |
| up to MAX_EARLY below the first that came | late, too | reordered; between it and the first: lost |
| in the window below, seen | repeated | repeated; after SILENCE_NS without a packet: the sender has begun anew |
| anything else | stray | stray; if the next number follows, or after SILENCE_NS: the sender has begun anew, and it is no stray |

Numbers have 32 bits and wrap (RFC 2890 section 2.2). A single number out of line changes nothing (as in RFC 3550, appendix A.1).
What was lost before the first packet that came, or while the sender began anew, is not known.
"""

from __future__ import annotations

import numpy as np

from broker.core.metrics import index
from broker.core.senders import KIND_AT, MAX_SENDERS, NO_DELAY, NOTE, SENDER, SENDERS, WINDOW
from stages.jit import kernel
from stages.memory import add64, load64, mix, store64, store_release
from stages.wire.decap import NONE

MAX_GAP = 1 << 24
MAX_EARLY = 1024  # a block of a sender whose workers overtake each other
SILENCE_NS = 500_000_000  # a broker takes longer to start, a worker of it much less
_MAX_PROBES = 16

_BITS32 = 0xFFFF_FFFF
_SENDER_BYTES, _NOTE_BYTES = SENDER.itemsize, NOTE.itemsize


def _offset(dtype: np.dtype[np.void], name: str) -> int:
    assert dtype.fields is not None
    return int(dtype.fields[name][1])


_N_NOTES, _N_FOLDED, _MAX_NOTES = (_offset(SENDERS, name) for name in ("n_notes", "n_folded", "max_packets"))
_ADDRESS, _SESSION, _USED = _offset(SENDER, "address"), _offset(SENDER, "session"), _offset(SENDER, "used")
_RECEIVED, _RECEIVED_BYTES, _NUMBERED = _offset(SENDER, "received"), _offset(SENDER, "received_bytes"), _offset(SENDER, "numbered")
_LOST, _REORDERED, _REPEATED = _offset(SENDER, "lost"), _offset(SENDER, "reordered"), _offset(SENDER, "repeated")
_STRAY, _RESTARTS, _NEXT, _SPAN = _offset(SENDER, "stray"), _offset(SENDER, "restarts"), _offset(SENDER, "next"), _offset(SENDER, "span")
_CANDIDATE, _FIRST_NS, _LAST_NS = _offset(SENDER, "candidate"), _offset(SENDER, "first_ns"), _offset(SENDER, "last_ns")
_N_DELAYS, _DELAY_SUM = _offset(SENDER, "n_delays"), _offset(SENDER, "delay_sum_ns")
_DELAY_MIN, _DELAY_MAX, _SEEN = _offset(SENDER, "delay_min_ns"), _offset(SENDER, "delay_max_ns"), _offset(SENDER, "seen")
_NOTE_SENDER, _NOTE_SEQUENCE, _NOTE_TS = _offset(NOTE, "sender"), _offset(NOTE, "sequence"), _offset(NOTE, "ts_ns")
_NOTE_WIRELEN, _NOTE_DELAY = _offset(NOTE, "wirelen"), _offset(NOTE, "delay_ns")

_LIVE_LOST, _LIVE_REORDERED = 8 * index("capture", "lost_packets"), 8 * index("capture", "reordered_packets")
_LIVE_REPEATED, _LIVE_RESTARTS = 8 * index("capture", "repeated_packets"), 8 * index("capture", "sender_restarts")
_LIVE_UNTRACKED = 8 * index("capture", "untracked_packets")


@kernel
def session_of(kind: int, number: int) -> int:
    """`number` NONE: it has none."""
    return kind << KIND_AT | number + 1


@kernel
def find_sender(senders: int, address: int, session: int) -> int:
    """The row of a sender; or -1 - the free row for it; or -1 - MAX_SENDERS: there is no room. `address`: where its 16 bytes lie."""
    high, low = load64(address), load64(address + 8)
    slot = mix(high ^ session * 0x9E37_79B9, low ^ 0x5851_F42D_4C95_7F2D)
    for probe in range(_MAX_PROBES):
        at = (slot + probe) & (MAX_SENDERS - 1)
        row = senders + at * _SENDER_BYTES
        if load64(row + _USED) == 0:
            return -1 - at
        if load64(row + _ADDRESS) == high and load64(row + _ADDRESS + 8) == low and load64(row + _SESSION) == session:
            return at
    return -1 - MAX_SENDERS


@kernel
def add_sender(senders: int, at: int, address: int, session: int) -> None:
    row = senders + at * _SENDER_BYTES
    store64(row + _ADDRESS, load64(address))
    store64(row + _ADDRESS + 8, load64(address + 8))
    store64(row + _SESSION, session)
    store64(row + _NEXT, NONE)
    store64(row + _CANDIDATE, NONE)
    store_release(row + _USED, 1)


@kernel
def write_note(note: int, sender: int, sequence: int, ts_ns: int, wirelen: int, delay_ns: int) -> None:
    store64(note + _NOTE_SENDER, sender)
    store64(note + _NOTE_SEQUENCE, sequence)
    store64(note + _NOTE_TS, ts_ns)
    store64(note + _NOTE_WIRELEN, wirelen)
    store64(note + _NOTE_DELAY, delay_ns)


@kernel
def _was_seen(row: int, sequence: int) -> int:
    return load64(row + _SEEN + 8 * ((sequence & WINDOW - 1) >> 6)) >> (sequence & 63) & 1


@kernel
def _mark(row: int, sequence: int, bit: int) -> None:
    word = row + _SEEN + 8 * ((sequence & WINDOW - 1) >> 6)
    store64(word, load64(word) & ~(1 << (sequence & 63)) | bit << (sequence & 63))


@kernel
def _begin(row: int, first: int, n: int) -> None:
    """`n` numbers from `first` on have come, and nothing is known of others."""
    for word in range(WINDOW // 64):
        store64(row + _SEEN + 8 * word, 0)
    for i in range(n):
        _mark(row, first + i, 1)
    store64(row + _NEXT, (first + n) & _BITS32)
    store64(row + _SPAN, n)
    store64(row + _CANDIDATE, NONE)


@kernel
def _begin_anew(row: int, sequence: int, live: int) -> None:
    follows = load64(row + _CANDIDATE) == sequence
    if follows:
        add64(row + _STRAY, -1)
    _begin(row, sequence - 1 if follows else sequence, 2 if follows else 1)
    add64(row + _RESTARTS, 1)
    add64(live + _LIVE_RESTARTS, 1)


@kernel
def _lose(row: int, n: int, live: int) -> None:
    add64(row + _LOST, n)
    add64(live + _LIVE_LOST, n)


@kernel
def _late(row: int, sequence: int, live: int) -> None:
    add64(row + _REORDERED, 1)
    add64(live + _LIVE_REORDERED, 1)
    _mark(row, sequence, 1)


@kernel
def follow_number(row: int, sequence: int, ts_ns: int, live: int) -> None:
    """Count one number of the sender at `row`. `live`: the live counters of its input."""
    following = load64(row + _NEXT)
    if following == NONE:
        _begin(row, sequence, 1)
        return
    ahead = (sequence - following) & _BITS32
    if ahead > _BITS32 >> 1:
        ahead -= _BITS32 + 1
    span, silent = load64(row + _SPAN), ts_ns - load64(row + _LAST_NS) >= SILENCE_NS
    if 0 <= ahead <= MAX_GAP:
        for skipped in range(min(ahead, WINDOW)):
            _mark(row, sequence - 1 - skipped, 0)
        _mark(row, sequence, 1)
        store64(row + _NEXT, (sequence + 1) & _BITS32)
        store64(row + _SPAN, min(span + ahead + 1, WINDOW))
        if ahead:
            _lose(row, ahead, live)
    elif -span <= ahead < 0 and _was_seen(row, sequence) == 0:
        _lose(row, -1, live)
        _late(row, sequence, live)
    elif -span <= ahead < 0 and not silent:
        add64(row + _REPEATED, 1)
        add64(live + _LIVE_REPEATED, 1)
    elif -span - MAX_EARLY <= ahead < -span and -ahead <= WINDOW and not silent:
        _lose(row, -ahead - span - 1, live)
        _late(row, sequence, live)
        store64(row + _SPAN, -ahead)
    elif silent or load64(row + _CANDIDATE) == sequence:
        _begin_anew(row, sequence, live)
    else:
        add64(row + _STRAY, 1)
        store64(row + _CANDIDATE, (sequence + 1) & _BITS32)


@kernel
def _follow_delay(row: int, delay_ns: int) -> None:
    if load64(row + _N_DELAYS) == 0 or delay_ns < load64(row + _DELAY_MIN):
        store64(row + _DELAY_MIN, delay_ns)
    if load64(row + _N_DELAYS) == 0 or delay_ns > load64(row + _DELAY_MAX):
        store64(row + _DELAY_MAX, delay_ns)
    add64(row + _DELAY_SUM, delay_ns)
    add64(row + _N_DELAYS, 1)


@kernel
def fold_notes(head: int, senders: int, notes: int, live: int) -> None:
    """The notes that are not folded yet, into the table: their block has been published. `live`: counters of the input's slot."""
    n_notes = min(load64(head + _N_NOTES), load64(head + _MAX_NOTES))
    for i in range(max(load64(head + _N_FOLDED), 0), n_notes):
        note = notes + i * _NOTE_BYTES
        sender, sequence, ts_ns = load64(note + _NOTE_SENDER), load64(note + _NOTE_SEQUENCE), load64(note + _NOTE_TS)
        if sender < 0 or sender >= MAX_SENDERS:
            add64(live + _LIVE_UNTRACKED, 1)
        else:
            row = senders + sender * _SENDER_BYTES
            if load64(row + _RECEIVED) == 0:
                store64(row + _FIRST_NS, ts_ns)
            add64(row + _RECEIVED, 1)
            add64(row + _RECEIVED_BYTES, load64(note + _NOTE_WIRELEN))
            if sequence != NONE:
                add64(row + _NUMBERED, 1)
                follow_number(row, sequence, ts_ns, live)
            if load64(note + _NOTE_DELAY) != NO_DELAY:
                _follow_delay(row, load64(note + _NOTE_DELAY))
            store64(row + _LAST_NS, ts_ns)
        store_release(head + _N_FOLDED, i + 1)
