"""One JSON object a line, with the names that Suricata's EVE has for flows where it has one, and ECS's otherwise.

What is not there is left out: no VLAN, no tunnel, no TCP, no name, unsampled. Times are UTC to the nanosecond; `timestamp` is the flow's
last packet. The lines are made from templates: an encoder that looks at each value takes several times as long.
"""

from __future__ import annotations

import json
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

import numpy as np

from broker.core import flow_layout as layout
from broker.core.flow_ring import Rows
from broker.flows.export.community_id import community_ids
from broker.flows.export.messages import ExportContext, Message

PIECE_BYTES = 65_536
_TCP, _ICMP = 6, (1, 58)
_PROTOCOLS = {
    1: "ICMP",
    2: "IGMP",
    6: "TCP",
    17: "UDP",
    41: "IPv6",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "IPv6-ICMP",
    89: "OSPF",
    132: "SCTP",
}
_PORTS = frozenset((6, 17, 132))
_NS = 1_000_000_000
_NO_CODE = 255
_TUNNELS, _REASONS = layout.TUNNEL_NAMES, layout.END_NAMES
_READ = (
    "first_ns", "last_ns", "bytes", "packets", "number", "source_port", "destination_port", "icmp", "vlan", "tunnel_id",
    "min_bytes", "max_bytes", "rtt_us", "retransmitted", "one_in", "input", "lane", "version", "protocol", "tcp_flags", "tos", "ttl", "end",
    "tunnel", "flags", "named", "name_len", "dns_type", "dns_code", "name",
)  # fmt: skip


def _flat() -> np.dtype[np.void]:
    """FLOW with a name for each half of a pair: `tolist` makes Python's numbers of those only."""
    names, formats, offsets = [], [], []
    fields: Any = layout.FLOW.fields
    for name in _READ:
        field, offset = fields[name][:2]
        for n in range(field.shape[0] if field.shape else 1):
            names.append(f"{name}{n}")
            formats.append(field.base)
            offsets.append(offset + n * field.base.itemsize)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": layout.FLOW.itemsize})


_FLAT = _flat()


class JsonLines:
    per_session = False

    def __init__(self, context: ExportContext) -> None:
        self._context = context
        self._node = json.dumps(context.node)
        self._inputs: dict[int, str] = {}

    def encode(self, rows: Rows, most_bytes: int, now_ns: int) -> tuple[list[Message], Rows]:  # noqa: ARG002 - other formats need the time
        if not len(rows):
            return [], rows
        lines = self._lines(rows)
        packets, octets = rows["packets"].sum(axis=1), rows["bytes"].sum(axis=1)
        made = []
        first = 0
        ends = np.cumsum([len(line) for line in lines])
        while first < len(lines):
            begun = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, begun + min(most_bytes, PIECE_BYTES), side="right")))
            sums = (last - first, int(packets[first:last].sum()), int(octets[first:last].sum()))
            made.append(Message(memoryview("".join(lines[first:last]).encode()), *sums))
            first = last
        return made, rows[:0]

    def greeting(self, most_bytes: int, now_ns: int) -> list[Message]:  # noqa: ARG002 - every line explains itself
        return []

    def report(self, row: np.void, most_bytes: int, now_ns: int) -> list[Message]:  # noqa: ARG002 - `tapmesh status` and /metrics say it
        return []

    def stamp(self, data: memoryview, sequence: int, now_ns: int) -> None:
        """Lines bear the numbers of their records."""

    def _lines(self, rows: Rows) -> list[str]:
        self._inputs = {slot: json.dumps(name) for slot, name in self._context.inputs.items()}
        times = (np.datetime_as_string(rows[name].view("M8[ns]")).tolist() for name in ("first_ns", "last_ns"))
        ends = (_addresses(rows, name) for name in ("source", "destination"))
        ids = community_ids(rows) if "ports" not in self._context.drop else [""] * len(rows)  # of no ports it would name another flow
        return list(map(self._line, np.ascontiguousarray(rows).view(_FLAT).tolist(), *times, *ends, ids))

    def _line(self, row: tuple[Any, ...], start: str, end: str, source: str, destination: str, flow_id: str) -> str:
        (
            first_ns, last_ns, octets, octets_back, packets, packets_back, number, source_port, destination_port, icmp, vlan, tunnel_id,
            least, least_back, longest, longest_back, rtt, rtt_server, again, again_back, one_in, slot, lane, version, protocol,
            tcp, tcp_back, tos, tos_back, ttl, reason, tunnel, flags, named, name_len, dns_type, dns_code, name,
        ) = row  # fmt: skip
        sport = dport = more = ""
        if protocol in _PORTS:
            sport, dport = f',"src_port":{source_port}', f',"dest_port":{destination_port}'
        elif protocol in _ICMP:
            dport = f',"icmp_type":{icmp >> 8},"icmp_code":{icmp & 255}'
        if flow_id:
            more = f',"community_id":"{flow_id}"'
        if vlan:
            more += f',"vlan":[{vlan}]'
        if tunnel:
            more += f',"tunnel":{{"kind":"{_TUNNELS[tunnel]}","id":{tunnel_id}}}'
        if protocol == _TCP:
            more += self._tcp((tcp, tcp_back), (rtt, rtt_server), (again, again_back))
        if named:
            more += _named(named, name[:name_len], dns_type, dns_code, flags)
        if one_in > 1:
            more += f',"one_in":{one_in}'
        return (
            f'{{"timestamp":"{end}Z","event_type":"flow","node":{self._node},"input":{self._inputs.get(slot, slot)},'
            f'"src_ip":"{source}"{sport},"dest_ip":"{destination}"{dport},"proto":"{_PROTOCOLS.get(protocol, protocol)}","ip_v":{version},'
            f'"flow":{{"pkts_toserver":{packets},"pkts_toclient":{packets_back},"bytes_toserver":{octets},"bytes_toclient":{octets_back},'
            f'"start":"{start}Z","end":"{end}Z","age":{(last_ns - first_ns) / _NS:.6f},"reason":"{_REASONS.get(reason, "")}",'
            f'"min_bytes_toserver":{least},"min_bytes_toclient":{least_back},'
            f'"max_bytes_toserver":{longest},"max_bytes_toclient":{longest_back},'
            f'"tos_toserver":{tos},"tos_toclient":{tos_back},"ttl":{ttl},"lane":{lane},"number":{number}}}{more}}}\n'
        )

    def _tcp(self, flags: tuple[int, int], rtt_us: tuple[int, int], again: tuple[int, int]) -> str:
        text = ""
        if "tcp_flags" not in self._context.drop:
            text = f'"tcp_flags":"{flags[0] | flags[1]:02x}","tcp_flags_ts":"{flags[0]:02x}","tcp_flags_tc":"{flags[1]:02x}",'
        if rtt_us[0]:
            text += f'"rtt_client_us":{rtt_us[0]},'
        if rtt_us[1]:
            text += f'"rtt_server_us":{rtt_us[1]},'
        if "retransmitted" not in self._context.drop:
            text += f'"retransmitted_toserver":{again[0]},"retransmitted_toclient":{again[1]},'
        return f',"tcp":{{{text[:-1]}}}' if text else ""


def _named(named: int, name: bytes, dns_type: int, dns_code: int, flags: int) -> str:
    text = json.dumps(name.decode("latin-1"))
    cut = ',"cut":true' if flags & layout.FLOW_NAME_CUT else ""
    if named == layout.NAMED_TLS:
        return f',"tls":{{"sni":{text}{cut}}}'
    code = f',"rcode":{dns_code}' if dns_code != _NO_CODE else ""
    return f',"dns":{{"rrname":{text},"rrtype":{dns_type}{code}{cut}}}'


def _addresses(rows: Rows, column: str) -> list[str]:
    """As text."""
    is_four = rows["version"] == 4
    four, six = rows[column][is_four, 12:].tobytes(), rows[column][~is_four].tobytes()
    made = np.empty(len(rows), object)
    made[is_four] = [inet_ntop(AF_INET, four[at : at + 4]) for at in range(0, len(four), 4)]
    made[~is_four] = [inet_ntop(AF_INET6, six[at : at + 16]) for at in range(0, len(six), 16)]
    return list(made)
