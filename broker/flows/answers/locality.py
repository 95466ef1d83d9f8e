"""What stays where it is, and who should be neighbours: `tapmesh flows locality`.

Sites are hosts, or what holds hosts. Traffic between two addresses stays within the narrowest site that holds both. What moving one of a
pair to the other's site would keep off the network is what it talks to that site now, less what it talks to at home.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.config.policy.errors import PolicyError
from broker.config.policy.sets import Elements, read_set
from broker.core.errors import TapmeshError
from broker.core.flow_model import Site
from broker.flows.answers.answer import Answer, Cell, Column, text
from broker.flows.answers.areas import ELSEWHERE, Area, make_pairs
from broker.flows.answers.groups import BYTES, shown
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period

TOGETHER, ACROSS, UNKNOWN = "within one site", "across", "to or from no site"


def areas_of_sites(sites: Sequence[Site], sets: Mapping[str, Elements]) -> list[Area]:
    """TapmeshError: there are none."""
    found = []
    for site in sites:
        try:
            every = [sets[net[1:]] if net.startswith("$") else read_set(site.name, (net,)) for net in site.nets]
        except KeyError as missing:
            raise TapmeshError(f"site '{site.name}': unknown set ${missing.args[0]}") from None
        except PolicyError as error:
            raise TapmeshError(f"site '{site.name}': {error.message}") from None
        found.append(Area(site.name, tuple(r for e in every for r in e.ranges4), tuple(r for e in every for r in e.ranges6)))
    if not found:
        raise TapmeshError("by sites: none are known; give --config with 'flows.sites'")
    return found


def held_by(sites: Sequence[Site]) -> dict[str, list[str]]:
    """Name: itself, then what holds it, and so on."""
    within = {site.name: site.within for site in sites}
    chains = {}
    for name in within:
        chain = [name]
        while within.get(chain[-1]) and within[chain[-1]] not in chain:
            chain.append(within[chain[-1]])
        chains[name] = chain
    return chains


def common(a: str, b: str, chains: Mapping[str, list[str]]) -> str:
    """The narrowest site that holds both; ACROSS, UNKNOWN."""
    if ELSEWHERE in (a, b):
        return UNKNOWN
    return next((name for name in chains[a] if name in chains[b]), ACROSS)


@dataclass(frozen=True, slots=True)
class _Move:
    who: str
    from_: str
    to: str
    saved: int


def locality(store: Store, period: Period, condition: str, sites: Sequence[Site], sets: Mapping[str, Elements], limit: int) -> Answer:
    """Rows: pairs of addresses at different sites by bytes, with the better of both moves. Facts: bytes by what they stay within."""
    make_pairs(store, store.flows(period, condition), areas_of_sites(sites, sets), [f"{BYTES}::BIGINT AS n"])
    chains = held_by(sites)
    hosts = {site.name for site in sites} - {site.within for site in sites}
    by_level = _levels(store, chains, hosts)
    store.run("""
        CREATE OR REPLACE TEMP VIEW others AS
        SELECT * FROM pairs WHERE NOT (source_high = destination_high AND source_low = destination_low)""")
    store.run("""
        CREATE OR REPLACE TEMP TABLE talked AS
        SELECT version, high, low, site, sum(n)::BIGINT AS n FROM (
            SELECT version, source_high AS high, source_low AS low, destination_area AS site, n FROM others
            UNION ALL SELECT version, destination_high, destination_low, source_area, n FROM others)
        GROUP BY ALL""")
    rows = store.run(f"""
        WITH either AS (
            SELECT version, a_high, a_low, a_site, b_high, b_low, b_site, sum(n)::BIGINT AS n FROM (
                SELECT version, source_high AS a_high, source_low AS a_low, source_area AS a_site,
                    destination_high AS b_high, destination_low AS b_low, destination_area AS b_site, n FROM others
                WHERE (source_high, source_low) <= (destination_high, destination_low)
                UNION ALL SELECT version, destination_high, destination_low, destination_area, source_high, source_low, source_area, n
                FROM others
                WHERE (source_high, source_low) > (destination_high, destination_low))
            WHERE a_site <> b_site AND a_site <> '{ELSEWHERE}' AND b_site <> '{ELSEWHERE}'
            GROUP BY ALL ORDER BY n DESC, version, a_high, a_low, b_high, b_low LIMIT {limit})
        SELECT e.*, a_there.n, coalesce(a_home.n, 0), b_there.n, coalesce(b_home.n, 0) FROM either e
        JOIN talked a_there ON (a_there.version, a_there.high, a_there.low, a_there.site) = (e.version, a_high, a_low, b_site)
        LEFT JOIN talked a_home ON (a_home.version, a_home.high, a_home.low, a_home.site) = (e.version, a_high, a_low, a_site)
        JOIN talked b_there ON (b_there.version, b_there.high, b_there.low, b_there.site) = (e.version, b_high, b_low, a_site)
        LEFT JOIN talked b_home ON (b_home.version, b_home.high, b_home.low, b_home.site) = (e.version, b_high, b_low, b_site)
        ORDER BY e.n DESC, e.version, a_high, a_low, b_high, b_low""")
    whole = sum(by_level.values())
    notes = [f"{_percent(n, whole)} {_words(level)}" for level, n in by_level.items()]
    return Answer(
        f"locality: pairs at different sites, and what should move, {period}",
        (
            *(text("address"), text("site"), text("other", "talks to"), text("other_site", "at"), Column("bytes", "bytes", "bytes")),
            *(text("stays_within", "within"), text("move"), text("to"), Column("saved_bytes", "saves", "bytes")),
        ),
        [_row(row, chains) for row in rows],
        tuple(notes),
        {"bytes_by_level": by_level},
        picture=draw,
        drawn=[(_words(level), n) for level, n in by_level.items()],
    )


def _levels(store: Store, chains: Mapping[str, list[str]], hosts: set[str]) -> dict[str, int]:
    """Hosts together, each site that holds others, across, unknown."""
    found: dict[str, int] = {TOGETHER: 0}
    for source, destination, n in store.run("SELECT source_area, destination_area, sum(n)::BIGINT FROM pairs GROUP BY ALL"):
        level = common(source, destination, chains)
        level = TOGETHER if level in hosts else level
        found[level] = found.get(level, 0) + n
    holders = sorted((name for name in found if name in chains), key=lambda name: (-len(chains[name]), name))  # the narrowest first
    order = [TOGETHER, *holders, ACROSS, UNKNOWN]
    return {name: found[name] for name in order if name in found}


def _words(level: str) -> str:
    return {TOGETHER: TOGETHER, ACROSS: "across all that is known", UNKNOWN: UNKNOWN}.get(level, f"within {level}")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _row(row: tuple[int, ...] | tuple[object, ...], chains: Mapping[str, list[str]]) -> tuple[Cell, ...]:
    version, a_high, a_low, a_site, b_high, b_low, b_site, n, a_there, a_home, b_there, b_home = row
    a, b = shown(version, a_high, a_low), shown(version, b_high, b_low)  # type: ignore[arg-type]
    moves = [_Move(a, a_site, b_site, a_there - a_home), _Move(b, b_site, a_site, b_there - b_home)]  # type: ignore[arg-type, operator]
    best = max(moves, key=lambda move: move.saved)
    saves = (best.who, best.to, best.saved) if best.saved > 0 else ("neither", "", 0)
    return (a, a_site, b, b_site, n, common(str(a_site), str(b_site), chains), *saves)  # type: ignore[return-value]


def draw(answer: Answer, path: Path) -> None:
    from broker.flows.answers import plots

    columns = (text("level"), Column("bytes", "bytes", "bytes"))
    title = answer.title.replace("pairs at different sites, and what should move", "where traffic stays")
    plots.bars(Answer(title, columns, answer.drawn), path)
