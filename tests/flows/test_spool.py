"""The spool: bounded, on disk, gone on with by whoever comes after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.core.errors import TapmeshError
from broker.core.flow_layout import EXPORT, FLOW
from broker.flows import segments
from broker.flows.segments import Header, SegmentError
from broker.flows.spool import Spool
from tests.flows.feeder import random_rows
from tests.waiting import until

INPUTS = {0: "span0"}


@pytest.fixture
def row() -> Any:
    return np.zeros(1, EXPORT)[0]


def open_spool(directory: Path, row: Any, *, run: int = 17, flush_s: float = 3600, max_bytes: int = 1 << 30, inputs: Any = INPUTS) -> Spool:
    return Spool(directory, Header("flows", "esx07", run, inputs), row, flush_s=flush_s, max_bytes=max_bytes)


def die(spool: Spool) -> None:
    """What kill -9 leaves: files as they are, and no lock."""
    os.close(spool._lock)


def stored(directory: Path) -> Any:
    """All rows of closed segments, in order."""
    return np.concatenate([np.empty(0, FLOW), *(segments.load(s)[1] for s in segments.closed(directory) if s.kind == "flows")])


def same(found: Any, rows: Any) -> bool:
    return len(found) == len(rows) and bool((found == rows).all())


def test_what_was_appended_is_in_closed_segments_after_close(tmp_path: Path, row: Any) -> None:
    rows = random_rows(300)
    spool = open_spool(tmp_path, row)
    assert spool.append("flows", rows[:200])
    assert spool.append("flows", rows[200:])
    assert segments.closed(tmp_path) == []
    assert row["waiting_records"] == 300
    spool.close()
    [segment] = segments.closed(tmp_path)
    header, found = segments.load(segment)
    assert header == Header("flows", "esx07", 17, INPUTS)
    assert same(found, rows)
    assert row["waiting_records"] == segment.n_rows == 300
    segment.path.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".exporter.lock"]


def test_a_segment_is_closed_by_age_and_by_size(tmp_path: Path, row: Any) -> None:
    spool = open_spool(tmp_path, row, flush_s=0.01, max_bytes=8 << 20)
    spool.append("flows", random_rows(1))

    def one_closed() -> bool:
        spool.tick(INPUTS)
        return len(segments.closed(tmp_path)) == 1

    until(one_closed, "a segment closed by its age")
    spool.close()
    large = open_spool(tmp_path, row, max_bytes=8 << 20)
    large.append("flows", random_rows((1 << 20) // 256, first=1))
    large.tick(INPUTS)
    until(lambda: len(segments.closed(tmp_path)) == 2, "a segment closed by its size")
    large.close()


def test_another_set_of_inputs_begins_another_segment(tmp_path: Path, row: Any) -> None:
    spool = open_spool(tmp_path, row)
    spool.append("flows", random_rows(1))
    spool.tick({0: "span0", 3: "span1"})
    spool.append("flows", random_rows(1, first=1))
    spool.close()
    assert [segments.load(s)[0].inputs for s in segments.closed(tmp_path)] == [INPUTS, {0: "span0", 3: "span1"}]


@pytest.mark.parametrize("cut", [0, 1, 255, 256, 300])
def test_the_next_exporter_goes_on_where_one_was_killed(tmp_path: Path, row: Any, cut: int) -> None:
    """Half a row at the end goes, and is appended again because its number is not known."""
    first = open_spool(tmp_path, row)
    rows = np.concatenate([random_rows(20), random_rows(10, lane=1, first=5)])
    first.append("flows", rows)
    die(first)
    [path] = segments.left_open(tmp_path)
    os.truncate(path, path.stat().st_size - cut)
    whole = 30 - -(-cut // 256)
    second = open_spool(tmp_path, row)
    assert (second.next_number(0), second.next_number(1), second.next_number(2)) == (20, 5 + whole - 20, 0)
    assert row["waiting_records"] == whole
    second.append("flows", rows[whole:])
    second.close()
    assert same(stored(tmp_path), rows)
    assert len(segments.closed(tmp_path)) == 1


def test_what_another_run_has_left_is_closed_and_its_numbers_mean_nothing(tmp_path: Path, row: Any) -> None:
    first = open_spool(tmp_path, row)
    first.append("flows", random_rows(20))
    die(first)
    second = open_spool(tmp_path, row, run=18)
    assert second.next_number(0) == 0
    until(lambda: len(segments.closed(tmp_path)) == 1, "the segment of the run before")
    second.append("flows", random_rows(5))
    second.close()
    assert [(s.run, s.n_rows) for s in segments.closed(tmp_path)] == [(17, 20), (18, 5)]


def test_what_was_begun_and_has_no_header_yet_is_forgotten(tmp_path: Path, row: Any) -> None:
    (tmp_path / ".flows-17-5.open").write_bytes(b"TAPM")
    open_spool(tmp_path, row).close()
    assert not list(tmp_path.glob(".flows*"))


def test_a_damaged_open_file_is_set_aside_with_the_reason(tmp_path: Path, row: Any) -> None:
    first = open_spool(tmp_path, row)
    first.append("flows", random_rows(20))
    die(first)
    [path] = segments.left_open(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"esx07", b"esx08"))
    with structlog.testing.capture_logs() as logs:
        open_spool(tmp_path, row).close()
    assert (tmp_path / "damaged" / f"{path.name}.reason").read_text() == "its header is damaged\n"
    assert [(entry["event"], entry["reason"]) for entry in logs] == [("segment_set_aside", "its header is damaged")]


def test_beyond_its_bytes_whole_appends_are_dropped_and_counted(tmp_path: Path, row: Any) -> None:
    spool = open_spool(tmp_path, row, max_bytes=100_000)  # 390 rows and a header
    rows = random_rows(1000)
    with structlog.testing.capture_logs() as logs:
        taken = [spool.append("flows", rows[at : at + 100]) for at in range(0, 1000, 100)]
    assert taken == [True] * 3 + [False] * 7
    assert (row["dropped_records"], row["waiting_records"]) == (700, 300)
    assert row["dropped_packets"] == rows["packets"][300:].sum()
    assert row["dropped_bytes"] == rows["bytes"][300:].sum()
    assert [entry["event"] for entry in logs] == ["spool_refused"]
    spool.close()
    assert segments.used_bytes(tmp_path) <= 100_000
    again = open_spool(tmp_path, row, max_bytes=100_000)
    assert not again.append("flows", rows[:100])
    for segment in segments.closed(tmp_path):  # as the store process does
        segment.path.unlink()
    with structlog.testing.capture_logs() as logs:
        assert again.append("flows", rows[:100])
    assert [entry["event"] for entry in logs] == ["spool_resumed"]
    again.close()


@pytest.mark.root
def test_a_full_disk_drops_whole_appends_and_goes_on_when_there_is_room(tiny: Path, row: Any) -> None:
    filler = tiny / "filler"
    filler.write_bytes(bytes(30_000))
    spool = open_spool(tiny / "spool", row)
    rows = random_rows(500)
    with structlog.testing.capture_logs() as logs:
        taken = [spool.append("flows", rows[at : at + 50]) for at in range(0, 250, 50)]
        filler.unlink()
        taken += [spool.append("flows", rows[at : at + 50]) for at in range(250, 350, 50)]
    assert taken == [True] * 2 + [False] * 3 + [True] * 2
    assert [entry["event"] for entry in logs] == ["spool_refused", "spool_resumed"]
    assert "No space left on device" in logs[0]["reason"]
    assert row["dropped_records"] == 150
    spool.close()
    assert same(stored(tiny / "spool"), np.concatenate([rows[:100], rows[250:350]]))


@pytest.mark.root
def test_a_disk_that_is_full_from_the_start_is_no_end(tiny: Path, row: Any) -> None:
    spool = open_spool(tiny / "spool", row)
    filler = tiny / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(70_000))
    assert not spool.append("flows", random_rows(10))
    filler.unlink()
    assert spool.append("flows", random_rows(10, first=10))
    spool.close()
    assert (row["dropped_records"], row["waiting_records"]) == (10, 10)
    assert stored(tiny / "spool")["number"].tolist() == list(range(10, 20))


def test_a_closed_segment_that_is_not_what_its_name_says_is_refused_in_words(tmp_path: Path, row: Any) -> None:
    spool = open_spool(tmp_path, row)
    spool.append("flows", random_rows(10))
    spool.close()
    [segment] = segments.closed(tmp_path)
    content = segment.path.read_bytes()
    for damage, reason in (
        (content[:-1], "expected"),
        (content + b"x", "expected"),
        (b"TAPMSEG2" + content[8:], "does not begin as a segment does"),
        (content[:5], "does not begin as a segment does"),
        (content[:20], "header is damaged"),
        (b"", "does not begin"),
    ):
        segment.path.write_bytes(damage)
        with pytest.raises(SegmentError, match=reason):
            segments.load(segment)


def test_there_is_one_exporter_a_spool(tmp_path: Path, row: Any) -> None:
    first = open_spool(tmp_path, row)
    with pytest.raises(TapmeshError, match="another exporter uses it"):
        open_spool(tmp_path, row)
    first.close()
    open_spool(tmp_path, row).close()


def test_a_place_that_is_no_directory_is_told_at_once(tmp_path: Path, row: Any) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(TapmeshError, match="spool"):
        open_spool(tmp_path / "spool", row)
