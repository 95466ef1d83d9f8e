"""Records of a pcap file that lie in a block -> rows that point into them: walk and check. One call per read of the file."""

from __future__ import annotations

from broker.core.layout import MAX_FRAME_BYTES
from stages.capture import rows, walk
from stages.capture.rows import PACKET_BYTES, write_row
from stages.capture.walk import field
from stages.jit import kernel
from stages.memory import add64, load32, load64, load_be32, store64

_AT, _END, _NEED, _REASON, _VALUE = field("at"), field("end"), field("need"), field("reason"), field("value")
_N, _USED, _LOOKED = field("n_packets"), field("data_used"), field("looked")
_MAX_PACKETS, _DATA_BYTES = field("max_packets"), field("data_bytes")
_TS_LIMIT, _TS_NEXT, _INPUT, _BIG = field("ts_limit"), field("ts_next"), field("input"), field("big")
_HEADER_LEN, _FRACTION_NS, _ORDER, _SNAPLEN = field("header_len"), field("fraction_ns"), field("order"), field("snaplen")

_FULL, _NEED_BYTES, _PACED, _BAD, _BAD_CAPLEN = walk.FULL, walk.NEED, walk.PACED, walk.BAD, walk.REASON_CAPLEN
_WIRELEN_FIRST, _BY_SIZE, _NS, _MAX_LOOKED = walk.ORDER_WIRELEN_FIRST, walk.ORDER_BY_SIZE, walk.NS, walk.MAX_LOOKED
_CAPTURED, _CAPTURED_BYTES, _CUT, _OVERSIZE = rows.CAPTURED, rows.CAPTURED_BYTES, rows.CUT, rows.OVERSIZE


@kernel
def walk_records(walk_at: int, packets_at: int, data_at: int, counters_at: int) -> int:
    """Write a row for each record in the block's data until something stops it: FULL, NEED, PACED or BAD.

    | address | what lies there |
    |---|---|
    | walk_at | Walk, *written*: at, need, reason, value, n_packets, data_used, looked, ts_next |
    | packets_at | PACKET[max_packets], *written* from row n_packets on |
    | data_at | uint8[data_bytes]: from at to end the bytes of the file |
    | counters_at | int64[N_COUNTERS], *added to* |

    A record: seconds, fraction, caplen, wirelen (32 bits each, in the file's order), then caplen bytes. As libpcap does, no more than the
    file's snapshot length is given of a record that stores more (sf-pcap.c); such are counted as cut.
    """
    at, end = load64(walk_at + _AT), load64(walk_at + _END)
    n, used, looked = load64(walk_at + _N), load64(walk_at + _USED), load64(walk_at + _LOOKED)
    max_packets, data_bytes = load64(walk_at + _MAX_PACKETS), load64(walk_at + _DATA_BYTES)
    ts_limit, slot, big = load64(walk_at + _TS_LIMIT), load64(walk_at + _INPUT), load64(walk_at + _BIG)
    header_len, fraction_ns = load64(walk_at + _HEADER_LEN), load64(walk_at + _FRACTION_NS)
    order, snaplen = load64(walk_at + _ORDER), load64(walk_at + _SNAPLEN)
    first, wire_bytes, cut, oversize = n, 0, 0, 0
    status = _FULL
    while n < max_packets and looked < _MAX_LOOKED:
        if end - at < header_len:
            store64(walk_at + _NEED, header_len)
            status = _NEED_BYTES
            break
        p = data_at + at
        if big:
            seconds, fraction, caplen, wirelen = load_be32(p), load_be32(p + 4), load_be32(p + 8), load_be32(p + 12)
        else:
            seconds, fraction, caplen, wirelen = load32(p), load32(p + 4), load32(p + 8), load32(p + 12)
        if order == _WIRELEN_FIRST or (order == _BY_SIZE and caplen > wirelen):
            caplen, wirelen = wirelen, caplen
        if caplen > MAX_FRAME_BYTES:
            store64(walk_at + _REASON, _BAD_CAPLEN)
            store64(walk_at + _VALUE, caplen)
            status = _BAD
            break
        if end - at < header_len + caplen:
            store64(walk_at + _NEED, header_len + caplen)
            status = _NEED_BYTES
            break
        ts_ns = seconds * _NS + fraction * fraction_ns
        if ts_ns > ts_limit:
            store64(walk_at + _TS_NEXT, ts_ns)
            status = _PACED
            break
        stored = min(caplen, snaplen)
        if at + header_len + stored > data_bytes:
            oversize += 1
        else:
            write_row(packets_at + n * PACKET_BYTES, ts_ns, at + header_len, stored, wirelen, slot, 0)
            used = at + header_len + stored
            n += 1
            wire_bytes += wirelen
            cut += int(stored < caplen)
        looked += 1
        at += header_len + caplen
    store64(walk_at + _AT, at)
    store64(walk_at + _N, n)
    store64(walk_at + _USED, used)
    store64(walk_at + _LOOKED, looked)
    add64(counters_at + _CAPTURED + 8 * slot, n - first)
    add64(counters_at + _CAPTURED_BYTES + 8 * slot, wire_bytes)
    add64(counters_at + _CUT + 8 * slot, cut)
    add64(counters_at + _OVERSIZE + 8 * slot, oversize)
    return status
