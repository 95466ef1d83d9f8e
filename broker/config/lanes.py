"""Which rings a configuration needs, and how large they are. Pure, and free of YAML and pydantic: workers ask it too."""

from __future__ import annotations

import zlib

from broker.config.deliveries import copies
from broker.core.flow_layout import FlowSizes
from broker.core.layout import RECORD_BYTES, TOOLS, Geometry
from broker.core.model import Config, Input, Lane

HEADER_BYTES = 80
"""Room for the outer header of a frame. The longest has 68: IPv6 40, GRE with its sequence number 8, ERSPAN III with its subheader 20."""

SEGMENT_FRAMES = 512
"""More frames in a block, for super-frames that are cut: the bytes of a block in segments of 512."""

BLOCK_FRAMES = 16_384
"""Frames a block has room for at most: with `HEADER_BYTES` 1.7 MiB a block. With more tools a block takes fewer packets instead."""


MAX_SHAPED_BYTES = 1 << 30
"""Of a block: `broker.core.shm` takes no larger part for one of ours."""


def cpu_of(config: Config, lane: int, kind: str, worker: int, n_workers: int) -> int | None:
    """The CPU that worker number `worker` of `n_workers` of its kind in a lane is given; None: it may run anywhere."""
    cpus: tuple[int, ...] = getattr(config.stages.cpus, kind)
    return cpus[(lane * n_workers + worker) % len(cpus)] if cpus else None


def lanes(config: Config) -> tuple[Lane, ...]:
    """`stages.capture` lanes for each interface and one for each tunnel input (a raw socket gets all there is), in the order of the inputs;
    then one for all files together, played in order."""
    found: list[Lane] = []
    groups: set[int] = set()
    for live in (i for i in config.inputs if i.kind != "pcap"):
        size = config.stages.capture if live.kind == "afpacket" else 1
        group = _fanout_group(config.node, live, groups) if size > 1 else 0
        found += [Lane(len(found) + n, (live,), group, size, n) for n in range(size)]
    files = tuple(i for i in config.inputs if i.kind == "pcap")
    if files:
        found.append(Lane(len(found), files))
    return tuple(found)


def _fanout_group(node: str, live: Input, taken: set[int]) -> int:
    """16-bit id of the PACKET_FANOUT group of an input, 1..65535. The kernel shares these ids between all processes of a network
    namespace, so they come from names and not from counting."""
    group = zlib.crc32(f"{node}/{live.name}/{live.interface}".encode()) % 65_535
    while group + 1 in taken:
        group = (group + 1) % 65_535
    taken.add(group + 1)
    return group + 1


def reachable_tools(config: Config, lane: Lane) -> frozenset[str]:
    """The tools that a packet of `lane` can go to, by the maps of its inputs and by the collector; for a group that shares, its name."""
    names = {i.name for i in lane.inputs}
    by_maps = {tool for m in config.maps if not m.inputs or names & set(m.inputs) for tool in m.to}
    members = {g.name: g.members for g in config.groups if g.mode == "replicate"}
    return frozenset(tool for name in by_maps | set(config.collector) for tool in members.get(name, (name,)))


def needed_tools(config: Config) -> int:
    """The most tools that one packet can go to."""
    return max((len(reachable_tools(config, lane)) for lane in lanes(config)), default=0)


def tool_room(config: Config) -> int:
    """For how many tools a packet the rings of a pipeline started with `config` have frames: half as many again as it needs, 4 at
    least, so that a reload can add some without a restart. This is the `max_tools` of `diff`."""
    needed = needed_tools(config)
    return min(TOOLS, max(4, needed + needed // 2))


def _copy_bytes(data_bytes: int, max_packets: int) -> int:
    """For the packets of a block, each with a VLAN tag more, and on 16 bytes again."""
    return data_bytes + 16 * (max_packets + 1)


def copies_in(g: Geometry) -> int:
    """For how many times the packets of a block a ring has room, as `deliveries.copies` counts them."""
    return g.shaped_bytes // _copy_bytes(g.data_bytes, g.max_packets)


def geometry(config: Config, lane: Lane) -> Geometry:
    """Sizes of the ring of `lane`. `ring.block_packets` is lowered where the packets of a block, times the tools that each may go to,
    would exceed `BLOCK_FRAMES`: to 256 packets with 64 tools. `ring.block_bytes` is exceeded by what may stand before the longest frame."""
    del lane  # every lane has the same sizes, so a reload that moves a map to other inputs fits as well
    room = tool_room(config)
    max_packets = min(config.ring.block_packets, BLOCK_FRAMES // room)
    return Geometry(
        n_blocks=config.ring.blocks,
        max_packets=max_packets,
        max_frames=max_packets * room + SEGMENT_FRAMES,
        header_bytes=(max_packets * room + SEGMENT_FRAMES) * HEADER_BYTES,
        data_bytes=config.ring.block_bytes + RECORD_BYTES,
        shaped_bytes=copies(config) * _copy_bytes(config.ring.block_bytes + RECORD_BYTES, max_packets),
        n_filter=config.stages.filter,
        n_encapsulate=config.stages.encapsulate,
        n_send=config.stages.send,
        n_flows=int(config.flows is not None),
        flows_follow_filter=int(config.flows is not None and config.flows.of == "forwarded"),
    )


def flow_sizes(config: Config, g: Geometry) -> FlowSizes | None:
    """Of the file of flows of a lane; None: nothing is metered."""
    if config.flows is None:
        return None
    return FlowSizes(config.flows.max_flows, config.flows.names, config.flows.records, g.max_packets)
