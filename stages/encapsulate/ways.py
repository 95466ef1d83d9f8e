"""What the bits of a verdict mean, as tables that kernels walk.

A WAY, one for each verdict bit, leads to the ROUTEs of a tool or of the members of a group; a ROUTE is one tool in one shape. The row that
is put together from a configuration holds addresses of private memory: of masks, of the tables of `dedup`, of token buckets. What remembers
traffic is kept over a reload if its tool and what was asked of it stay the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.config.deliveries import PLAIN, deliveries, merged
from broker.core.layout import MAX_FRAME_BYTES, TOOLS
from broker.core.model import Config, Dedup, Group, Limit, Mask, Shape, Tool
from stages.encapsulate.dedup import IGNORE_CHECKSUM, IGNORE_MACS, IGNORE_TAGS, IGNORE_TOS, IGNORE_TTL, Duplicates
from stages.encapsulate.layers import (
    ALL_TAGS,
    STRIP_ERSPAN,
    STRIP_GENEVE,
    STRIP_GRE,
    STRIP_GTP,
    STRIP_MPLS,
    STRIP_VNTAG,
    STRIP_VXLAN,
)
from stages.encapsulate.limit import limiter_for
from stages.encapsulate.masks import FROM_FRAME, FROM_L3, FROM_L4, FROM_PAYLOAD
from stages.encapsulate.patches import SHARE_BY_TOOL, WINDOW_IP

BUCKETS = 1024
"""Of a group: flows are spread over them, and each belongs to a member."""


def _row(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, "<i8") for name in names])


WAY = _row("kind", "first", "n", "before", "buckets_at", "balance", "of_inner", "is_group", "tool", "header_len", "max_data_len", "by_tool")
"""`first`, `n`: its routes. `before`: verdict bits of the same tool or group that go first. `buckets_at`: u1[BUCKETS], a route each.
WAY_PLAIN has what its template says too: nothing else has to be looked at for its frames."""
WAY_NONE, WAY_PLAIN, WAY_ONE, WAY_SHARE, WAY_ALL = range(5)
BALANCE = {"five-tuple": 0, "three-tuple": 1, "two-tuple": 2}

ROUTE = _row(
    "tool", "plain", "alive", "sample_one_in", "sample_packets", "dedup_at", "limit_at", "strip", "push_vlan", "masks_at", "n_masks",
    "mask_checksums", "slice_after", "slice_bytes", "segment_bytes", "max_bytes", "cut_to_mtu", "counted", "priority",
)  # fmt: skip
"""`plain`: nothing is done with its packets. `alive`: 0: not delivered to by a group. `max_bytes`: of the outer IP packet, 0: any; what is
longer is cut (`cut_to_mtu`) or dropped. `counted`: packets sampled from so far."""
SLICE_AFTER = {"": 0, "l2": 1, "l3": 2, "l4": 3}

MASK = _row("what", "base", "at", "n_bytes")
MASK_PAYLOAD, MASK_CARDS, MASK_RANGE = range(3)
_FROM = {"frame": FROM_FRAME, "l3": FROM_L3, "l4": FROM_L4, "payload": FROM_PAYLOAD}

_STRIP = {
    "vlan": ALL_TAGS, "vntag": STRIP_VNTAG, "mpls": STRIP_MPLS, "gre": STRIP_GRE, "erspan": STRIP_ERSPAN, "vxlan": STRIP_VXLAN,
    "geneve": STRIP_GENEVE, "gtp": STRIP_GTP,
}  # fmt: skip
_IGNORE = {"ttl": IGNORE_TTL, "tos": IGNORE_TOS, "checksum": IGNORE_CHECKSUM, "vlan": IGNORE_TAGS, "mac": IGNORE_MACS}


@dataclass(frozen=True, slots=True)
class _Sharing:
    """A group's buckets: for each, its members from the most to the least preferred (routes, u1[BUCKETS, n])."""

    group: Group
    first: int
    preferred: NDArray[np.uint8]
    buckets: NDArray[np.uint8]


class Ways:
    """The tables of a generation. `before`: those of the one before it."""

    def __init__(self, config: Config, templates: NDArray[np.void], before: Ways | None = None) -> None:
        self._duplicates: dict[tuple[str, Dedup], Duplicates] = {}
        self._buckets: dict[tuple[str, Limit], NDArray[np.void]] = {}
        self._evicted: dict[tuple[str, Dedup], int] = dict(before._evicted) if before else {}
        self._slots = {tool.name: tool.slot for tool in config.tools}
        self._before = before
        self._masks: list[NDArray[np.void]] = []
        self._sharing: list[_Sharing] = []
        tools = {tool.name: tool for tool in config.tools}
        groups = {group.name: group for group in config.groups}
        shapes = {m.name: m.shape for m in config.maps}
        ranks = {"": len(config.maps)} | {m.name: n for n, m in enumerate(config.maps)}
        self.ways = np.zeros(TOOLS, WAY)
        routes: list[NDArray[np.void]] = []
        every = deliveries(config)
        for d in every:
            way = self.ways[d.slot : d.slot + 1]
            group = groups.get(d.to)
            members = group.members if group else (d.to,)
            shape = shapes[d.map] if d.map else PLAIN
            rank = ranks[d.map]
            way["before"] = _signed(sum(1 << o.slot for o in every if o.to == d.to and ranks[o.map] < rank))
            way["first"], way["n"] = len(routes), len(members)
            way["kind"] = WAY_ONE if group is None else WAY_ALL if group.mode == "replicate" else WAY_SHARE
            if group is not None:
                way["is_group"] = 1
                way["balance"], way["of_inner"] = BALANCE[group.balance], group.of == "inner"
                if group.mode != "replicate":
                    sharing = _sharing(group, len(routes))
                    self._sharing.append(sharing)
                    way["buckets_at"] = sharing.buckets.ctypes.data
            routes += [self._route(tools[name], merged(shape, tools[name].shape) if d.map else tools[name].shape) for name in members]
        self._before = None
        self.routes = np.concatenate(routes) if routes else np.zeros(0, ROUTE)
        self._find_plain(templates)

    def _find_plain(self, templates: NDArray[np.void]) -> None:
        """Tools that no other way leads to, and with whose packets nothing is done."""
        routes = self.routes
        taken: dict[int, int] = {}
        for way in self.ways:
            for route in routes[int(way["first"]) : int(way["first"]) + int(way["n"])]:
                taken[int(route["tool"])] = taken.get(int(route["tool"]), 0) + 1
        for way in self.ways:
            if way["kind"] != WAY_ONE:
                continue
            route = routes[int(way["first"])]
            template = templates[int(route["tool"])]
            if route["plain"] and taken[int(route["tool"])] == 1 and not int(template["patches"]) & WINDOW_IP:
                way["kind"], way["tool"], way["by_tool"] = WAY_PLAIN, route["tool"], bool(int(template["patches"]) & SHARE_BY_TOOL)
                way["header_len"], way["max_data_len"] = template["header_len"], template["max_data_len"]

    def _route(self, tool: Tool, shape: Shape) -> NDArray[np.void]:
        made = np.zeros(1, ROUTE)
        row: Any = made[0]
        row["tool"], row["alive"] = tool.slot, 1
        segment = tool.segment_bytes if tool.super_frames == "segment" else 0
        row["segment_bytes"] = segment
        row["plain"] = shape == PLAIN and not segment and tool.oversize == "fragment"
        row["cut_to_mtu"] = tool.oversize == "slice"
        if shape.sample:
            row["sample_one_in"], row["sample_packets"] = shape.sample.one_in, shape.sample.by == "packet"
        if shape.dedup:
            row["dedup_at"] = self._table(tool, shape.dedup).at
        if shape.limit:
            row["limit_at"] = self._bucket(tool, shape.limit).ctypes.data
        row["strip"] = sum(_STRIP[name] for name in set(shape.strip))
        row["push_vlan"] = -1 if shape.push_vlan is None else shape.push_vlan
        if shape.mask:
            masks = _masks(shape.mask)
            self._masks.append(masks)
            row["masks_at"], row["n_masks"] = masks.ctypes.data, len(masks)
        row["mask_checksums"] = shape.mask_checksums
        row["priority"] = shape.priority
        row["slice_after"], row["slice_bytes"] = SLICE_AFTER[shape.slice_after], shape.slice_bytes
        return made

    def _table(self, tool: Tool, asked: Dedup) -> Duplicates:
        """What has been on its way to a tool; maps that ask the same share it."""
        key = tool.name, asked
        known = self._before._duplicates if self._before else {}
        if key not in self._duplicates:
            ignored = sum(_IGNORE[name] for name in set(asked.ignore))
            self._duplicates[key] = known.get(key) or Duplicates(asked.packets, asked.within_ms * 1_000_000, ignored)
        return self._duplicates[key]

    def _bucket(self, tool: Tool, asked: Limit) -> NDArray[np.void]:
        key = tool.name, asked
        known = self._before._buckets if self._before else {}
        if key not in self._buckets:
            made = known[key] if key in known else limiter_for(asked.packets_per_s, asked.bits_per_s, asked.burst_ms * 1_000_000)
            self._buckets[key] = made
        return self._buckets[key]

    def mark_alive(self, alive: Sequence[bool]) -> None:
        """`alive`, by tool slot: dead members of groups lose their flows to the others. All dead counts as all alive."""
        self.routes["alive"] = [alive[int(slot)] for slot in self.routes["tool"]]
        for way in self.ways:
            members = self.routes["alive"][int(way["first"]) : int(way["first"]) + int(way["n"])]
            if way["is_group"] and not members.any():
                members[:] = 1
        for sharing in self._sharing:
            there = self.routes["alive"][sharing.first + sharing.preferred.astype(np.int64)] != 0
            choice = there.argmax(axis=1)
            sharing.buckets[:] = np.take_along_axis(sharing.preferred, choice[:, None], axis=1)[:, 0]

    def evicted(self) -> Iterator[tuple[int, int]]:
        """Tool slot, and how many packets its tables had to forget before their time, since this was last asked."""
        for key, table in self._duplicates.items():
            if (n := table.evicted - self._evicted.get(key, 0)) > 0:
                self._evicted[key] = table.evicted
                yield self._slots[key[0]], n

    def set_mtu(self, slot: int, max_bytes: int) -> None:
        """The longest outer IP packet of a tool; 0: any."""
        self.routes["max_bytes"][self.routes["tool"] == slot] = max_bytes

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All memory that the rows point into, and the rows."""
        tables = [table.memory for table in self._duplicates.values()]
        return [self.ways, self.routes, *tables, *self._buckets.values(), *self._masks, *(s.buckets for s in self._sharing)]


def _masks(masks: Sequence[Mask]) -> NDArray[np.void]:
    made = np.zeros(len(masks), MASK)
    for row, mask in zip(made, masks, strict=True):
        whole = not mask.at and not mask.n_bytes
        row["what"] = MASK_CARDS if mask.what == "cards" else MASK_PAYLOAD if mask.what == "payload" and whole else MASK_RANGE
        row["base"], row["at"], row["n_bytes"] = _FROM.get(mask.what, 0), mask.at, mask.n_bytes or MAX_FRAME_BYTES
    return made


def _sharing(group: Group, first: int) -> _Sharing:
    """Weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as in Schindelhauer and Schomaker 2005): a bucket prefers the
    member with the greatest -weight / log(u), u a hash of both names in (0, 1). Who is gone takes nothing but its own buckets along, and
    every broker with the same group decides alike."""
    n = len(group.members)
    if group.mode == "failover":
        preferred = np.tile(np.arange(n, dtype=np.uint8), (BUCKETS, 1))
    else:
        weights = group.weights or (1,) * n
        scores = np.empty((BUCKETS, n))
        for k, (member, weight) in enumerate(zip(group.members, weights, strict=True)):
            scores[:, k] = -weight / np.log(_uniform(member))
        preferred = np.argsort(-scores, axis=1, kind="stable").astype(np.uint8)
    return _Sharing(group, first, preferred, preferred[:, 0].copy())


def _uniform(name: str) -> NDArray[np.float64]:
    """A number in (0, 1) for each bucket; the same in every process."""
    digest = b"".join(hashlib.blake2b(f"{name}/{bucket}".encode(), digest_size=8).digest() for bucket in range(BUCKETS))
    return (np.frombuffer(digest, "<u8").astype(np.float64) + 0.5) / 2.0**64


def _signed(bits: int) -> int:
    return bits - (1 << 64) if bits >> 63 else bits
