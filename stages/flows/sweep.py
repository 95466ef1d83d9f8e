"""What is done once a block, and between blocks.

| kernel | does |
|---|---|
| begin | opens a transaction, see table.py |
| commit | of a transaction between blocks; its records are the exporter's |
| publish_records | what is committed is the exporter's |
| sweep_due | ends flows that are over, so many that the whole table is looked at once a second |
"""

from __future__ import annotations

from broker.core.flow_layout import FLOWS, STATE, SWEEP_MOST, TRANSACTION
from stages.flows.lifecycle import sweep
from stages.flows.table import TABLE
from stages.jit import kernel
from stages.memory import copy, load64, store64, store_release

assert FLOWS.fields is not None
assert TRANSACTION.fields is not None
assert STATE.fields is not None
assert TABLE.fields is not None
_HEADER_AT, _STATE_AT, _MAX_FLOWS = (TABLE.fields[name][1] for name in ("header_at", "state_at", "max_flows"))
_NAMES_TAIL, _NAMES_LIMIT = TABLE.fields["names_tail"][1], TABLE.fields["names_limit"][1]
_TRANSACTION, _SAVED, _PUBLISHED = (FLOWS.fields[name][1] for name in ("transaction", "saved", "published"))
_OPEN, _NUMBER, _UNDONE = (_TRANSACTION + TRANSACTION.fields[name][1] for name in ("open", "number", "n_undo"))
_HEAD, _NOW, _SWEPT = (STATE.fields[name][1] for name in ("head", "now_ns", "swept_ns"))
_STATE_BYTES = STATE.itemsize
_NUMBERS = (1 << 32) - 1
_TURN_NS = 1_000_000_000
_LEAST = 64


@kernel
def begin(table: int, opened_for: int) -> None:
    """`opened_for`: seq + 1 of a block, or TRANSACTION_TICK."""
    header = load64(table + _HEADER_AT)
    copy(header + _SAVED, load64(table + _STATE_AT), _STATE_BYTES)
    number = load64(header + _NUMBER)
    store64(header + _NUMBER, 1 if number >= _NUMBERS else number + 1)
    store64(header + _UNDONE, 0)
    store_release(header + _OPEN, opened_for)
    store64(table + _NAMES_LIMIT, load64(table + _NAMES_TAIL))


@kernel
def publish_records(table: int) -> None:
    store_release(load64(table + _HEADER_AT) + _PUBLISHED, load64(load64(table + _STATE_AT) + _HEAD))


@kernel
def commit(table: int) -> None:
    store_release(load64(table + _HEADER_AT) + _OPEN, 0)
    publish_records(table)


@kernel
def sweep_due(table: int, clock_ns: int) -> None:
    """`clock_ns`: the time, or 0: that of the packets."""
    state, max_flows = load64(table + _STATE_AT), load64(table + _MAX_FLOWS)
    if clock_ns != 0:
        store64(state + _NOW, clock_ns)
    now, swept = load64(state + _NOW), load64(state + _SWEPT)
    passed = now - swept
    if passed < 0 or passed > _TURN_NS:
        passed = _TURN_NS
    n = passed * max_flows // _TURN_NS
    if n >= _LEAST or passed == _TURN_NS:
        sweep(table, n, SWEEP_MOST)
        store64(state + _SWEPT, now)
