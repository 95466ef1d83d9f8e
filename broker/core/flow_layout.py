"""What a flow record is, and what lies where in the files ``flows-L`` and ``exports`` of a pipeline. No algorithms here.

A flow is what goes back and forth between two ends (RFC 5103 calls it a biflow): 0 is forward, from the source to the destination, 1 is
reverse. The source is who began: of TCP who sent the SYN, else who was seen to send first.

``flows-L``, of lane L, each part starting on a line::

    FLOWS header     line 0: sizes, once. line 1: TRANSACTION, line 8: STATE and its copy              written: flows stage
                     line 40: CONSUMER                                                                 written: exporter
    index    int64[n_index]       hash << 24 | entry + 1; 0: free. Made anew from the entries by a worker that takes over
    entries  ENTRY[max_flows]     flows that go on
    names    NAME[n_names]        what is known of some of them in words
    undo     UNDO[n_undo]         entries as they were before the block that is being done
    records  FLOW[n_records]      flows that have ended, or were long enough: the n-th that is there lies at `n % n_records`

The n-th record belongs to the exporter once `published` is above n, and to the flows stage again once `taken` is.

``exports``: EXPORT[EXPORTS], what has become of the records, a row for each export and one for the store.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.core.layout import LINE, PAGE

FLOWS_MAGIC = 0x314C_4653_4D50_4154  # "TAPMSFL1" little-endian
FLOWS_VERSION = 2

NAME_BYTES = 112
EXPORTS = 32

END_IDLE, END_ACTIVE, END_SEEN, END_FORCED, END_RESOURCES = range(1, 6)
"""Why a record was written, as IPFIX numbers it (flowEndReason, 136): silent for too long; a part of a flow that goes on; FIN or RST; the
stage stops; room was needed for others."""
END_NAMES = {END_IDLE: "idle", END_ACTIVE: "active", END_SEEN: "end", END_FORCED: "forced", END_RESOURCES: "resources"}

TUNNEL_NONE, TUNNEL_GRE, TUNNEL_ERSPAN, TUNNEL_VXLAN, TUNNEL_GENEVE, TUNNEL_GTP, TUNNEL_MPLS, TUNNEL_IPIP = range(8)
TUNNEL_NAMES = ("", "gre", "erspan", "vxlan", "geneve", "gtp", "mpls", "ipip")

NAMED_NOT, NAMED_DNS, NAMED_TLS = range(3)
NAMED_NAMES = ("", "dns", "tls")

FLOW_CONTINUED = 1  # a record of this flow was written before this one, with END_ACTIVE
FLOW_BEGAN = 2  # the source sent a SYN, or the destination a SYN with ACK: who began is known
FLOW_FRAGMENTS = 4  # some packets were fragments
FLOW_NAME_CUT = 8  # the name is longer than it has room for; its end is kept
FLOW_SAMPLED = 16  # packets were left out of it: `one_in`

FLOW = np.dtype(
    [
        ("first_ns", "<i8"),  # since the Unix epoch: of the first packet
        ("last_ns", "<i8"),
        ("bytes", "<i8", (2,)),  # of IP packets, headers and all
        ("packets", "<i8", (2,)),
        ("source", "u1", (16,)),  # network order; an IPv4 address is in the last four
        ("destination", "u1", (16,)),
        ("number", "<i8"),  # of the record in its lane, from 0; those that were dropped for want of room are counted in it
        ("source_port", "<u2"),  # of ICMP: the type, as Community ID has it
        ("destination_port", "<u2"),  # of ICMP: the type of the answer, or the code of a type that has none
        ("icmp", "<u2"),  # type << 8 | code of the first packet
        ("vlan", "<u2"),  # the outer tag, 0: none
        ("tunnel_id", "<u4"),  # key, VNI, session, TEID or label; 0 too if it has none
        ("min_bytes", "<u2", (2,)),  # shortest and longest packet; 65,535 and longer are 65,535
        ("max_bytes", "<u2", (2,)),
        ("rtt_us", "<u4", (2,)),  # of the TCP handshake: from here to the source and back, to the destination and back; 0: not seen
        ("retransmitted", "<u2", (2,)),  # TCP segments that had come before, or late
        ("one_in", "<u4"),  # of how many packets or flows it is one; 1: unsampled
        ("input", "<u2"),  # slot
        ("lane", "<u2"),
        ("version", "u1"),  # 4 or 6
        ("protocol", "u1"),
        ("tcp_flags", "u1", (2,)),  # all that were seen
        ("tos", "u1", (2,)),  # of the first packet
        ("ttl", "u1"),  # of the first packet
        ("end", "u1"),  # END_*
        ("tunnel", "u1"),  # TUNNEL_*
        ("flags", "u1"),  # FLOW_*
        ("named", "u1"),  # NAMED_*: what `name` is: the question to a name server, the server that TLS asks for (SNI)
        ("name_len", "u1"),
        ("dns_type", "<u2"),  # of the question
        ("dns_code", "u1"),  # of the answer; 255: not seen
        ("pad", "u1", (1,)),
        ("name", f"S{NAME_BYTES}"),
    ],
    align=True,
)
assert FLOW.itemsize == 4 * LINE, FLOW.itemsize

ENTRY = np.dtype(
    {
        "names": [
            "source_high", "source_low", "destination_high", "destination_low",  # as KEY has them
            "what",  # see WHAT_*; 0: the entry is free
            "link",  # tunnel id | VLAN << 32
            "first_ns", "last_ns",
            "bytes", "packets", "min_bytes", "max_bytes",
            "next_sequence",  # of TCP: what should come next
            "rtt_us",  # or the time of the SYN, of the SYN with ACK, 32 bits of it: see `state`
            "retransmitted", "tcp_flags", "tos",
            "undo",  # number of the transaction in which it was saved last
            "name",  # number in names + 1
            "state",  # STATE_*
        ],
        "formats": [
            *["<i8"] * 8, ("<i8", (2,)), ("<u4", (2,)), ("<u2", (2,)), ("<u2", (2,)), ("<u4", (2,)), ("<u4", (2,)),
            ("<u2", (2,)), ("u1", (2,)), ("u1", (2,)), "<u4", "<u2", "<u2",
        ],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 88, 92, 96, 104, 112, 116, 118, 120, 124, 126],
        "itemsize": 2 * LINE,
    }
)  # fmt: skip

WHAT_DESTINATION_PORT, WHAT_PROTOCOL, WHAT_INPUT, WHAT_IP6, WHAT_TUNNEL, WHAT_USED, WHAT_TTL = 16, 32, 40, 46, 47, 50, 56
"""Bits of `what`, from the source port on: ports, protocol, input (6 bits), IPv6 or not, TUNNEL_* (3 bits), always 1; and, no part of the
key, TTL of the first packet."""

UNDO = np.dtype([("entry", "<i8"), ("was", "u1", (ENTRY.itemsize,))])  # not padded: a block may write a thousand of them

NAME = np.dtype(
    [("dns_type", "<u2"), ("dns_code", "u1"), ("kind", "u1"), ("len", "u1"), ("cut", "u1"), ("pad", "<u2"), ("text", f"S{NAME_BYTES + 8}")]
)
assert NAME.itemsize == 2 * LINE

STATE = np.dtype(
    [
        (name, "<i8")
        for name in (
            "head",  # records written; what is published is behind it only until the block is committed
            "n_flows",  # entries in use
            "now_ns",  # latest time known
            "hand",  # entry at which the search for flows that are over goes on
            "swept_ns",  # when the hand stood at 0
            "names_in_use",
            # what has happened so far, see `broker.core.metrics`
            "records_idle", "records_active", "records_end", "records_forced", "records_resources",
            "dropped_records", "dropped_record_packets", "dropped_record_bytes",
            "names_seen", "dropped_names",
        )
    ]
)  # fmt: skip

TRANSACTION = np.dtype([("open", "<i8"), ("number", "<i8"), ("n_undo", "<i8")])
"""`open`: 0 none; seq + 1 of the block that is being done; TRANSACTION_TICK: between blocks."""
TRANSACTION_TICK = -1

FLOWS = np.dtype(
    {
        "names": [
            "magic", "version", "lane", "max_flows", "n_index", "n_names", "n_undo", "n_records", "file_bytes",
            "transaction", "published", "state", "saved", "taken",
        ],
        "formats": [*["<i8"] * 9, TRANSACTION, "<i8", STATE, STATE, "<i8"],
        "offsets": [8 * n for n in range(9)] + [2 * LINE, 3 * LINE, 8 * LINE, 16 * LINE, 40 * LINE],
        "itemsize": PAGE,
    }
)  # fmt: skip

EXPORT = np.dtype(
    [
        ("name", "S32"),
        ("records", "<i8"),  # handed over: sent, written, stored
        ("messages", "<i8"),
        ("bytes", "<i8"),
        ("dropped_records", "<i8"),  # not handed over, and never will be
        ("dropped_packets", "<i8"),  # of those records
        ("dropped_bytes", "<i8"),
        ("waiting_records", "<i8"),  # in a buffer or on disk
        ("errors", "<i8"),  # times that it was refused
        ("connected", "<i8"),  # 1: the last attempt went well
        ("since_ns", "<i8"),  # wall clock: when that was last so
        ("sequence", "<i8"),  # of IPFIX and NetFlow: the number of the next message or record
        ("sequence_b", "<i8"),  # for the export's own use
        ("refusing", "<i8"),  # of the store. 1: the spool drops what comes
    ],
    align=True,
)


@dataclass(frozen=True, slots=True)
class FlowSizes:
    """Of the file of one lane."""

    max_flows: int
    n_names: int
    n_records: int
    block_packets: int  # of the lane

    @property
    def n_index(self) -> int:
        """Two thirds are in use at most: 2 to 3 words are looked at for a flow."""
        return max(64, self.max_flows * 3 // 2)

    @property
    def n_undo(self) -> int:
        """Each packet may touch its own flow and one that has to go; the search for those that are over touches SWEEP_MOST."""
        return 2 * self.block_packets + SWEEP_MOST


SWEEP_MOST = 4096
"""Flows that are ended at once, at most."""


@dataclass(frozen=True, slots=True)
class FlowOffsets:
    index: int
    entries: int
    names: int
    undo: int
    records: int
    file_bytes: int


def flow_offsets(sizes: FlowSizes) -> FlowOffsets:
    def up(n: int) -> int:
        return (n + LINE - 1) // LINE * LINE

    index = PAGE
    entries = up(index + 8 * sizes.n_index)
    names = up(entries + ENTRY.itemsize * sizes.max_flows)
    undo = up(names + NAME.itemsize * sizes.n_names)
    records = up(undo + UNDO.itemsize * sizes.n_undo)
    end = records + FLOW.itemsize * sizes.n_records
    return FlowOffsets(index, entries, names, undo, records, (end + PAGE - 1) // PAGE * PAGE)
