"""What a new configuration means for a running pipeline: each part is kept, reloaded between two blocks, or needs a restart. Pure.

| part | a change needs | because |
|---|---|---|
| node, inputs, stages, ring | restart | they shape the rings, the sockets of capture and the processes |
| http | restart | the listening socket belongs to the supervisor as it was started |
| tools, groups, sets, maps, collector | reload | blocks are stamped with the generation they are handled by |
| tests | reload | they are asked before a policy is put in force |
| more tools per packet than the rings have frames for | restart | as above, but the rings are too small |
| more tools and maps that mask packets than the rings have room for | restart | likewise |
| drain_s | reload | it is looked at when the pipeline stops |
| flows, there or not; their `of`, `layer`, `max_flows`, `names`, `records` | restart | a stage more, or another file in shared memory |
| flows, all else | reload | stage and exporter take it between two blocks |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from broker.config.deliveries import copies
from broker.config.lanes import needed_tools, tool_room
from broker.core.model import Config, PolicyTest

Action = Literal["keep", "reload", "restart"]
RESTART = ("node", "inputs", "stages", "ring", "http")
RELOAD = ("tools", "groups", "sets", "maps", "collector", "drain_s", "tests", "flows")
RESTART_OF_FLOWS = ("of", "layer", "max_flows", "names", "records")


@dataclass(frozen=True, slots=True)
class Change:
    part: str  # a key of the configuration
    action: Action
    reason: str  # in words; empty when kept

    def __str__(self) -> str:
        return f"{self.part}: {self.action}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Changes:
    """One `Change` for each part of the configuration."""

    parts: tuple[Change, ...]

    @property
    def action(self) -> Action:
        """What all of them together need."""
        found = {change.action for change in self.parts}
        return "restart" if "restart" in found else "reload" if "reload" in found else "keep"

    def of(self, action: Action) -> tuple[Change, ...]:
        return tuple(change for change in self.parts if change.action == action)

    def __str__(self) -> str:
        return "\n".join(map(str, self.of("restart") + self.of("reload"))) or "nothing changed"


def diff(old: Config, new: Config, max_tools: int | None = None, max_copies: int | None = None) -> Changes:
    """From `old`, in force, to `new`. `max_tools`: `lanes.tool_room` of the configuration that the pipeline was started with (by default
    of `old`), `max_copies`: `deliveries.copies` of it. Slots and places do not count."""
    changes = []
    for part in RESTART + RELOAD:
        reason = "; ".join(_told(getattr(old, part), getattr(new, part)))
        changes.append(Change(part, _action(part, old, new) if reason else "keep", reason))
    room = tool_room(old) if max_tools is None else max_tools
    if (needed := needed_tools(new)) > room:
        reason = f"a packet may go to {needed} tools, and the rings were made for {room}"
        changes = [_restart(c, reason) if c.part == "tools" else c for c in changes]
    made = copies(old) if max_copies is None else max_copies
    if (wanted := copies(new)) > made:
        reason = f"{wanted} tools and maps change bytes of packets, and the rings were made for {made}"
        changes = [_restart(c, reason) if c.part == "tools" else c for c in changes]
    return Changes(tuple(changes))


def _restart(change: Change, reason: str) -> Change:
    return replace(change, action="restart", reason=f"{change.reason}; {reason}".lstrip("; "))


def _action(part: str, old: Config, new: Config) -> Action:
    if part == "flows":
        reloads = old.flows and new.flows and all(getattr(old.flows, key) == getattr(new.flows, key) for key in RESTART_OF_FLOWS)
        return "reload" if reloads else "restart"
    return "restart" if part in RESTART else "reload"


def _told(old: Any, new: Any) -> Iterable[str]:
    """The differences of one part in words; none when there are none."""
    if isinstance(old, tuple) and any(isinstance(item, PolicyTest) for item in old + new):
        yield from _named(*({f"[{n}]": test for n, test in enumerate(tests)} for tests in (old, new)))
    elif isinstance(old, tuple) and any(is_dataclass(item) for item in old + new):
        before, after = ({item.name: _unplaced(item) for item in items} for items in (old, new))
        yield from _named(before, after)
        if old and list(before) != list(after) and before.keys() == after.keys():
            yield "in another order"
    elif isinstance(old, dict):
        yield from _named(old, new)
    elif old is None or new is None:
        if old is not new:
            yield "added" if old is None else "removed"
    elif is_dataclass(old):
        yield from _fields(old, new)
    elif old != new:
        yield f"{_shown(old)} -> {_shown(new)}"


def _unplaced(item: Any) -> Any:
    return replace(item, slot=0) if hasattr(item, "slot") else item


def _named(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    for name in dict.fromkeys([*old, *new]):
        if name not in new:
            yield f"{name} removed"
        elif name not in old:
            yield f"{name} added"
        elif old[name] != new[name]:
            yield f"{name}: " + ", ".join(_fields(old[name], new[name]))


def _fields(old: Any, new: Any) -> Iterable[str]:
    if not is_dataclass(old) or type(old) is not type(new):
        yield f"{_shown(old)} -> {_shown(new)}"
        return
    for f in (f for f in fields(old) if f.compare):
        before, after = getattr(old, f.name), getattr(new, f.name)
        if before == after or isinstance(before, bytes):
            continue  # the bytes of a packet follow from its fields
        if isinstance(before, tuple) and any(hasattr(item, "name") for item in before + after):
            yield from (f"{f.name}.{text}" for text in _told(before, after))
        elif f.name == "rules":
            yield f"rules {len(before)} -> {len(after)}" if len(before) != len(after) else "rules"
        elif is_dataclass(before) and type(before) is type(after):
            yield from (f"{f.name}.{text}" for text in _fields(before, after))
        else:
            yield f"{f.name} {_shown(before)} -> {_shown(after)}"


def _shown(value: Any) -> str:
    if is_dataclass(value):
        return str(getattr(value, "kind", type(value).__name__))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]" if len(value) <= 4 else f"{len(value)} entries"
    return "none" if value in ("", None) else str(value)
