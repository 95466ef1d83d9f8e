"""Matrix and locality: beside plain counts, and small worlds whose answer can be seen."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from broker.config.policy import read_sets
from broker.core.errors import TapmeshError
from broker.core.flow_model import Site
from broker.flows.answers.areas import ELSEWHERE, areas_of_sets, pieces
from broker.flows.answers.locality import areas_of_sites, locality
from broker.flows.answers.matrix import matrix, matrix_of_subnets
from broker.flows.answers.store import Store
from broker.flows.answers.times import Period
from tests.flows.answers.records import DAY, HOUR, Record, S, some, write

ALL = Period(DAY * S, DAY * S + 3 * HOUR)
SETS = {
    "one": ("10.1.0.0/24",),
    "part": ("10.1.0.2/31", "2001:db8:1:0:8000::/65"),
    "first": ("10.1.0.2", "10.2.0.0/30"),
    "six": ("2001:db8::/32",),
    "ports": ("80",),
}


def area_of(address: str, nets: dict[str, tuple[str, ...]]) -> str:
    """The one with the narrowest run of addresses around this one, by looking at all."""
    wanted = ip_address(address)
    found = []
    for name, of in nets.items():
        ranges = [ip_network(net) for net in of if not net.isdigit()]
        held = [(int(n.network_address), int(n.broadcast_address)) for n in ranges if n.version == wanted.version]
        if not any(first <= int(wanted) <= last for first, last in held):
            continue
        low = high = int(wanted)
        for _ in held:  # neighbours and overlaps make one run
            low = min([low, *(first for first, last in held if first <= low <= last + 1)])
            high = max([high, *(last for first, last in held if first - 1 <= high <= last)])
        found.append((high - low, name))
    return min(found)[1] if found else ELSEWHERE


def test_pieces_name_the_narrowest_set_of_every_address() -> None:
    rng = random.Random(3)
    nets = {
        f"s{i}": tuple(str(ip_network((rng.randrange(256), bits), strict=False)) for bits in rng.choices(range(24, 33), k=4))
        for i in range(12)
    }
    cut = [(first, name) for version, first, name in pieces(areas_of_sets(read_sets(nets))) if version == 4]
    assert [first for first, _ in cut] == sorted({first for first, _ in cut})
    for address in range(300):
        assert [name for first, name in cut if first <= address][-1] == area_of(f"0.0.{address >> 8}.{address & 255}", nets)


def test_a_matrix_is_a_count_over_all_records(tmp_path: Path) -> None:
    records = some(800, seed=4)
    write(tmp_path, records)
    store = Store(tmp_path, threads=1)
    for of, value in (("bytes", lambda r: r.bytes + r.bytes_back), ("flows", lambda r: not r.flags & 1)):
        expected: Counter[tuple[str, str]] = Counter()
        for r in records:
            expected[area_of(r.source, SETS), area_of(r.destination, SETS)] += value(r)
        answer = matrix(store, ALL, "true", areas_of_sets(read_sets(SETS)), of, "sets")
        assert {row[:2]: row[2] for row in answer.rows} == {k: v for k, v in expected.items() if v}
        assert sum(row[3] for row in answer.rows) == pytest.approx(1)

    def net(address: str) -> str:
        return str(ip_network(f"{address}/{64 if ':' in address else 24}", strict=False))

    by_net: Counter[tuple[str, str]] = Counter()
    for r in records:
        by_net[net(r.source), net(r.destination)] += r.packets + r.packets_back
    assert {row[:2]: row[2] for row in matrix_of_subnets(store, ALL, "true", 24, "packets", 1000).rows} == by_net


SITES = (
    Site("row", within=""),
    Site("rack1", within="row"),
    Site("rack2", within="row"),
    Site("h1", ("10.0.1.0/24",), "rack1"),
    Site("h2", ("$two", "2001:db8:2::/64"), "rack1"),
    Site("h3", ("10.0.3.0/24",), "rack2"),
    Site("alone", ("10.0.4.0/24",)),
)
OF_SITES = read_sets({"two": ("10.0.2.0/24",)})


def world(*talks: tuple[str, str, int]) -> Iterable[Record]:
    return [Record(a, b, bytes=n - 1, bytes_back=1) for a, b, n in talks]


def test_locality_says_what_stays_where_and_what_a_move_would_save(tmp_path: Path) -> None:
    write(
        tmp_path,
        list(
            world(
                ("10.0.1.1", "10.0.1.2", 100),  # within h1
                ("10.0.1.1", "10.0.1.1", 5000),  # with itself: moves along
                ("10.0.1.1", "10.0.2.1", 700),  # rack1
                ("10.0.2.1", "10.0.1.1", 300),  # the same pair
                ("10.0.2.1", "10.0.2.2", 5000),  # 10.0.2.1 is at home
                ("10.0.1.2", "10.0.3.1", 50),  # row
                ("10.0.3.1", "10.0.4.1", 20),  # across
                ("10.0.3.1", "192.0.2.1", 9),  # unknown
                ("10.0.9.8", "10.0.9.9", 1),
            )
        ),
    )
    answer = locality(Store(tmp_path, threads=1), ALL, "true", SITES, OF_SITES, 10)
    assert answer.facts["bytes_by_level"] == {
        "within one site": 10_100, "rack1": 1000, "row": 50, "across": 20, "to or from no site": 10,
    }  # fmt: skip
    assert list(answer.rows) == [
        # 10.0.1.1 has 1000 with h2 and 100 at home
        ("10.0.1.1", "h1", "10.0.2.1", "h2", 1000, "rack1", "10.0.1.1", "h2", 900),
        # 10.0.3.1 has nothing at home, 10.0.1.2 has 100
        ("10.0.1.2", "h1", "10.0.3.1", "h3", 50, "row", "10.0.3.1", "h1", 50),
        # both have nothing at home: the first of both
        ("10.0.3.1", "h3", "10.0.4.1", "alone", 20, "across", "10.0.3.1", "alone", 20),
    ]
    assert answer.notes[0] == "90.3 % within one site"


def test_where_nothing_is_known_of_sites_or_sets_that_is_said() -> None:
    with pytest.raises(TapmeshError, match=r"flows\.sites"):
        areas_of_sites((), {})
    with pytest.raises(TapmeshError, match=r"unknown set \$nowhere"):
        areas_of_sites((Site("x", ("$nowhere",)),), {})
    with pytest.raises(TapmeshError, match="no set with addresses"):
        areas_of_sets(read_sets({"ports": ("80",)}))
