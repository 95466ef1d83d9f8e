"""Named ranges of addresses (sets, sites), and which of them an address is in: the narrowest.

The ranges are cut into pieces that do not overlap, each with one name; a table of their beginnings is what addresses are looked up in. Only
addresses that differ are looked up, so that it costs nothing beside reading the records.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from broker.config.policy.sets import Elements, Range
from broker.core.errors import TapmeshError
from broker.flows.answers.groups import by_address
from broker.flows.answers.store import Store

ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True)
class Area:
    name: str
    ranges4: tuple[Range, ...]
    ranges6: tuple[Range, ...]


def areas_of_sets(sets: Mapping[str, Elements]) -> list[Area]:
    """Of the sets that hold addresses. TapmeshError: there are none."""
    found = [Area(name, elements.ranges4, elements.ranges6) for name, elements in sets.items() if elements.ranges4 or elements.ranges6]
    if not found:
        raise TapmeshError("by sets: no set with addresses is known; give --config with 'sets'")
    return found


def pieces(areas: list[Area]) -> list[tuple[int, int, str]]:
    """(version, first address, name), ascending; each holds up to the next. Of equal width the first name in the alphabet has it."""
    found: list[tuple[int, int, str]] = []
    for version, of in ((4, [a.ranges4 for a in areas]), (6, [a.ranges6 for a in areas])):
        ranges = sorted((first, last, area.name) for area, those in zip(areas, of, strict=True) for first, last in those)
        cuts = sorted({0, *(first for first, _, _ in ranges), *(last + 1 for _, last, _ in ranges)})
        open_: list[tuple[int, str, int]] = []  # (width, name, last) of what has begun, the narrowest first
        at = 0
        for cut in cuts:
            while at < len(ranges) and ranges[at][0] == cut:
                first, last, name = ranges[at]
                heapq.heappush(open_, (last - first, name, last))
                at += 1
            while open_ and open_[0][2] < cut:
                heapq.heappop(open_)
            name = open_[0][1] if open_ else ELSEWHERE
            if not found or found[-1][0] != version or found[-1][2] != name:
                found.append((version, cut, name))
    return [piece for piece in found if piece[1] < 1 << (32 if piece[0] == 4 else 128)]


_ADDRESS = "({end}_high::UHUGEINT * 18446744073709551616::UHUGEINT + {end}_low)"


def make_pairs(store: Store, records: str, areas: list[Area], measures: list[str]) -> None:
    """The table `pairs`: version, source_high, source_low, destination_high, destination_low, `measures`, and the areas of both ends,
    `source_area` and `destination_area`."""
    store.make_table("pieces", [("version", "UTINYINT"), ("first", "UHUGEINT"), ("name", "VARCHAR")], pieces(areas))
    ends = ("source", "destination")
    store.run(f"CREATE OR REPLACE TEMP TABLE talks AS {by_address(records, ends, (), measures)}")
    addresses = " UNION ".join(f"SELECT version, {_ADDRESS.format(end=end)} AS address FROM talks" for end in ends)
    store.run(f"""
        CREATE OR REPLACE TEMP TABLE named AS
        SELECT a.version, a.address, p.name FROM ({addresses}) a ASOF JOIN pieces p ON a.version = p.version AND a.address >= p.first""")
    joins = " ".join(
        f"JOIN named {end}s ON {end}s.version = t.version AND {end}s.address = {_ADDRESS.format(end=f't.{end}')}" for end in ends
    )
    store.run(
        f"CREATE OR REPLACE TEMP TABLE pairs AS SELECT t.*, sources.name AS source_area, destinations.name AS destination_area "
        f"FROM talks t {joins}"
    )
