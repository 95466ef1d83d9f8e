"""The ledger: every packet that came was delivered, or dropped for a counted reason, or is in flight. Pure: a Snapshot in, a Ledger out.

Per lane, in packets::

    received = forwarded + filtered + dropped, by reason + in flight
    received = captured + filtered in the kernel + dropped at the door, by reason
    filtered: by the filter, and before it in the kernel
    in flight: published by capture, not yet judged - measured in the ring

Per tool, in frames (a packet that two tools want is two frames)::

    wanted = delivered + dropped, by reason + in flight
    framed = delivered + refused by send, by reason + in flight behind encapsulate

Wanted is what maps and the collector ask of the tool, in whatever shape, and what groups give it; what several of them ask is wanted once,
and a super-frame that is cut is wanted as often as it has segments. Per group, in packets::

    wanted = given to members + in flight

Of the flows stage, which reads beside the path, in packets: see `flow_ledger`.

What each line is off by is told, never evened out. Drop reasons are the rows of `metrics` named ``dropped_*``; nothing here knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from broker.config.deliveries import group_of, tool_of
from broker.core.layout import STAGES
from broker.core.metrics import COUNTERS, WIDTH, index
from broker.supervisor.flow_ledger import FlowsLedger, flows_ledger
from broker.supervisor.rule_counts import RuleCount
from broker.supervisor.snapshot import Counts, LaneSnapshot, Snapshot
from broker.supervisor.totals import drops, scalar, total

FORMAT = 1


@dataclass(frozen=True)
class LaneLedger:
    lane: int
    received_packets: int
    captured_packets: int
    forwarded_packets: int
    collected_packets: int
    filtered_packets: int
    filtered_in_kernel_packets: int  # part of filtered
    dropped: dict[str, int]
    in_flight_packets: int
    off_by: int
    trouble: str


@dataclass(frozen=True)
class InputLedger:
    input: str
    received_packets: int
    captured_packets: int
    captured_bytes: int
    filtered_in_kernel_packets: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class MapLedger:
    map: str
    rules: tuple[RuleCount, ...]  # in force, in their order, with what they counted before a reload; empty if the snapshot has none
    passed_packets: int
    passed_bytes: int
    dropped_packets: int
    dropped_bytes: int
    undetermined_packets: int


@dataclass(frozen=True)
class ToolLedger:
    tool: str
    wanted_frames: int
    delivered_frames: int
    delivered_bytes: int
    dropped: dict[str, int]
    in_flight_frames: int
    off_by: int
    framed_off_by: int
    repeated_frames: int


@dataclass(frozen=True)
class GroupLedger:
    group: str
    wanted_packets: int
    shared_packets: int
    dropped: dict[str, int]
    in_flight_packets: int
    off_by: int


@dataclass(frozen=True)
class Totals:
    """All lanes together, in packets. Their fates add up to what was received when the ledger closes."""

    received: int
    forwarded: int
    collected: int  # part of forwarded
    filtered: int
    filtered_in_kernel: int  # part of filtered
    dropped: dict[str, int]  # reason -> packets, at the door and in the filter
    in_flight: int

    @property
    def accounted(self) -> int:
        return self.forwarded + self.filtered + sum(self.dropped.values()) + self.in_flight


@dataclass(frozen=True)
class Ledger:
    lanes: tuple[LaneLedger, ...]
    inputs: tuple[InputLedger, ...]
    maps: tuple[MapLedger, ...]
    tools: tuple[ToolLedger, ...]
    groups: tuple[GroupLedger, ...]
    judged_off_by: int  # packets judged, less those with a counted fate
    flows: FlowsLedger | None = None  # None: there is no flows stage

    @property
    def balanced(self) -> bool:
        return not self.faults()

    @property
    def totals(self) -> Totals:
        dropped: dict[str, int] = {}
        for lane in self.lanes:
            for reason, n in lane.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + n
        return Totals(
            sum(lane.received_packets for lane in self.lanes),
            sum(lane.forwarded_packets for lane in self.lanes),
            sum(lane.collected_packets for lane in self.lanes),
            sum(lane.filtered_packets for lane in self.lanes),
            sum(lane.filtered_in_kernel_packets for lane in self.lanes),
            dropped,
            sum(lane.in_flight_packets for lane in self.lanes),
        )

    @property
    def in_flight(self) -> int:
        """Packets and frames that the rings still hold."""
        return sum(lane.in_flight_packets for lane in self.lanes) + sum(t.in_flight_frames for t in self.tools)

    def faults(self) -> list[str]:
        """In words, every line that does not add up; empty when the ledger closes."""
        words = []
        for lane in self.lanes:
            if lane.trouble:
                words.append(f"lane {lane.lane}: could not be measured: {lane.trouble}")
            elif lane.off_by:
                words.append(f"lane {lane.lane}: {_off(lane.off_by, 'packets')} between capture and filter")
        if self.judged_off_by:
            words.append(f"filter: {_off(self.judged_off_by, 'packets')} judged without a counted fate")
        for tool in self.tools:
            if tool.off_by:
                words.append(f"tool {tool.tool}: {_off(tool.off_by, 'frames')} between wanted and delivered or dropped")
            elif tool.framed_off_by:
                words.append(f"tool {tool.tool}: {_off(tool.framed_off_by, 'frames')} between encapsulate and send")
        words += [
            f"group {group.group}: {_off(group.off_by, 'packets')} between wanted and shared" for group in self.groups if group.off_by
        ]
        if self.flows is not None and self.flows.off_by:
            words.append(f"flows: {_off(self.flows.off_by, 'packets')} between capture and the flows stage")
        return words

    def as_json(self, *, rules: bool = True) -> dict[str, Any]:
        """Plain values in a fixed order. Holds no time, no pid and no path: equal runs give equal bytes. `rules`: all of them too."""
        return {
            "format": FORMAT,
            "balanced": self.balanced,
            "faults": self.faults(),
            "packets": asdict(self.totals),
            "lanes": [
                {
                    "lane": lane.lane,
                    "received_packets": lane.received_packets,
                    "forwarded_packets": lane.forwarded_packets,
                    "collected_packets": lane.collected_packets,
                    "filtered_packets": lane.filtered_packets,
                    "filtered_in_kernel_packets": lane.filtered_in_kernel_packets,
                    "dropped_packets": lane.dropped,
                    "in_flight_packets": lane.in_flight_packets,
                    "off_by": lane.off_by,
                }
                for lane in self.lanes
            ],
            "inputs": {
                i.input: {
                    "received_packets": i.received_packets,
                    "captured_packets": i.captured_packets,
                    "captured_bytes": i.captured_bytes,
                    "filtered_in_kernel_packets": i.filtered_in_kernel_packets,
                    "dropped_packets": i.dropped,
                }
                for i in self.inputs
            },
            "maps": {
                m.map: {
                    "passed_packets": m.passed_packets,
                    "passed_bytes": m.passed_bytes,
                    "dropped_packets": m.dropped_packets,
                    "dropped_bytes": m.dropped_bytes,
                    "undetermined_packets": m.undetermined_packets,
                    **({"rules": [_rule_json(rule) for rule in m.rules]} if rules else {}),
                }
                for m in self.maps
            },
            "tools": {
                t.tool: {
                    "wanted_frames": t.wanted_frames,
                    "delivered_frames": t.delivered_frames,
                    "delivered_bytes": t.delivered_bytes,
                    "dropped_frames": t.dropped,
                    "in_flight_frames": t.in_flight_frames,
                    "repeated_frames_at_most": t.repeated_frames,
                    "off_by": t.off_by or t.framed_off_by,
                }
                for t in self.tools
            },
            "groups": {
                g.group: {
                    "wanted_packets": g.wanted_packets,
                    "shared_packets": g.shared_packets,
                    "dropped_packets": g.dropped,
                    "in_flight_packets": g.in_flight_packets,
                    "off_by": g.off_by,
                }
                for g in self.groups
            },
            **({"flows": asdict(self.flows)} if self.flows is not None else {}),
        }


def _rule_json(rule: RuleCount) -> dict[str, Any]:
    return {name: value for name, value in asdict(rule).items() if name != "map"}


def _off(n: int, unit: str) -> str:
    return f"{abs(n):,} {unit} {'missing' if n > 0 else 'too many'}"


def balance(snapshot: Snapshot) -> Ledger:
    totals = {stage: total(snapshot.lanes, stage) for stage in STAGES}
    lanes = tuple(map(_lane, snapshot.lanes))
    judged = scalar(totals["filter"], "filter", "judged_packets")
    of_map: dict[str, list[RuleCount]] = {}
    for rule in snapshot.rules:
        of_map.setdefault(rule.map, []).append(rule)
    judged_filtered = scalar(totals["filter"], "filter", "filtered_packets")
    fates = sum(lane.forwarded_packets for lane in lanes) + judged_filtered + sum(drops(totals["filter"], "filter", "", 0).values())
    return Ledger(
        lanes,
        tuple(_input(totals["capture"], name, slot) for slot, name in _slots(snapshot, totals, "input")),
        tuple(_map(totals["filter"], name, slot, of_map.get(name, [])) for slot, name in _slots(snapshot, totals, "map")),
        tuple(_tool(snapshot, totals, name, slots) for name, slots in _deliveries(snapshot, totals, tool_of).items()),
        tuple(_group(snapshot, totals, name, slots) for name, slots in _deliveries(snapshot, totals, group_of).items()),
        judged - fates,
        flows_ledger(snapshot.lanes),
    )


def _slots(snapshot: Snapshot, totals: dict[str, Counts], per: str) -> list[tuple[int, str]]:
    """Slots that have a name, and those that have none but did count something."""
    used = set(snapshot.names.known(per))
    for stage in STAGES:
        for c in COUNTERS:
            if c.stage == stage and c.per == per:
                at = index(stage, c.name)
                used |= set(np.flatnonzero(totals[stage][at : at + WIDTH[c.per]]).tolist())
    return [(slot, snapshot.names.of(per, slot)) for slot in sorted(used)]


def _lane(lane: LaneSnapshot) -> LaneLedger:
    capture, judge = total([lane], "capture"), total([lane], "filter")
    captured, in_kernel = (
        int(capture[(at := index("capture", name)) : at + WIDTH["input"]].sum())
        for name in ("captured_packets", "filtered_in_kernel_packets")
    )
    door = dict.fromkeys(drops(capture, "capture", "input", 0), 0)
    for slot in range(WIDTH["input"]):
        for reason, n in drops(capture, "capture", "input", slot).items():
            door[reason] += n
    dropped = door | drops(judge, "filter", "", 0)
    received = captured + in_kernel + sum(door.values())
    forwarded, filtered = scalar(judge, "filter", "forwarded_packets"), scalar(judge, "filter", "filtered_packets") + in_kernel
    return LaneLedger(
        lane.number,
        received,
        captured,
        forwarded,
        scalar(judge, "filter", "collected_packets"),
        filtered,
        in_kernel,
        dropped,
        lane.unjudged_packets,
        received - forwarded - filtered - sum(dropped.values()) - lane.unjudged_packets,
        lane.trouble,
    )


def _input(capture: Counts, name: str, slot: int) -> InputLedger:
    dropped = drops(capture, "capture", "input", slot)
    captured = scalar(capture, "capture", "captured_packets", slot)
    captured_bytes = scalar(capture, "capture", "captured_bytes", slot)
    in_kernel = scalar(capture, "capture", "filtered_in_kernel_packets", slot)
    return InputLedger(name, captured + in_kernel + sum(dropped.values()), captured, captured_bytes, in_kernel, dropped)


def _map(judge: Counts, name: str, slot: int, rules: list[RuleCount]) -> MapLedger:
    rows = ("passed_packets", "passed_bytes", "dropped_packets", "dropped_bytes", "undetermined_packets")
    return MapLedger(name, tuple(rules), *(scalar(judge, "filter", f"map_{row}", slot) for row in rows))


def _deliveries(snapshot: Snapshot, totals: dict[str, Counts], owner: Callable[[str], str]) -> dict[str, list[int]]:
    """The slots of each tool or group: its own, and those of the shapes of maps."""
    found: dict[str, list[int]] = {}
    for slot, name in _slots(snapshot, totals, "tool"):
        if owner(name):
            found.setdefault(owner(name), []).append(slot)
    return found


def _summed(row: Counts, stage: str, name: str, slots: list[int]) -> int:
    return sum(scalar(row, stage, name, slot) for slot in slots)


def _tool(snapshot: Snapshot, totals: dict[str, Counts], name: str, slots: list[int]) -> ToolLedger:
    framing = totals["encapsulate"]
    given, merged, framed = (_summed(framing, "encapsulate", f"{row}_frames", slots) for row in ("given", "merged", "framed"))
    wanted = _summed(totals["filter"], "filter", "wanted_frames", slots) + given - merged
    delivered, n_bytes, repeated = (
        _summed(totals["send"], "send", row, slots) for row in ("delivered_frames", "delivered_bytes", "repeated_frames")
    )
    unframed = sum(int(lane.unframed[slots].sum()) for lane in snapshot.lanes)
    unsent = sum(int(lane.unsent[slots].sum()) for lane in snapshot.lanes)
    not_framed, refused = (_drops_of(totals[stage], stage, slots) for stage in ("encapsulate", "send"))
    dropped = not_framed | refused
    return ToolLedger(
        name,
        wanted,
        delivered,
        n_bytes,
        dropped,
        unframed + unsent,
        wanted - delivered - sum(dropped.values()) - unframed - unsent,
        framed - delivered - sum(refused.values()) - unsent,
        repeated,
    )


def _group(snapshot: Snapshot, totals: dict[str, Counts], name: str, slots: list[int]) -> GroupLedger:
    merged = _summed(totals["encapsulate"], "encapsulate", "merged_frames", slots)
    wanted = _summed(totals["filter"], "filter", "wanted_frames", slots) - merged
    shared = _summed(totals["encapsulate"], "encapsulate", "shared_packets", slots)
    unframed = sum(int(lane.unframed[slots].sum()) for lane in snapshot.lanes)
    dropped = {reason: n for reason, n in _drops_of(totals["encapsulate"], "encapsulate", slots).items() if n}
    return GroupLedger(name, wanted, shared, dropped, unframed, wanted - shared - sum(dropped.values()) - unframed)


def _drops_of(row: Counts, stage: str, slots: list[int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for slot in slots:
        for reason, n in drops(row, stage, "tool", slot).items():
            found[reason] = found.get(reason, 0) + n
    return found
