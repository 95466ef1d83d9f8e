"""What is done once a block, and between blocks: transactions, see table.py.

| kernel | does |
|---|---|
| publish_records | what is committed is the exporter's |
| do_block | a block: what was before it is committed; then a transaction of its own |
| do_tick | between blocks: a transaction that is committed at once |
| do_some | the same at the end: ends some of the flows that are left |
"""

from __future__ import annotations

from broker.core.flow_layout import FLOWS, STATE, SWEEP_MOST, TRANSACTION, TRANSACTION_TICK
from broker.core.metrics import index
from stages.flows.lifecycle import end_some, sweep
from stages.flows.meter import meter_block
from stages.flows.table import TABLE
from stages.jit import kernel
from stages.memory import copy, load64, store64, store_release

assert FLOWS.fields is not None
assert TRANSACTION.fields is not None
assert STATE.fields is not None
assert TABLE.fields is not None
_HEADER_AT, _STATE_AT, _MAX_FLOWS = (TABLE.fields[name][1] for name in ("header_at", "state_at", "max_flows"))
_IDLE_NS = TABLE.fields["idle_ns"][1]
_NAMES_TAIL, _NAMES_LIMIT = TABLE.fields["names_tail"][1], TABLE.fields["names_limit"][1]
_TRANSACTION, _SAVED, _PUBLISHED = (FLOWS.fields[name][1] for name in ("transaction", "saved", "published"))
_OPEN, _NUMBER, _UNDONE = (_TRANSACTION + TRANSACTION.fields[name][1] for name in ("open", "number", "n_undo"))
_HEAD, _NOW, _SWEPT, _N_FLOWS, _NAMES_IN_USE, _COUNTS = (
    STATE.fields[name][1] for name in ("head", "now_ns", "swept_ns", "n_flows", "names_in_use", "records_idle")
)
_STATE_BYTES = STATE.itemsize
_LIVE_AT = TABLE.fields["live_at"][1]
_LIVE_FLOWS, _LIVE_NAMES, _LIVE_COUNTS = (8 * index("flows", name) for name in ("live_flows", "live_names", "records_idle"))
_NUMBERS = (1 << 32) - 1
_TURN_NS = 1_000_000_000
_LEAST = 64
_NEVER = 1 << 62


@kernel
def _begin(table: int, opened_for: int) -> None:
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
def show(table: int) -> None:
    """What has happened so far, as counters that others see."""
    state, live = load64(table + _STATE_AT), load64(table + _LIVE_AT)
    store64(live + _LIVE_FLOWS, load64(state + _N_FLOWS))
    store64(live + _LIVE_NAMES, load64(state + _NAMES_IN_USE))
    copy(live + _LIVE_COUNTS, state + _COUNTS, _STATE_BYTES - _COUNTS)


@kernel
def _commit(table: int) -> None:
    store_release(load64(table + _HEADER_AT) + _OPEN, 0)
    publish_records(table)
    show(table)


@kernel
def _sweep_due(table: int, clock_ns: int) -> None:
    """Ends flows that are over, so many that the whole table is looked at once a second."""
    state, max_flows = load64(table + _STATE_AT), load64(table + _MAX_FLOWS)
    if clock_ns != 0:
        store64(state + _NOW, clock_ns)
    now, swept = load64(state + _NOW), load64(state + _SWEPT)
    passed = now - swept
    if passed < 0 or passed > _TURN_NS:
        passed = _TURN_NS
    n = passed * max_flows // _TURN_NS
    if n >= _LEAST or passed == _TURN_NS:
        # Without a clock it may be the next file that was captured before.
        sweep(table, n, SWEEP_MOST, load64(table + _IDLE_NS) if clock_ns != 0 else _NEVER)
        store64(state + _SWEPT, now)


@kernel
def do_block(
    table: int, seq: int, clock_ns: int, block: int, max_packets: int, packets: int, verdicts: int, data: int, data_bytes: int
) -> int:
    """Returns how many packets it has looked at. `clock_ns`: the time, or 0: that of the packets."""
    publish_records(table)
    _begin(table, seq + 1)
    n = meter_block(table, block, max_packets, packets, verdicts, data, data_bytes)
    _sweep_due(table, clock_ns)
    show(table)
    return n


@kernel
def do_tick(table: int, clock_ns: int) -> None:
    _begin(table, TRANSACTION_TICK)
    _sweep_due(table, clock_ns)
    _commit(table)


@kernel
def do_some(table: int, most: int) -> int:
    """Returns how many flows are left."""
    _begin(table, TRANSACTION_TICK)
    left = end_some(table, most)
    _commit(table)
    return left
