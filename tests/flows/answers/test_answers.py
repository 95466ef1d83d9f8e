"""Each answer beside a slow count in plain Python over the same records."""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from broker.cli import flows_output
from broker.cli.main import main
from broker.config.records.expression import where
from broker.core.errors import TapmeshError
from broker.flows.answers import plots
from broker.flows.answers.access import access
from broker.flows.answers.answer import Answer
from broker.flows.answers.gaps import gaps
from broker.flows.answers.listing import listing
from broker.flows.answers.new import new
from broker.flows.answers.parquet import write_parquet
from broker.flows.answers.services import service
from broker.flows.answers.store import Store
from broker.flows.answers.talks import conversations, services
from broker.flows.answers.times import Period
from broker.flows.answers.top import BY, OF, top
from tests.flows.answers.records import DAY, HOUR, Record, S, some, write

ALL = Period(DAY * S, DAY * S + 3 * HOUR)
MANY = 10_000


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return some(2500, seed=11)


@pytest.fixture(scope="module")
def store(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Store:
    directory = tmp_path_factory.mktemp("store")
    write(directory, records)
    return Store(directory, threads=1)


def measured(records: Iterable[Record]) -> dict[str, int]:
    found = list(records)
    return {
        "bytes": sum(r.bytes + r.bytes_back for r in found),
        "packets": sum(r.packets + r.packets_back for r in found),
        "flows": sum(not r.flags & 1 for r in found),
    }


def grouped(records: Iterable[Record], keys: Callable[[Record], Iterable[Any]]) -> dict[Any, list[Record]]:
    found = defaultdict(list)
    for record in records:
        for key in keys(record):
            found[key].append(record)
    return found


def service_of(r: Record) -> str:
    return service(r.source_port if r.protocol in (1, 58) else r.destination_port, r.protocol)


KEYS: dict[str, Callable[[Record], Iterable[Any]]] = {
    "source": lambda r: [(r.source,)],
    "destination": lambda r: [(r.destination,)],
    "address": lambda r: {(r.source,), (r.destination,)},
    "conversation": lambda r: [(r.source, r.destination)],
    "service": lambda r: [(service_of(r),)],
    "protocol": lambda r: [({6: "tcp", 17: "udp", 132: "sctp", 47: "gre", 1: "icmp", 58: "icmp6"}[r.protocol],)],
    "port": lambda r: [(r.destination_port,)] if r.protocol in (6, 17, 132) else [],
    "name": lambda r: [(r.name,)] if r.name else [],
    "vlan": lambda r: [(r.vlan,)],
    "input": lambda r: [(r.node, r.input)],
    "tunnel": lambda r: [(r.tunnel or "none", r.tunnel_id)],
}


@pytest.mark.parametrize("by", BY)
def test_top_is_a_count_over_all_records(store: Store, records: list[Record], by: str) -> None:
    matching = [r for r in records if r.input != "it's"]
    counted = {key: measured(group) for key, group in grouped(matching, KEYS[by]).items()}
    whole = measured(r for r in matching if KEYS[by](r))
    for of in (OF, ("flows", "bytes")):
        rows = top(store, ALL, where('not input "it\'s"', {}), by, of, MANY).rows
        n = len(rows[0]) - len(of) - 1
        assert {row[:n]: dict(zip(of, row[n:-1], strict=True)) for row in rows} == {k: {m: v[m] for m in of} for k, v in counted.items()}
        assert [row[n] for row in rows] == sorted((row[n] for row in rows), reverse=True)
        assert [row[-1] for row in rows] == pytest.approx([row[n] / whole[of[0]] for row in rows])
        assert top(store, ALL, where('not input "it\'s"', {}), by, of, 3).rows == rows[:3]


def test_a_time_is_from_its_first_moment_to_before_its_last(store: Store, records: list[Record]) -> None:
    ordered = sorted(r.last_ns for r in records)
    for from_, to in (
        (ordered[10], ordered[-10]),
        (DAY * S + HOUR, DAY * S + 2 * HOUR),
        (DAY * S + HOUR // 2, DAY * S + HOUR // 2 + 60 * S),
    ):
        rows = listing(store, Period(from_, to), "true", MANY).rows
        assert sorted(row[0] for row in rows) == [t for t in ordered if from_ <= t < to]
    assert listing(store, Period(0, DAY * S), "true", 5).rows == []


def test_the_list_is_newest_first(store: Store, records: list[Record]) -> None:
    rows = listing(store, ALL, where("tcp", {}), 20).rows
    expected = sorted((r for r in records if r.protocol == 6), key=lambda r: -r.last_ns)[:20]
    shown = [(r.last_ns, r.last_ns - r.first_ns, r.packets, r.packets_back, r.bytes, r.bytes_back, r.vlan, r.name) for r in expected]
    assert [(*row[:2], *row[5:9], row[13], row[15]) for row in rows] == shown
    assert [row[3] for row in rows] == [
        f"[{r.source}]:{r.source_port}" if ":" in r.source else f"{r.source}:{r.source_port}" for r in expected
    ]


def median_rtt(group: list[Record]) -> float | None:
    seen = [r.rtt_source_us + r.rtt_destination_us for r in group if r.rtt_source_us and r.rtt_destination_us]
    return statistics.median(seen) if seen else None


def test_conversations_and_services_are_counts_over_all_records(store: Store, records: list[Record]) -> None:
    expected = {
        key: (
            sum(r.bytes for r in group), sum(r.bytes_back for r in group), sum(r.packets + r.packets_back for r in group),
            sum(not r.flags & 1 for r in group), min(r.first_ns for r in group), max(r.last_ns for r in group), median_rtt(group),
        )
        for key, group in grouped(records, lambda r: [(r.source, r.destination, service_of(r))]).items()
    }  # fmt: skip
    assert {row[:3]: row[3:] for row in conversations(store, ALL, "true", MANY).rows} == expected
    of_services = {
        key: (
            len({r.source for r in group}), len({r.destination for r in group}), *(measured(group)[m] for m in ("flows", "bytes")),
            sum(not r.packets_back for r in group) / len(group), median_rtt(group),
        )
        for key, group in grouped(records, lambda r: [service_of(r)]).items()
    }  # fmt: skip
    assert {row[0]: row[1:] for row in services(store, ALL, "true", MANY).rows} == of_services


def test_new_is_what_was_not_there_before(store: Store, records: list[Record]) -> None:
    since = DAY * S + 2 * HOUR

    def key(r: Record) -> tuple[str, str, str]:
        return r.source, r.destination, service_of(r)

    before = {key(r) for r in records if r.last_ns < since}
    now = grouped((r for r in records if r.last_ns >= since and r.protocol in (6, 17)), lambda r: [key(r)])
    fresh = {k: group for k, group in now.items() if k not in before}
    sure = {k for k, group in fresh.items() if any(r.protocol != 6 or r.flags & 2 for r in group)}
    assert 0 < len(sure) < len(fresh) < len(now)
    tcp_or_udp = where("tcp or udp", {})
    for unsure, expected in ((False, sure), (True, set(fresh))):
        answer = new(store, Period(since, ALL.to_ns), tcp_or_udp, 30, MANY, unsure=unsure)
        assert {row[:3] for row in answer.rows} == expected
        for row in answer.rows:
            group = fresh[row[:3]]
            assert row[3:8] == (
                min(r.first_ns for r in group), sum(not r.flags & 1 for r in group), sum(r.bytes for r in group),
                sum(r.bytes_back for r in group), sum(r.packets_back > 0 for r in group),
            )  # fmt: skip
    notes = " ".join(new(store, Period(since, ALL.to_ns), tcp_or_udp, 30, MANY).notes)
    assert f"{len(fresh) - len(sure)} more whose beginning was not seen" in notes
    assert "records go back 0.1 days only" in notes
    assert len(new(store, Period(since, ALL.to_ns), tcp_or_udp, 30, 2).rows) == 2


def test_who_reached_a_server_is_complete_and_says_what_is_missing(records: list[Record], tmp_path: Path) -> None:
    lost = [r for i, r in enumerate(records) if i not in (700, 701, 1200)]
    write(tmp_path, lost)
    store = Store(tmp_path, threads=1)
    answer = access(store, ALL, where("dst net 10.1.0.0/30 and dst portrange 53-80", {}), "10.1.0.0/30 port 53-80", ALL.to_ns)
    reached = [r for r in lost if r.destination in ("10.1.0.1", "10.1.0.2", "10.1.0.3") and r.protocol in (6, 17, 132)]
    expected = {
        key: (
            sum(not r.flags & 1 for r in group), min(r.first_ns for r in group), max(r.last_ns for r in group),
            sum(r.bytes for r in group), sum(r.bytes_back for r in group), sum(r.packets_back > 0 for r in group),
            max(r.name for r in group),
        )
        for key, group in grouped(
            (r for r in reached if 53 <= r.destination_port <= 80), lambda r: [(r.source, r.destination, service_of(r))]
        ).items()
    }  # fmt: skip
    assert {row[:3]: row[3:] for row in answer.rows} == expected
    assert answer.facts["records_missing"] == 3
    assert answer.facts["records_in_period"] == len(lost)
    assert answer.facts["brokers"] == "n1, n2"
    flows_output.write_csv(answer, str(tmp_path / "a.csv"))
    text = (tmp_path / "a.csv").read_text().splitlines()
    head = [line for line in text if line.startswith("# ")]
    assert {"# from: 2024-10-04T00:00:00Z", "# reported: 2024-10-04T03:00:00Z", "# records_missing: 3"} <= set(head)
    assert len(text) == len(head) + 1 + len(answer.rows)
    write_parquet(answer, str(tmp_path / "a.parquet"), store)
    path = tmp_path / "a.parquet"
    assert duckdb.execute(f"SELECT count(*), sum(bytes), min(first) FROM '{path}'").fetchall()[0][:2] == (
        len(expected),
        sum(v[3] for v in expected.values()),
    )
    ((facts,),) = duckdb.execute(f"SELECT decode(value) FROM parquet_kv_metadata('{path}') WHERE key = 'tapmesh'").fetchall()
    assert json.loads(facts)["records_missing"] == 3


def test_sampled_records_are_told_of(tmp_path: Path) -> None:
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2", one_in=10)])
    answer = access(Store(tmp_path), ALL, "true", "10.0.0.2", 0)
    assert "one in 10" in " ".join(answer.notes)


def test_what_is_sampled_is_told_with_every_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2", one_in=10), Record("10.0.0.1", "10.0.0.3")])
    words = ["flows", "top", "--store", str(tmp_path), "--from", "2024-10-04", "--to", "2024-10-05"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampled_records"] == 1
    assert main([*words, "dst net 10.0.0.3"]) == 0
    assert "sampled" not in capsys.readouterr().out


def test_what_memory_does_not_hold_goes_where_nobody_else_can_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store(tmp_path)
    (made,) = tmp_path.iterdir()
    assert made.stat().st_mode & 0o777 == 0o700
    assert store.run("SELECT current_setting('temp_directory')") == [(str(made),)]
    del store
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    """Who asks for such a name must not keep others from a picture."""
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2", name="$\\foo$")])
    plots.draw(top(Store(tmp_path), ALL, "true", "name", ["bytes"], 9), tmp_path / "p.svg")
    assert (tmp_path / "p.svg").stat().st_size


def test_services_of_icmp_are_its_types(tmp_path: Path) -> None:
    """Of an echo the port of the destination is the type of the answer, of what is one-way its code: 0 both."""
    echo = Record("10.0.0.1", "10.0.0.2", protocol=1, source_port=8, destination_port=0)
    write(tmp_path, [echo, Record("10.0.0.2", "10.0.0.1", protocol=1, source_port=3, destination_port=0)])
    store = Store(tmp_path)
    for answer in (services(store, ALL, "true", 9), top(store, ALL, "true", "service", ["flows"], 9)):
        assert sorted(row[0] for row in answer.rows) == ["icmp 3", "icmp 8"]
    for answer in (conversations(store, ALL, "true", 9), access(store, ALL, "true", "", 0), new(store, ALL, "true", 1, 9)):
        assert sorted(row[2] for row in answer.rows) == ["icmp 3", "icmp 8"]


def test_clients_seen_the_wrong_way_round_are_told_of(tmp_path: Path) -> None:
    """Of a connection that was there before the broker, the first packet seen may be the server's."""
    turned = Record("10.0.0.1", "10.0.0.9", source_port=443, destination_port=50_000, flags=0)
    write(tmp_path, [turned, Record("10.0.0.1", "10.0.0.8"), Record("10.0.0.7", "10.0.0.1")])
    answer = access(
        Store(tmp_path), ALL, where("dst net 10.0.0.1", {}), "10.0.0.1", 0, where("src net 10.0.0.1", {}) + " AND flags & 2 = 0"
    )
    assert ([row[0] for row in answer.rows], answer.facts["unsure_records"]) == (["10.0.0.7"], 1)
    assert "the other ends may be clients" in " ".join(answer.notes)


def test_no_records_at_all_is_said_of_a_server(tmp_path: Path) -> None:
    answer = access(Store(tmp_path), ALL, "true", "10.0.0.2", 0)
    assert (answer.rows, answer.notes) == ([], ("there are no records of this time at all: nothing can be said of who was there",))


def test_gaps_are_numbers_that_are_nowhere(tmp_path: Path) -> None:
    def record(number: int, minutes: float, run: int = DAY * S, lane: int = 0) -> Record:
        return Record("10.0.0.1", "10.0.0.2", number=number, last_ns=DAY * S + int(minutes * 60) * S, run=run, lane=lane)

    earlier = (DAY - 86_400) * S  # that run began before the time asked for: what came before 900 is none of its gaps
    write(
        tmp_path,
        [
            *(record(n, n) for n in range(60) if n not in (20, 21, 40)),
            record(7, 7),  # stored twice
            *(record(5, 70, lane=1), record(6, 71, lane=1)),  # 0 to 4 of a run that began in this time are missing
            *(record(900, 75, run=earlier), record(902, 76, run=earlier)),
        ],
    )
    answer = gaps(Store(tmp_path), Period(DAY * S, DAY * S + 2 * HOUR))
    found = {(row[1], row[2]): row[3:7] for row in answer.rows}
    assert found == {
        (earlier, 0): (2, 1, 1, 0),
        (DAY * S, 0): (58, 2, 3, 1),
        (DAY * S, 1): (2, 1, 5, 0),
    }
    early = gaps(Store(tmp_path), Period(DAY * S, DAY * S + 30 * 60 * S))
    assert [row[3:7] for row in early.rows] == [(29, 1, 2, 1)]


def test_a_number_that_lies_in_quite_another_time_is_no_gap(tmp_path: Path) -> None:
    """As of a replay of several captures: records are numbered as they end, and their packets are of any year."""
    years = 3 * 365 * 86_400 * S
    write(
        tmp_path,
        [Record("10.0.0.1", "10.0.0.2", number=n, last_ns=DAY * S + n * S - (years if n % 4 else 0)) for n in range(41) if n != 22],
    )
    answer = gaps(Store(tmp_path), Period(DAY * S, DAY * S + HOUR))
    assert [row[3:7] for row in answer.rows] == [(11, 1, 1, 0)]


def test_what_has_expired_is_not_called_missing(tmp_path: Path) -> None:
    """The run began before the oldest hour that is stored."""
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2", number=n, last_ns=DAY * S + n * S) for n in range(100, 110) if n != 105])
    answer = gaps(Store(tmp_path), Period((DAY - 86_400) * S, DAY * S + HOUR))
    assert answer.facts["missing"] == 101
    write(tmp_path / "old", [Record("10.0.0.1", "10.0.0.2", run=(DAY - 7200) * S, number=n, last_ns=DAY * S + n * S) for n in (100, 102)])
    answer = gaps(Store(tmp_path / "old"), Period((DAY - 86_400) * S, DAY * S + HOUR))
    assert answer.facts["missing"] == 1
    assert "100 records are numbered before the oldest that is stored" in " ".join(answer.notes)


def test_an_empty_time_is_not_said_to_be_complete(tmp_path: Path) -> None:
    assert gaps(Store(tmp_path), ALL).notes == ("there are no records of this time at all: nothing can be said of what is missing",)


def test_numbers_across_the_edge_of_a_time_are_no_gap(tmp_path: Path) -> None:
    edge = DAY * S + HOUR
    shuffled = [Record("10.0.0.1", "10.0.0.2", number=n, last_ns=edge + (n - 50 if n % 2 else 40 - n) * S) for n in range(100)]
    write(tmp_path, shuffled)
    for period in (Period(edge, edge + HOUR), Period(edge - HOUR, edge)):
        assert gaps(Store(tmp_path), period).notes == ("no record is missing",)


def test_a_store_that_is_not_there_or_not_ours_is_told(tmp_path: Path) -> None:
    with pytest.raises(TapmeshError, match="there is no store here"):
        Store(tmp_path / "none")
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2")])
    (path,) = (tmp_path / "flows").glob("*/*/*.parquet")
    path.write_bytes(b"PAR1 nothing PAR1")
    store = Store(tmp_path)
    with pytest.raises(TapmeshError, match=r"0\.parquet"):
        store.answered(lambda: listing(store, ALL, "true", 1))


def test_what_may_not_be_read_is_no_empty_store() -> None:
    """An auditor without the rights must not read that nobody was there."""
    if os.geteuid():
        pytest.skip("only root can become somebody without rights")
    with tempfile.TemporaryDirectory() as directory:  # others may not go through pytest's own
        place = Path(directory)
        write(place, [Record("10.0.0.1", "10.0.0.2")])
        place.chmod(0o755)
        (place / "flows").chmod(0o700)
        store = Store(place)
        os.seteuid(65534)
        try:
            with pytest.raises(TapmeshError, match=r"flows: Permission denied"):
                store.answered(lambda: listing(store, ALL, "true", 1))
        finally:
            os.seteuid(0)


def test_a_file_that_goes_while_it_is_asked_is_looked_for_again(tmp_path: Path) -> None:
    write(tmp_path, [Record("10.0.0.1", "10.0.0.2")])
    store = Store(tmp_path)
    (path,) = (tmp_path / "flows").glob("*/*/*.parquet")

    def question() -> Answer:
        table = store.flows(ALL)
        if path.exists():
            path.rename(path.with_name("other.parquet"))
        store.run(f"SELECT count(*) FROM {table}")
        return listing(store, ALL, "true", 1)

    assert len(store.answered(question).rows) == 1
