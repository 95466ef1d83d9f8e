"""Files of records: read back by DuckDB's own SQL and compared with the rows."""

from __future__ import annotations

import ipaddress
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.flow_layout import NAMED_NAMES, TUNNEL_NAMES
from broker.core.flow_model import Store
from broker.flows import columns
from broker.flows.meters import METER, METER_TOOL
from broker.flows.segments import Header, Segment
from broker.flows.store import compaction, hours
from broker.flows.store.base import StoreError
from broker.flows.store.parquet import ParquetStore, files
from tests.flows.feeder import HOUR_NS, NOON_NS, random_rows

duckdb = pytest.importorskip("duckdb")

HEADER = Header("flows", "esx07", 17, {0: "span0", 3: "it's"})


def segment(number: int, kind: str = "flows") -> Segment:
    return Segment(Path("not-read"), kind, HEADER.run, number, 0)


def read(paths: list[Path], what: str = "*", table: str = "flows") -> list[Any]:
    if not paths:
        return []
    names = ", ".join(f"'{path}'" for path in paths)
    order = "lane, number" if table == "flows" else "name"
    return duckdb.connect().execute(f"SELECT {what} FROM read_parquet([{names}], hive_partitioning = false) ORDER BY {order}").fetchall()


def everything(directory: Path) -> list[Path]:
    return files(directory, 0, 1 << 62)


def age(directory: Path, seconds: float) -> None:
    """All files below it were written so long ago."""
    then = time.time() - seconds
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def test_every_column_of_every_row_is_what_it_was(tmp_path: Path) -> None:
    rows = random_rows(1000)
    store = ParquetStore(Store(directory=str(tmp_path)), "esx07")
    n_bytes = store.put(segment(1), HEADER, rows)
    [path] = everything(tmp_path)
    assert n_bytes == store.held_bytes == path.stat().st_size
    assert path.relative_to(tmp_path).as_posix() == "flows/date=2025-10-09/hour=09/esx07-17-1.parquet"
    described = duckdb.connect().execute(f"DESCRIBE SELECT * FROM read_parquet('{path}', hive_partitioning = false)").fetchall()
    assert [(d[0], d[1]) for d in described] == [(c.name, c.duckdb) for c in columns.FLOWS]
    for row, found in zip(rows, read([path]), strict=True):
        got = dict(zip([c.name for c in columns.FLOWS], found, strict=True))
        for end in ("source", "destination"):
            assert ipaddress.IPv6Address((got.pop(f"{end}_high") << 64) + got.pop(f"{end}_low")).packed == row[end].tobytes()
        for name in ("packets", "bytes", "min_bytes", "max_bytes", "tcp_flags", "tos", "retransmitted"):
            assert [got.pop(name), got.pop(f"{name}_back")] == row[name].tolist()
        assert [got.pop("rtt_source_us"), got.pop("rtt_destination_us")] == row["rtt_us"].tolist()
        assert (got.pop("node"), got.pop("run")) == ("esx07", 17)
        assert got.pop("input") == {0: "span0", 3: "it's"}[int(row["input"])]
        assert (got.pop("tunnel"), got.pop("named")) == (TUNNEL_NAMES[row["tunnel"]], NAMED_NAMES[row["named"]])
        assert got.pop("name") == row["name"].decode()
        assert got.pop("end_reason") == row["end"]
        assert got == {name: row[name] for name in got}


def test_meters_are_what_they_were(tmp_path: Path) -> None:
    rows = np.zeros(2, METER)
    rows["name"], rows["kind"], rows["at_ns"] = [b"ids", "k\u00fcche".encode()], METER_TOOL, NOON_NS + 5
    rows["packets"], rows["bytes"], rows["for_ns"] = [7, 1 << 50], 9, 10**10
    ParquetStore(Store(directory=str(tmp_path)), "esx07").put(segment(1, "meters"), Header("meters", "esx07", 17, {}), rows)
    assert read(files(tmp_path, NOON_NS, NOON_NS + 1, "meters"), table="meters") == [
        ("esx07", NOON_NS + 5, 10**10, "tool", "ids", 7, 9, 0, 0),
        ("esx07", NOON_NS + 5, 10**10, "tool", "k\u00fcche", 1 << 50, 9, 0, 0),
    ]


def test_a_segment_over_three_hours_is_three_files_and_only_those_asked_for_are_read(tmp_path: Path) -> None:
    rows = random_rows(3000, for_ns=3 * HOUR_NS)
    ParquetStore(Store(directory=str(tmp_path)), "esx07").put(segment(1), HEADER, rows)
    assert len(everything(tmp_path)) == 3
    second = files(tmp_path, NOON_NS + HOUR_NS, NOON_NS + 2 * HOUR_NS)
    expected = rows["number"][rows["last_ns"] // HOUR_NS == NOON_NS // HOUR_NS + 1]
    assert [n for (n,) in read(second, "number")] == expected.tolist()
    assert len(files(tmp_path, NOON_NS + HOUR_NS - 1, NOON_NS + HOUR_NS + 1)) == 2
    assert files(tmp_path, NOON_NS - HOUR_NS, NOON_NS) == []


def test_a_segment_that_comes_again_is_there_once(tmp_path: Path) -> None:
    rows = random_rows(100, for_ns=2 * HOUR_NS)
    store = ParquetStore(Store(directory=str(tmp_path)), "esx07")
    store.put(segment(1), HEADER, rows)
    store.put(segment(1), HEADER, rows)
    assert [n for (n,) in read(everything(tmp_path), "number")] == list(range(100))


class Died(BaseException):
    """Stands for kill -9: nothing catches it."""


def put_three(directory: Path) -> ParquetStore:
    store = ParquetStore(Store(directory=str(directory), keep_days=0), "esx07", tend_s=0)
    for number in range(3):
        store.put(segment(number), HEADER, random_rows(50, seed=number, first=50 * number))
    age(directory, compaction.SETTLED_S + 1)
    return store


def numbers(directory: Path) -> list[int]:
    return [n for (n,) in read(everything(directory), "number")]


def test_an_hour_that_is_over_becomes_one_file_and_readers_see_each_row_once_throughout(tmp_path: Path) -> None:
    store = put_three(tmp_path)
    before = everything(tmp_path)
    store.tend()
    [merged] = everything(tmp_path)
    assert merged not in before
    assert numbers(tmp_path) == [n for (n,) in read(before, "number")] == list(range(150))  # who asked before can still read
    age(tmp_path, hours.GRACE_S + 1)
    store.tend()
    assert [path.name for path in merged.parent.glob("[!.]*") if not path.name.endswith(".replaces")] == [merged.name]
    assert numbers(tmp_path) == list(range(150))


def merge_and_remove(directory: Path, store: ParquetStore) -> None:
    store.tend()
    age(directory, hours.GRACE_S + 1)
    store.tend()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 6, 7, 9, 12])
def test_compaction_may_die_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Each system call that changes something may be the last; then another process goes on."""
    store = put_three(tmp_path)
    left = [step]

    def dying(call: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Died
            return call(*args, **kwargs)

        return called

    monkeypatch.setattr(Path, "rename", dying(Path.rename))
    monkeypatch.setattr(Path, "unlink", dying(Path.unlink))
    monkeypatch.setattr(os, "fsync", dying(os.fsync))
    with pytest.raises(Died):
        merge_and_remove(tmp_path, store)
    assert numbers(tmp_path) == list(range(150))
    monkeypatch.undo()
    again = ParquetStore(Store(directory=str(tmp_path), keep_days=0), "esx07", tend_s=0)
    again.put(segment(1), HEADER, random_rows(50, seed=1, first=50))  # not acknowledged, for all that process knows
    for _ in range(3):
        age(tmp_path, hours.GRACE_S + 1)
        again.tend()
        assert numbers(tmp_path) == list(range(150))
    assert len(everything(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_comes_late_for_a_merged_hour_is_merged_with_it(tmp_path: Path) -> None:
    store = put_three(tmp_path)
    store.tend()
    store.put(segment(3), HEADER, random_rows(50, seed=3, first=150))
    for _ in range(2):
        age(tmp_path, hours.GRACE_S + 1)
        store.tend()
        assert numbers(tmp_path) == list(range(200))
    [merged] = everything(tmp_path)
    for number in range(4):  # known through both mergers
        store.put(segment(number), HEADER, random_rows(50, seed=number, first=50 * number))
    assert everything(tmp_path) == [merged]


def test_a_merged_file_whose_list_was_removed_is_read_all_the_same(tmp_path: Path) -> None:
    store = put_three(tmp_path)
    store.tend()
    age(tmp_path, hours.GRACE_S + 1)
    store.tend()
    for path in tmp_path.rglob("*.replaces"):
        path.unlink()
    assert numbers(tmp_path) == list(range(150))


def test_hours_go_when_they_are_too_old(tmp_path: Path) -> None:
    store = ParquetStore(Store(directory=str(tmp_path), keep_days=2), "esx07", tend_s=0)
    now_ns = time.time_ns()
    old, young = now_ns - 3 * 24 * HOUR_NS, now_ns - 24 * HOUR_NS
    store.put(segment(1), HEADER, random_rows(10, at_ns=old, for_ns=1))
    store.put(segment(2), HEADER, random_rows(20, at_ns=young, for_ns=1, first=10))
    store.tend()
    assert len(everything(tmp_path)) == 2, "what was captured long ago and has come today is kept"
    age(tmp_path, 3 * 86_400)
    store.tend()
    assert numbers(tmp_path) == list(range(10, 30))
    assert store.expired_records == 10
    assert store.held_bytes == sum(path.stat().st_size for path in everything(tmp_path))


def test_the_oldest_hours_go_when_there_is_no_room(tmp_path: Path) -> None:
    probe = ParquetStore(Store(directory=str(tmp_path / "probe")), "esx07")
    one_hour = probe.put(segment(1), HEADER, random_rows(500, for_ns=HOUR_NS))
    store = ParquetStore(Store(directory=str(tmp_path / "real"), keep_bytes=int(2.5 * one_hour)), "esx07")
    for n in range(4):
        store.put(segment(n), HEADER, random_rows(500, seed=n, at_ns=NOON_NS + n * HOUR_NS, for_ns=HOUR_NS, first=500 * n))
    store.tend()
    assert numbers(tmp_path / "real") == list(range(1000, 2000))
    assert store.expired_records == 1000
    assert store.held_bytes <= 2.5 * one_hour


def test_a_directory_that_takes_nothing_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "flows").write_text("in the way")
    store = ParquetStore(Store(directory=str(tmp_path)), "esx07")
    with pytest.raises(StoreError, match=r"flows.*: "):
        store.put(segment(1), HEADER, random_rows(3))


@pytest.mark.root
def test_a_full_disk_is_no_end_and_leaves_nothing_half_written(tiny: Path) -> None:
    filler = tiny / "filler"
    store, rows = ParquetStore(Store(directory=str(tiny / "store")), "esx07"), random_rows(200)
    filler.write_bytes(bytes(60_000))
    with pytest.raises(StoreError, match=r"No space left|Could not write"):
        store.put(segment(1), HEADER, rows)
    assert everything(tiny / "store") == []
    filler.unlink()
    store.put(segment(1), HEADER, rows)
    assert numbers(tiny / "store") == list(range(200))


def test_an_hour_with_a_file_that_cannot_be_read_does_not_keep_others_from_being_merged(tmp_path: Path) -> None:
    store = put_three(tmp_path)
    for number in range(3):
        store.put(segment(number), HEADER, random_rows(50, seed=number, first=50 * number, at_ns=NOON_NS + HOUR_NS))
    first, second = (hour for _, hour in hours.hours(tmp_path / "flows"))
    hours.current(first)[0].write_bytes(b"PAR1 and nothing more")
    age(tmp_path, compaction.SETTLED_S + 1)
    with structlog.testing.capture_logs() as logs:
        store.tend()
        store.tend()
    assert [entry["event"] for entry in logs] == ["hour_not_merged", "hour_merged"]
    assert (len(hours.current(first)), len(hours.current(second))) == (3, 1)
