"""Writing one PACKET row: what all three readers' kernels do."""

from __future__ import annotations

from broker.core.layout import PACKET
from broker.core.metrics import index
from stages.jit import kernel
from stages.memory import store16, store32, store64

assert PACKET.fields is not None
PACKET_BYTES = PACKET.itemsize
_TS, _DATA_AT, _CAPLEN = PACKET.fields["ts_ns"][1], PACKET.fields["data_at"][1], PACKET.fields["caplen"][1]
_WIRELEN, _INPUT, _FLAGS = PACKET.fields["wirelen"][1], PACKET.fields["input"][1], PACKET.fields["flags"][1]

CAPTURED, CAPTURED_BYTES = 8 * index("capture", "captured_packets"), 8 * index("capture", "captured_bytes")
RESTORED, CUT = 8 * index("capture", "tags_restored"), 8 * index("capture", "cut_packets")
OVERSIZE, MALFORMED = 8 * index("capture", "dropped_oversize"), 8 * index("capture", "dropped_malformed")
LINKTYPE = 8 * index("capture", "dropped_linktype")
"""Byte offsets of slot 0 in a row of counters."""


@kernel
def write_row(row_at: int, ts_ns: int, data_at: int, caplen: int, wirelen: int, slot: int, flags: int) -> None:
    """One PACKET. `data_at` is an offset in the block's data."""
    store64(row_at + _TS, ts_ns)
    store32(row_at + _DATA_AT, data_at)
    store32(row_at + _CAPLEN, caplen)
    store32(row_at + _WIRELEN, wirelen)
    store16(row_at + _INPUT, slot)
    store16(row_at + _FLAGS, flags)
