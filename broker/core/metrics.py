"""Every counter there is, one row each: Prometheus, `status`, `top`, the ledger and the docs are made from this table.

To add a counter: add a row here, and count it in the stage at `index(stage, name)`. Drop reasons are rows whose name starts with
``dropped_``; the ledger sums them without knowing them. A `live` row may move between blocks; all others are committed together with
the worker's cursor by one atomic store (see `Ring.publish`), so that they are exact whenever a worker dies.

A row of counters is ``int64[N_COUNTERS]``: scalars first, then the arrays, in the order of this table. Kernels count with
``add64(counters_at + 8 * (INDEX + slot), n)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from broker.core.layout import INPUTS, MAPS, TOOLS

Per = Literal["", "input", "map", "tool"]
WIDTH: dict[Per, int] = {"": 1, "input": INPUTS, "map": MAPS, "tool": TOOLS}


@dataclass(frozen=True, slots=True)
class Counter:
    stage: str  # "" : every stage
    name: str
    unit: str
    per: Per
    live: bool
    help: str


def _rows(stage: str, per: Per, live: bool, *rows: tuple[str, str, str]) -> list[Counter]:
    return [Counter(stage, name, unit, per, live, text) for name, unit, text in rows]


COUNTERS: tuple[Counter, ...] = (
    *_rows(
        "", "", True,
        ("busy_ns", "ns", "time spent in step()"),
        ("starved_ns", "ns", "time spent waiting for the stage before"),
        ("blocked_ns", "ns", "time capture spent waiting for a free block"),
        ("parks", "times", "went to sleep waiting for the doorbell"),
        ("bells", "times", "rang a parked neighbour's doorbell"),
    ),
    *_rows(
        "capture", "", False,
        ("source_file", "index", "position of the source after the last published block: which file or socket"),
        ("source_at", "bytes", "position of the source after the last published block: where in it (of a socket: kernel blocks)"),
        ("source_state_a", "-", "position of the source: for the source's own use"),
        ("source_state_b", "-", "position of the source: for the source's own use"),
    ),
    *_rows(
        "capture", "input", False,
        ("captured_packets", "packets", "packets put into the ring"),
        ("captured_bytes", "bytes", "their bytes on the wire"),
        ("tags_restored", "packets", "packets whose VLAN tag, stripped by the kernel, was put back"),
        ("cut_packets", "packets", "packets of which a file stores more than the snapshot length that it declares; the rest was cut off"),
        ("filtered_in_kernel_packets", "packets", "left out by the kernel before they were copied: of no rule's kind (part of filtered)"),
        ("dropped_shed_in_kernel", "packets", "of flows that were left out, because the kernel's ring had overflowed"),
        ("dropped_oversize", "packets", "longer than a block can hold"),
        ("dropped_linktype", "packets", "not Ethernet"),
        ("dropped_malformed", "packets", "record or tunnel header that contradicts itself, or is too short"),
        ("dropped_source", "packets", "in a tunnel from an address that the input does not take packets from"),
        ("dropped_key", "packets", "in a tunnel with another key or VNI than the input takes"),
        ("dropped_protocol", "packets", "in a tunnel of a version, with an option or of a protocol that is not known"),
        ("dropped_checksum", "packets", "in a tunnel whose GRE checksum is wrong"),
        ("dropped_own", "packets", "of our own tunnels, ICMP errors about them, ARP and neighbour discovery for our tools"),
        ("dropped_loop", "packets", "looked like our own tunnels, at other addresses, while the loop breaker was open"),
    ),
    *_rows(
        "capture", "input", True,
        ("seen_packets", "packets", "came to the kernel's tap, those that it dropped included"),
        ("dropped_kernel", "packets", "arrived while the kernel's ring or the socket's buffer was full, or with a wrong UDP checksum"),
        ("dropped_restart", "packets", "taken by a worker that died before it published them"),
        ("lost_packets", "packets", "sequence numbers of senders that have not come; goes down when one is late"),
        ("reordered_packets", "packets", "came after one that their sender had sent later"),
        ("repeated_packets", "packets", "came with a sequence number that had come before"),
        ("untracked_packets", "packets", "of senders for which there was no room in the table: received, but not measured"),
        ("sender_restarts", "times", "a sender began to number its packets anew"),
        ("loop_trips", "times", "the loop breaker has opened"),
        ("source_trouble", "-", "0: none; 1: no such interface; 2: it is down; 3: it has no link; 4: a file could not be read to its end"),
    ),
    *_rows(
        "filter", "", False,
        ("judged_packets", "packets", "packets that got a verdict"),
        ("forwarded_packets", "packets", "wanted by at least one tool"),
        ("collected_packets", "packets", "taken by no map and given to the collector (part of forwarded)"),
        ("filtered_packets", "packets", "wanted by no map, and there is no collector"),
        ("dropped_rule", "packets", "a drop rule decided, and nobody else wanted it"),
        ("dropped_undetermined", "packets", "a test needed a header that the packet does not show, and the map does not deliver such"),
        ("undetermined_packets", "packets", "a test needed a header that the packet does not show (whatever became of it)"),
        ("fragments_packets", "packets", "fragments: first ones, and those of the next five"),
        ("fragments_followed_packets", "packets", "later fragments judged by ports, flags and type of their first"),
        ("fragments_unknown_packets", "packets", "later fragments whose first had not been seen, or does not show its ports"),
        ("fragments_tiny_packets", "packets", "first fragments too short for ports and flags, and TCP at offset 8 (RFC 1858, 3128)"),
        ("fragments_overlapping_packets", "packets", "of a datagram whose fragments overlap or contradict each other (RFC 5722)"),
        ("fragments_atomic_packets", "packets", "IPv6 packets with a fragment header that are whole (RFC 6946)"),
        ("fragments_evicted", "datagrams", "forgotten before their time, because there were too many at once"),
        ("ip6_chain_long_packets", "packets", "IPv6 extension headers too many, or not all in the first fragment (RFC 7112)"),
    ),
    *_rows(
        "filter", "map", False,
        ("map_passed_packets", "packets", "passed by the map"),
        ("map_passed_bytes", "bytes", "their bytes on the wire"),
        ("map_dropped_packets", "packets", "dropped by a rule of the map"),
        ("map_dropped_bytes", "bytes", "their bytes on the wire"),
        ("map_undetermined_packets", "packets", "undetermined in the map"),
    ),
    *_rows("filter", "tool", False, ("wanted_frames", "frames", "packets that the tool was to get")),
    *_rows(
        "encapsulate", "tool", False,
        ("framed_frames", "frames", "outer headers written"),
        ("framed_bytes", "bytes", "outer headers and packets"),
        ("dropped_too_long", "frames", "packet and outer header exceed 65,535 bytes"),
        ("dropped_not_ip", "frames", "no IPv4 or IPv6 packet in the frame, and the tunnel carries nothing else"),
        ("dropped_no_room", "frames", "no frame row or header space left in the block"),
        ("dropped_no_tool", "frames", "wanted by a tool that the configuration of its block does not have"),
        ("dropped_sampled", "frames", "left out by the tool's or map's sample"),
        ("dropped_duplicate", "frames", "like one that the tool has been given just before"),
        ("dropped_limited", "frames", "more than the tool's or map's limit"),
        ("dropped_shed", "frames", "of a flow of low priority, while the broker could not keep up"),
        ("dropped_mtu", "frames", "longer than the path to the tool takes, and it drops such"),
        ("shared_packets", "packets", "given by the group to its members"),
        ("merged_frames", "frames", "wanted of the tool by more than one map or group; it gets a packet once"),
        ("given_frames", "frames", "wanted of the tool beyond what maps and the collector ask: by groups, and segments after the first"),
        ("sliced_frames", "frames", "cut short: by a slice, or because the path takes no more"),
        ("stripped_frames", "frames", "less headers"),
        ("unstripped_frames", "frames", "delivered with headers that were to be stripped: they are cut, or of a fragment"),
        ("masked_frames", "frames", "with bytes overwritten"),
        ("segmented_frames", "frames", "super-frames that were cut into segments"),
        ("unsegmented_frames", "frames", "super-frames delivered whole, because they cannot be cut"),
        ("dedup_evicted", "packets", "forgotten before their time, because there were too many at once"),
        ("dropped_damaged_packet", "frames", "the packet's row points outside the block: shared memory is damaged"),
    ),
    *_rows(
        "send", "tool", False,
        ("delivered_frames", "frames", "accepted by the kernel or written"),
        ("delivered_bytes", "bytes", "outer headers and packets"),
        ("dropped_full", "frames", "refused: queue full (EAGAIN, ENOBUFS, ENOMEM)"),
        ("dropped_too_big", "frames", "refused: longer than the path takes (EMSGSIZE)"),
        ("dropped_unreachable", "frames", "refused: no route, host or network down (ENETUNREACH, EHOSTUNREACH, ENETDOWN, EADDRNOTAVAIL)"),
        ("dropped_no_listener", "frames", "refused: nobody listens there (ECONNREFUSED)"),
        ("dropped_forbidden", "frames", "refused: not permitted (EPERM, EACCES)"),
        ("dropped_disk", "frames", "not written: disk full or failing (ENOSPC, EDQUOT, EIO, EFBIG)"),
        ("dropped_tool_down", "frames", "the tool's socket or file could not be opened"),
        ("dropped_other", "frames", "refused for another reason (logged with its errno)"),
        ("dropped_damaged_frame", "frames", "the frame's row points outside the block: shared memory is damaged"),
        ("repeated_frames", "frames", "at most so many were delivered a second time after a crash"),
        ("unheard_reports", "times", "the network said that an earlier frame reached nobody (ICMP); several at once count as one"),
        ("reader_missed_frames", "frames", "missed by a reader of the tool's stream that was too slow, of each; others may have them"),
        ("reader_lost_frames", "frames", "delivered to a reader of the tool's stream, and not yet taken from us when it went"),
        ("file_bytes", "bytes", "length of the tool's file that is known to be whole"),
        ("file_inode", "-", "which file that is"),
        ("file_begun_ns", "ns", "when that file was begun, as its name says, if the tool's files follow one another"),
    ),
    *_rows(
        "flows", "", False,
        ("metered_packets", "packets", "counted in a flow"),
        ("metered_bytes", "bytes", "of their IP packets, headers and all"),
        ("new_flows", "flows", "flows that began"),
        ("unmetered_not_ip", "packets", "neither IPv4 nor IPv6: in no flow"),
        ("unmetered_cut", "packets", "of which the capture has not all of the IP header: in no flow"),
        ("unmetered_sampled", "packets", "left out by the sample"),
        ("unmetered_unwanted", "packets", "that no tool gets, where only flows of what is forwarded are asked for"),
        ("unmetered_skipped", "packets", "not looked at, so that capture need not wait: the stage cannot keep up"),
    ),
    *_rows(
        "flows", "", True,
        ("live_flows", "flows", "flows that go on"),
        ("live_names", "names", "names that are held for them"),
        ("records_idle", "records", "flows that were silent for too long"),
        ("records_active", "records", "parts of flows that went on"),
        ("records_end", "records", "TCP connections that were closed"),
        ("records_forced", "records", "written because the stage stopped"),
        ("records_resources", "records", "written early, because there were too many flows at once"),
        ("dropped_records", "records", "not kept: the exporter did not take those before"),
        ("dropped_record_packets", "packets", "in those records"),
        ("dropped_record_bytes", "bytes", "in those records"),
        ("names_seen", "names", "names that were found in packets"),
        ("dropped_names", "names", "for which there was no room"),
    ),
    *_rows(
        "send", "tool", True,
        ("file_next_ns", "ns", "the same of a file begun since: a worker that takes over removes it, if it is not committed"),
    ),
)  # fmt: skip


def _indexes() -> tuple[dict[tuple[str, str], int], int]:
    """Where each counter starts in the row of its stage; stages lie over each other, the common ones come first."""
    at: dict[tuple[str, str], int] = {}
    common = 0
    for c in COUNTERS:
        if not c.stage:
            at["", c.name] = common
            common += WIDTH[c.per]
    size = common
    for stage in dict.fromkeys(c.stage for c in COUNTERS if c.stage):
        here = common
        for c in COUNTERS:
            if c.stage == stage:
                at[stage, c.name] = here
                here += WIDTH[c.per]
        size = max(size, here)
    return at, size


_AT, N_COUNTERS = _indexes()


def index(stage: str, name: str) -> int:
    """Position of a counter (of its slot 0) in the row of a worker of `stage`."""
    return _AT["", name] if ("", name) in _AT else _AT[stage, name]


def of_stage(stage: str) -> tuple[Counter, ...]:
    return tuple(c for c in COUNTERS if c.stage in ("", stage))


def stage_counters(stage: str) -> int:
    """How many positions of the row a stage uses: what a commit has to copy."""
    used = [index(c.stage, c.name) + WIDTH[c.per] for c in COUNTERS if c.stage in ("", stage)]
    return max(used)
