"""Records as they are, newest first: `tapmesh flows list`."""

from __future__ import annotations

from broker.core.flow_layout import END_NAMES
from broker.flows.answers.answer import Answer, Column, text
from broker.flows.answers.groups import shown
from broker.flows.answers.services import protocol_name
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period

_COLUMNS = (
    Column("last_ns", "last", "time"),
    Column("duration_ns", "duration", "duration"),
    text("protocol"),
    text("source"),
    text("destination"),
    Column("packets", "packets"),
    Column("packets_back", "back"),
    Column("bytes", "bytes", "bytes"),
    Column("bytes_back", "back", "bytes"),
    text("flags"),
    Column("rtt_us", "RTT", "micros"),
    text("input"),
    text("tunnel"),
    Column("vlan", "VLAN", "number"),
    text("end_reason", "end"),
    text("name"),
)
_LETTERS = "FSRPAUEC"
_ASKED = (
    "last_ns, last_ns - first_ns, protocol, version, source_high, source_low, source_port, destination_high, destination_low, "
    "destination_port, packets, packets_back, bytes, bytes_back, tcp_flags, tcp_flags_back, "
    "rtt_source_us::BIGINT + rtt_destination_us, input, tunnel, "
    "tunnel_id, vlan, end_reason, name"
)


def flags_shown(flags: int) -> str:
    """As nfdump and tcpdump have them: ``SAF``, in the order of the header's bits."""
    return "".join(letter for bit, letter in enumerate(_LETTERS) if flags >> bit & 1)


def listing(store: Store, period: Period, condition: str, limit: int) -> Answer:
    rows = store.run(
        f"SELECT {_ASKED} FROM {store.flows(period, condition)} ORDER BY last_ns DESC, node, run, lane, number DESC LIMIT {limit}"
    )
    made = []
    for last, duration, protocol, version, sh, sl, sp, dh, dl, dp, n, n_back, size, size_back, flags, flags_back, rtt, *rest in rows:
        input_, tunnel, tunnel_id, vlan, end, name = rest
        made.append(
            (
                *(last, duration, protocol_name(protocol)),
                *(_end(version, sh, sl, sp, protocol), _end(version, dh, dl, dp, protocol)),
                *(n, n_back, size, size_back, f"{flags_shown(flags)}/{flags_shown(flags_back)}" if protocol == 6 else "", rtt or None),
                *(input_, f"{tunnel} {tunnel_id}" if tunnel else "", vlan, END_NAMES.get(end, str(end)), name),
            )
        )
    return Answer(f"records, newest first, {period}", _COLUMNS, made)


def _end(version: int, high: int, low: int, port: int, protocol: int) -> str:
    address = shown(version, high, low)
    if protocol not in (6, 17, 132):
        return address
    return f"{address}:{port}" if version == 4 else f"[{address}]:{port}"
