"""What lies where in shared memory, and who may write it. No algorithms here.

A pipeline is one directory, ``/dev/shm/tapmesh-NAME`` (0700), of plain files (0600) that every process maps::

    control            PIPELINE header                                                  written: supervisor
                       tool_sequence int64[TOOLS]           written: supervisor before the first worker, encapsulate (fetch_add)
                       tool_state int64[TOOLS], TOOL_*                                  written: supervisor (health)
    lane-0 ...         LANE header | WORKER rows | counters | tickets | blocks          see below
    generation-1 ...   msgpack: the plan that blocks stamped 1 are handled by           written once: supervisor
    policy-1 ...       the compiled policy image of that generation                     written once: supervisor
    rules-1 ...        packets and bytes of each rule of it, see `rule_counts`          written: filter, a slice each worker
    rules-carried      what rules in force had counted in generations that are gone     written: supervisor
    senders-0 ...      what a tunnel input knows of its senders, see `senders`          written: capture
    reading-0 ...      the kernel's counts of an interface while they are taken over    written: capture, and the kernel
    flows-0 ...        the flows of a lane and their records, see `flow_layout`         written: flows; the exporter
    exports            what has become of the records, see `flow_layout`                written: the exporter and the store
    *.bell host.sock   sockets

A lane file, each part starting on a page::

    LANE header
    WORKER[n_workers]                 one row a worker, ordered capture, filter..., encapsulate..., send..., flows
    committed int64[n_workers, 2, COUNTERS]      a worker's totals, twice: the even or odd one is valid by its cursor
    live      int64[n_workers, COUNTERS]         what may move between blocks (times, kernel drops)
    TICKET[2 * n_blocks]              sequence numbers of each tool in a block, kept a lap longer than the block
    block[n_blocks]

A block::

    BLOCK header                      one 64-byte line per writing stage
    PACKET[max_packets]               capture
    VERDICT[max_packets]              filter
    FRAME[max_frames]                 encapsulate
    headers uint8[header_bytes]       encapsulate
    data    uint8[data_bytes + SLACK] capture
    shaped  uint8[shaped_bytes + SLACK]  encapsulate: packets that leave otherwise than they came

Single writer per column (``WRITERS``; tests/core/test_single_writer.py checks that a stage changes nothing else), so doing a block
again is harmless and a worker killed anywhere resumes at its cursor.

To look at the live value of the first worker's cursor of lane 0::

    od -A d -t d8 -j 4096 -N 8 /dev/shm/tapmesh-NAME/lane-0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

LAYOUT_VERSION = 6
PIPELINE_MAGIC = 0x3150_4853_4D50_4154  # "TAPMSHP1" little-endian
LANE_MAGIC = 0x314C_4853_4D50_4154  # "TAPMSHL1"

PAGE = 4096
LINE = 64
SLACK = 64  # kernels may load and store whole 64-byte lines past the last byte

TOOLS = 64  # one verdict bit each
MAPS = 256
INPUTS = 64
MAX_FRAME_BYTES = 262_144  # the largest record that libpcap accepts too (MAX_SNAPLEN)
RECORD_BYTES = 64  # room in a block's data for what stands before a packet in a capture file, which is read into it as it is

PATH = ("capture", "filter", "encapsulate", "send")
STAGES = (*PATH, "flows")
"""The stages on the way of a packet, one after the other; then those that read beside it."""


def _row(size: int, *fields: tuple[Any, ...]) -> np.dtype[np.void]:
    """A record of aligned fields, padded to `size` bytes."""
    packed = np.dtype(list(fields), align=True)
    assert packed.names is not None
    assert packed.fields is not None
    assert packed.itemsize <= size, packed
    return np.dtype(
        {
            "names": list(packed.names),
            "formats": [packed.fields[name][0] for name in packed.names],
            "offsets": [packed.fields[name][1] for name in packed.names],
            "itemsize": size,
        }
    )


def words(dtype: np.dtype[np.void]) -> dict[str, int]:
    """Where the 64-bit fields of a row are, in words: for who sees it as integers."""
    assert dtype.fields is not None
    return {name: field[1] // 8 for name, field in dtype.fields.items()}


PIPELINE = _row(
    PAGE,
    ("magic", "<i8"),
    ("version", "<i8"),
    ("generation", "<i8"),  # what capture stamps on its next block; written by the supervisor
    ("created_ns", "<i8"),  # wall clock
    ("n_lanes", "<i8"),
    ("supervisor_pid", "<i8"),
    ("drawing", "<i8"),  # a digest of all rows and counters: their version could be forgotten
)

LANE = _row(
    PAGE,
    ("magic", "<i8"),
    ("version", "<i8"),
    ("lane", "<i8"),
    ("n_blocks", "<i8"),
    ("max_packets", "<i8"),
    ("max_frames", "<i8"),
    ("header_bytes", "<i8"),
    ("data_bytes", "<i8"),
    ("shaped_bytes", "<i8"),
    ("n_counters", "<i8"),
    ("n_filter", "<i8"),
    ("n_encapsulate", "<i8"),
    ("n_send", "<i8"),
    ("n_flows", "<i8"),
    ("flows_follow_filter", "<i8"),
    ("file_bytes", "<i8"),
)

# The first line is what neighbours look at for every block; the second is for the supervisor.
WORKER = _row(
    2 * LINE,
    ("cursor", "<i8"),  # every block of mine below this is published
    ("parked", "<i8"),  # 0: awake; else asleep until the block before this number is published: ring its bell then
    ("pad", "<i8", (6,)),
    ("progress", "<i8"),  # send: block << PROGRESS_BITS | how many of its frames may have been handed over already
    ("heartbeat_ns", "<i8"),  # CLOCK_MONOTONIC
    ("pid", "<i8"),
    ("state", "<i8"),  # STATE_*
    ("epoch", "<i8"),  # number of starts
    ("generation", "<i8"),  # tables in use
    ("error", "<i8"),  # exit code it chose, 0 none
    ("stop_at", "<i8"),
)

TOOL_UNASKED, TOOL_ALIVE, TOOL_DEAD = range(3)
TOOL_STATE_NAMES = ("not asked", "alive", "dead")
"""Whether a tool answers."""

PROGRESS_BITS = 24  # more than a block has frames

STATE_NEW, STATE_STARTING, STATE_RUNNING, STATE_DRAINING, STATE_FINISHED, STATE_STOPPED = range(6)
STATE_NAMES = ("new", "starting", "running", "draining", "finished", "stopped")
"""finished: a source that has published its last block, still alive; stopped: drained and gone on purpose."""

BLOCK = np.dtype(
    {
        "names": [
            "seq",  # line 0: capture. seq + 1 of the batch in it, so that 0 means never filled
            "n_packets",
            "data_used",
            "generation",  # the policy and the tools by which every packet of this block is handled, in every stage
            "n_wanted",  # line 1: filter. Frames asked for: set verdict bits
            "n_frames",  # line 2: encapsulate
            "headers_used",
        ],
        "formats": ["<i8", "<i8", "<i8", "<i8", "<i8", "<i8", "<i8"],
        "offsets": [0, 8, 16, 24, LINE, 2 * LINE, 2 * LINE + 8],
        "itemsize": 4 * LINE,
    }
)

PACKET = np.dtype(
    [
        ("ts_ns", "<i8"),  # since the Unix epoch
        ("data_at", "<u4"),  # offset in the block's data; any
        ("caplen", "<u4"),  # bytes stored
        ("wirelen", "<u4"),  # bytes it had on the wire
        ("input", "<u2"),  # slot of the input
        ("flags", "<u2"),  # PACKET_*
    ],
    align=True,
)
PACKET_TAG_RESTORED = 1  # the kernel had stripped the outer VLAN tag

VERDICT = np.dtype(
    [
        ("verdict", "<i8"),  # bit t: tool slot t wants it; 0: nobody (bit 63 is the sign)
        ("flow", "<u4"),  # symmetric flow hash
        ("cause", "<u2"),  # CAUSE_*
        ("pad", "<u2"),
    ],
    align=True,
)

SOURCE_FINE, SOURCE_ABSENT, SOURCE_DOWN, SOURCE_NO_LINK, SOURCE_FAILED = range(5)
"""source_trouble of capture: why nothing can come of an input, as its worker sees it."""

CAUSE_FORWARDED = 0  # at least one tool
CAUSE_FILTERED = 1  # no map passed it and there is no collector
CAUSE_RULE = 2  # a drop rule decided and nobody else wanted it
CAUSE_UNDETERMINED = 3  # undetermined, and the map says not to deliver such
CAUSE_COLLECTED = 4  # no map took it, the collector did
CAUSE_NAMES = ("forwarded", "filtered", "rule", "undetermined", "collected")

FRAME = np.dtype(
    [
        ("packet", "<u4"),  # row in PACKET
        ("tool", "<u2"),  # slot
        ("header_len", "<u2"),  # 0: bare packet (file tools)
        ("header_at", "<u4"),  # offset in the block's headers
        ("data_at", "<u4"),  # offset from the block's data on, to which `shaped` belongs
        ("data_len", "<u4"),
        ("wirelen", "<u4"),  # outer header, and what the packet had on the wire: what a capture file says as the original length
        ("share", "<u4"),  # share % n_send is the send worker that takes it: flow hash for tunnels, tool slot for files
    ],
    align=True,
)

TICKET = _row(17 * LINE, ("seq", "<i8"), ("first", "<i8", (TOOLS,)), ("taken", "<i8", (TOOLS,)))
"""first[t]: sequence number of tool t's first frame in block `seq - 1`; taken[t]: how many it took. Written: encapsulate."""

# kind: (fields of BLOCK, then parts of the block)
WRITERS: dict[str, tuple[str, ...]] = {
    "capture": ("seq n_packets data_used generation", "packets", "data"),
    "filter": ("n_wanted", "verdicts"),
    "encapsulate": ("n_frames headers_used", "frames", "headers", "shaped"),
    "send": ("",),
    "flows": ("",),
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one lane. `max_frames` is `max_packets` times the tools one packet can go to, and more for what is cut into segments."""

    n_blocks: int = 8
    max_packets: int = 1024
    max_frames: int = 1024
    header_bytes: int = 1024 * 64
    data_bytes: int = MAX_FRAME_BYTES + RECORD_BYTES
    shaped_bytes: int = 0
    n_filter: int = 1
    n_encapsulate: int = 1
    n_send: int = 1
    n_flows: int = 0  # 0 or 1: is there a flows stage?
    flows_follow_filter: int = 0  # 1: it reads blocks that the filter has passed, 0: as soon as they are captured

    @property
    def workers(self) -> tuple[tuple[str, int], ...]:
        """(kind, index) in the order of the WORKER rows."""
        counts = (1, self.n_filter, self.n_encapsulate, self.n_send, self.n_flows)
        return tuple((kind, w) for kind, n in zip(STAGES, counts, strict=True) for w in range(n))

    def count(self, kind: str) -> int:
        return sum(1 for k, _ in self.workers if k == kind)

    def row(self, kind: str, worker: int) -> int:
        return self.workers.index((kind, worker))

    def before(self, kind: str) -> tuple[str, ...]:
        """Whom `kind` waits for. Capture waits for those who read last: it takes the slots that they are done with."""
        beside = ("flows",) if self.n_flows else ()
        if kind == "capture":
            return (PATH[-1], *beside)
        if kind == "flows":
            return ("filter" if self.flows_follow_filter else "capture",)
        return (PATH[PATH.index(kind) - 1],)

    def after(self, kind: str) -> tuple[str, ...]:
        """Who waits for `kind`."""
        present = STAGES if self.n_flows else PATH
        return tuple(other for other in present if kind in self.before(other))


@dataclass(frozen=True, slots=True)
class BlockOffsets:
    packets: int
    verdicts: int
    frames: int
    headers: int
    data: int
    shaped: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class LaneOffsets:
    workers: int
    committed: int
    live: int
    tickets: int
    blocks: int
    file_bytes: int
    block: BlockOffsets


def _up(n: int, to: int) -> int:
    return (n + to - 1) // to * to


def block_offsets(g: Geometry) -> BlockOffsets:
    packets = BLOCK.itemsize
    verdicts = _up(packets + g.max_packets * PACKET.itemsize, LINE)
    frames = _up(verdicts + g.max_packets * VERDICT.itemsize, LINE)
    headers = _up(frames + g.max_frames * FRAME.itemsize, LINE)
    data = _up(headers + g.header_bytes + SLACK, PAGE)
    shaped = _up(data + g.data_bytes + SLACK, LINE)
    end = shaped + g.shaped_bytes + SLACK if g.shaped_bytes else shaped
    return BlockOffsets(packets, verdicts, frames, headers, data, shaped, _up(end, PAGE))


def lane_offsets(g: Geometry, n_counters: int) -> LaneOffsets:
    n = len(g.workers)
    workers = LANE.itemsize
    committed = _up(workers + n * WORKER.itemsize, PAGE)
    live = _up(committed + n * 2 * n_counters * 8, PAGE)
    tickets = _up(live + n * n_counters * 8, PAGE)
    blocks = _up(tickets + 2 * g.n_blocks * TICKET.itemsize, PAGE)
    block = block_offsets(g)
    return LaneOffsets(workers, committed, live, tickets, blocks, blocks + g.n_blocks * block.block_bytes, block)
