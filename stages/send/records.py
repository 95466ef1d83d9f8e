"""Frames as the records of a capture file: pcap (draft-ietf-opsawg-pcap) and pcapng enhanced packet blocks (draft-ietf-opsawg-pcapng 4.3).

Both orders of bytes are allowed; ours is little-endian. Frames have been checked by `kernels.sort_frames`.

| written | dtype[shape] | |
|---|---|---|
| buffer | uint8[buffer_bytes + SLACK] | the records, one behind the other |
| ends | int64[n] | where the record of each frame ends in it |
| lens | int64[n] | bytes of the frames so far: outer headers and packets |
"""

from __future__ import annotations

from broker.core import layout
from stages.jit import kernel
from stages.memory import copy, load16, load32, load64, store32, store64
from stages.send.kernels import offset_of

PCAP_AROUND = 16  # seconds, nanoseconds, captured length, original length
PCAPNG_AROUND = 32  # type, length, interface, time (2), captured length, original length; and the length once more

_FRAME_BYTES, _PACKET_BYTES = layout.FRAME.itemsize, layout.PACKET.itemsize
_TS_NS, _INPUT = offset_of(layout.PACKET, "ts_ns"), offset_of(layout.PACKET, "input")
_PACKET, _HEADER_LEN, _HEADER_AT, _DATA_AT, _DATA_LEN, _WIRELEN = (
    offset_of(layout.FRAME, field) for field in ("packet", "header_len", "header_at", "data_at", "data_len", "wirelen")
)
_LAST_INPUT = layout.INPUTS - 1
_NS = 1_000_000_000
_LINE = layout.LINE
_ENHANCED_PACKET = 6


@kernel
def records_bytes(frames_at: int, rows_at: int, n_rows: int, around: int, align: int) -> int:
    """How long the records of these frames are together; `align`: the multiple to which frames are padded."""
    total = 0
    for k in range(n_rows):
        frame = frames_at + load32(rows_at + 4 * k) * _FRAME_BYTES
        total += (load16(frame + _HEADER_LEN) + load32(frame + _DATA_LEN) + align - 1) // align * align + around
    return total


@kernel
def _copy_frame(to: int, frame: int, headers_at: int, data_at: int) -> None:
    header_len = load16(frame + _HEADER_LEN)
    if header_len > _LINE:
        copy(to, headers_at + load32(frame + _HEADER_AT), header_len)
    elif header_len > 0:
        copy(to, headers_at + load32(frame + _HEADER_AT), _LINE)  # a constant length is one instruction
    copy(to + header_len, data_at + load32(frame + _DATA_AT), load32(frame + _DATA_LEN))


@kernel
def fill_pcap(
    frames_at: int,
    packets_at: int,
    headers_at: int,
    data_at: int,
    rows_at: int,
    first: int,
    n_rows: int,
    buffer_at: int,
    buffer_bytes: int,
    ends_at: int,
    lens_at: int,
) -> int:
    """Lay the frames from row `first` on into the buffer as pcap records, as many as fit; returns the row after the last of them.

    Times before 1970 and after 2106 do not fit the format; their seconds wrap.
    """
    used = total = 0
    k = first
    while k < n_rows:
        frame = frames_at + load32(rows_at + 4 * k) * _FRAME_BYTES
        length = load16(frame + _HEADER_LEN) + load32(frame + _DATA_LEN)
        if used + PCAP_AROUND + length > buffer_bytes:
            break
        ts_ns = load64(packets_at + load32(frame + _PACKET) * _PACKET_BYTES + _TS_NS)
        seconds = ts_ns // _NS
        record = buffer_at + used
        store32(record, seconds)
        store32(record + 4, ts_ns - seconds * _NS)
        store32(record + 8, length)
        store32(record + 12, load32(frame + _WIRELEN))
        _copy_frame(record + PCAP_AROUND, frame, headers_at, data_at)
        used += PCAP_AROUND + length
        total += length
        store64(ends_at + 8 * (k - first), used)
        store64(lens_at + 8 * (k - first), total)
        k += 1
    return k


@kernel
def fill_pcapng(
    frames_at: int,
    packets_at: int,
    headers_at: int,
    data_at: int,
    rows_at: int,
    first: int,
    n_rows: int,
    buffer_at: int,
    buffer_bytes: int,
    ends_at: int,
    lens_at: int,
    interfaces_at: int,
) -> int:
    """The same as pcapng enhanced packet blocks. `interfaces`, int64[INPUTS]: slot of an input -> number of its interface in the file."""
    used = total = 0
    k = first
    while k < n_rows:
        frame = frames_at + load32(rows_at + 4 * k) * _FRAME_BYTES
        length = load16(frame + _HEADER_LEN) + load32(frame + _DATA_LEN)
        size = PCAPNG_AROUND + (length + 3) // 4 * 4
        if used + size > buffer_bytes:
            break
        packet = packets_at + load32(frame + _PACKET) * _PACKET_BYTES
        ts_ns = load64(packet + _TS_NS)
        record = buffer_at + used
        store32(record, _ENHANCED_PACKET)
        store32(record + 4, size)
        store32(record + 8, load64(interfaces_at + 8 * min(load16(packet + _INPUT), _LAST_INPUT)))
        store32(record + 12, ts_ns >> 32)
        store32(record + 16, ts_ns)
        store32(record + 20, length)
        store32(record + size - 8, 0)  # the padding; of an empty frame it is the field that follows, so it comes first
        store32(record + 24, load32(frame + _WIRELEN))
        _copy_frame(record + PCAPNG_AROUND - 4, frame, headers_at, data_at)
        store32(record + size - 4, size)
        used += size
        total += length
        store64(ends_at + 8 * (k - first), used)
        store64(lens_at + 8 * (k - first), total)
        k += 1
    return k
