"""What IPFIX says about the records rather than in them (RFC 7011, 4): options templates and their records.

| template | scope | says |
|---|---|---|
| 258 | observation domain | messages, records and octets sent |
| 259 | observation domain | packets that are in no flow, and since when |
| 260 | observation domain | records that were not sent, their packets and octets, and since when |
| 261 | template | which of its fields tell flows apart |
| 262 | ingressInterface | the name of an input |
| 263 | observation domain | sampling of packets: one of so many |
| 264 | observation domain | sampling of flows: one of so many |
"""

from __future__ import annotations

import struct

import numpy as np

from broker.flows.export.messages import ExportContext, Part

DOMAIN, TEMPLATE_ID, INTERFACE = 149, 145, 10
VARIABLE = 65535

_TABLE: dict[int, tuple[tuple[int, int], ...]] = {
    # exportedMessageTotalCount, exportedFlowRecordTotalCount, exportedOctetTotalCount
    258: ((DOMAIN, 4), (41, 8), (42, 8), (40, 8)),
    # ignoredPacketTotalCount; observationTimeMilliseconds: since, until
    259: ((DOMAIN, 4), (164, 8), (323, 8), (323, 8)),
    # notSentFlowTotalCount, notSentPacketTotalCount, notSentOctetTotalCount; observationTimeMilliseconds: since, until
    260: ((DOMAIN, 4), (166, 8), (167, 8), (168, 8), (323, 8), (323, 8)),
    261: ((TEMPLATE_ID, 2), (173, 8)),  # flowKeyIndicator
    262: ((INTERFACE, 4), (82, VARIABLE)),  # interfaceName
    # selectorAlgorithm, samplingPacketInterval, samplingPacketSpace; samplingInterval and samplingAlgorithm for older collectors
    263: ((DOMAIN, 4), (304, 2), (305, 4), (306, 4), (34, 4), (35, 1)),
    # flowSelectorAlgorithm, samplingFlowInterval, samplingFlowSpacing
    264: ((DOMAIN, 4), (390, 2), (396, 8), (397, 8)),
}
"""Each begins with its one field of scope."""

_UNIFORM = 4  # selectorAlgorithm: each packet with the same probability
_RANDOM = 2  # samplingAlgorithm
_HASH = 6  # flowSelectorAlgorithm: by a hash of the flow


def in_set(set_id: int, content: bytes) -> bytes:
    return struct.pack(">HH", set_id, 4 + len(content)) + content


def templates() -> list[bytes]:
    """Each options template in a set of its own: of several in one, nfacctd reads the first."""
    return [
        in_set(3, struct.pack(">HHH", template, len(fields), 1) + b"".join(struct.pack(">HH", *field) for field in fields))
        for template, fields in _TABLE.items()
    ]


def _record(template: int, *values: int | bytes) -> Part:
    content = b""
    for (_, size), value in zip(_TABLE[template], values, strict=True):
        if isinstance(value, bytes):
            content += bytes([len(value)]) + value
        else:
            content += value.to_bytes(size, "big")
    return in_set(template, content), 1


def facts(context: ExportContext, keys: dict[int, int], domain: int) -> list[Part]:
    """What only a reload changes. `keys`: bits of the fields that tell flows apart, by template."""
    made = [_record(261, template, bits) for template, bits in keys.items()]
    made += [_record(262, slot + 1, name.encode()[:254]) for slot, name in context.inputs.items()]
    if context.sample and context.sample.one_in > 1:
        one_in = context.sample.one_in
        if context.sample.by == "packet":
            made.append(_record(263, domain, _UNIFORM, 1, one_in - 1, one_in, _RANDOM))
        else:
            made.append(_record(264, domain, _HASH, 1, one_in - 1))
    return made


def statistics(context: ExportContext, row: np.void, domain: int, now_ns: int) -> list[Part]:
    """What was sent and what not, by the EXPORT row and what was lost before it."""
    lost = context.lost()
    since, until = context.run_ns // 1_000_000, now_ns // 1_000_000
    not_sent = (lost.records, lost.packets, lost.bytes)
    dropped = (int(row["dropped_records"]), int(row["dropped_packets"]), int(row["dropped_bytes"]))
    return [
        _record(258, domain, int(row["messages"]), int(row["records"]), int(row["bytes"])),
        _record(259, domain, lost.ignored_packets, since, until),
        _record(260, domain, *map(sum, zip(not_sent, dropped, strict=True)), since, until),
    ]
