"""Leaving out what the configuration does not want to leave the agent: `flows.drop`."""

from __future__ import annotations

from broker.core import flow_layout as layout
from broker.core.flow_ring import Rows

_COLUMNS = {
    "names": ("named", "name", "name_len", "dns_type"),
    "ports": ("source_port", "destination_port", "icmp"),
    "vlan": ("vlan",),
    "tunnel": ("tunnel", "tunnel_id"),
    "tos": ("tos",),
    "ttl": ("ttl",),
    "tcp_flags": ("tcp_flags",),
    "rtt": ("rtt_us",),
    "retransmitted": ("retransmitted",),
    "sizes": ("min_bytes", "max_bytes"),
}
"""By attribute (`broker.core.flow_model.ATTRIBUTES`): what is emptied."""
_DNS_CODE_NONE = 255


def minimise(rows: Rows, drop: tuple[str, ...]) -> None:
    """Empty those attributes in FLOW rows, in place."""
    for attribute in drop:
        for column in _COLUMNS[attribute]:
            rows[column] = 0 if rows.dtype[column].kind != "S" else b""
    if "names" in drop:
        rows["dns_code"] = _DNS_CODE_NONE
        rows["flags"] &= 0xFF ^ layout.FLOW_NAME_CUT
    if "tcp_flags" in drop:
        rows["flags"] &= 0xFF ^ layout.FLOW_BEGAN
