"""Files that follow one another: their sizes and names, what is removed and compressed, and that a crash at any moment costs nothing."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.core.batch import Batch
from broker.core.metrics import index
from broker.core.model import Rotation, Tool
from stages.send import rotation as module
from stages.send.rotation import Names
from tests.libpcap import needs_libpcap, read
from tests.stages.delivery import NOON_NS, Sender, Surroundings, encapsulate, fill, new_batch, payload
from tests.waiting import until

RECORD = 16 + 100


def tool_in(directory: Path, slot: int = 0, **options: Any) -> Tool:
    kind = options.pop("format", "pcap")
    return Tool(f"rec{slot}", slot, format=kind, rotation=Rotation(str(directory), **options))


def block(tool: Tool, n: int, seq: int = 0, size: int = 100) -> Batch:
    batch = new_batch()
    batch.seq = seq
    fill(batch, [payload(size, 100 * seq + i) for i in range(n)], 1 << tool.slot)
    encapsulate(batch, tool)
    return batch


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def frames(directory: Path) -> list[bytes]:
    """Of all files in the order of their names, as libpcap reads them."""
    found = []
    for name in names(directory):
        reading = read(directory / name)
        assert not reading.error
        found += [record.data for record in reading.records]
    return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    now = [NOON_NS]
    monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=lambda: now[0], monotonic_ns=lambda: now[1] if now[1:] else 0))
    return now


@needs_libpcap
def test_no_file_is_longer_than_it_may_be_and_together_they_hold_all(tmp_path: Path) -> None:
    tool = tool_in(tmp_path, rotate_bytes=24 + 10 * RECORD)
    sender = Sender(tool)
    for seq in range(9):
        sender.step(block(tool, 4, seq))
    assert [n.endswith(".part") for n in names(tmp_path)] == [False] * 4 + [True]
    sender.stage.close()
    assert [p.stat().st_size for p in sorted(tmp_path.iterdir())] == [24 + 8 * RECORD] * 4 + [24 + 4 * RECORD]
    assert frames(tmp_path) == [payload(100, 100 * seq + i) for seq in range(9) for i in range(4)]
    assert (sender.delivered(), sender.drops()) == (36, {})


def test_a_block_that_is_too_large_for_any_file_gets_one_of_its_own(tmp_path: Path) -> None:
    tool = tool_in(tmp_path, rotate_bytes=24 + 2 * RECORD)
    sender = Sender(tool)
    for seq, n in enumerate((1, 5, 1, 1)):
        sender.step(block(tool, n, seq))
    sender.stage.close()
    assert [(p.stat().st_size - 24) // RECORD for p in sorted(tmp_path.iterdir())] == [1, 5, 2]


def test_names_say_when_a_file_was_begun_and_by_which_lane_and_sort_by_it(tmp_path: Path, clock: list[int]) -> None:
    tool = tool_in(tmp_path, rotate_bytes=24 + RECORD)
    sender = Sender(tool, surroundings=Surroundings(lane=2, lanes_total=3))
    for seq, later in enumerate((1_000_000_000, 0, -5_000_000_000)):  # a clock that stands, and goes back
        sender.step(block(tool, 1, seq))
        clock[0] += later
    sender.step(block(tool, 1, 4))
    sender.stage.close()
    stamps = ["221320.123456789", "221321.123456789", "221321.123456790", "221321.123456791"]
    assert names(tmp_path) == [f"rec0-20231114T{stamp}Z-lane2.pcap" for stamp in stamps]


def test_a_file_ends_where_a_multiple_of_its_seconds_begins_and_none_is_made_for_nothing(tmp_path: Path, clock: list[int]) -> None:
    tool = tool_in(tmp_path, rotate_s=60)
    sender = Sender(tool)
    for seq, second in enumerate((20, 59, 60, 61, 600)):  # NOON_NS is at second 20 of a minute
        clock[0] = NOON_NS - 20 * 10**9 + second * 10**9
        sender.step(block(tool, 1, seq))
    sender.stage.close()
    assert [(p.stat().st_size - 24) // RECORD for p in sorted(tmp_path.iterdir())] == [2, 2, 1]


def test_files_end_in_time_while_the_clock_is_years_behind_their_names(tmp_path: Path, clock: list[int]) -> None:
    """It was set to a year to come, and back: names go on from there, since they sort by it, and the seconds are those that pass."""
    tool = tool_in(tmp_path, rotate_s=60)
    sender = Sender(tool)
    year = 365 * 86_400
    for seq, (behind_s, passed_s) in enumerate(((0, 0), (20 * year, 1), (0, 2), (0, 30), (0, 63), (-20 * year, 64), (-20 * year, 125))):
        clock[:] = [NOON_NS + (behind_s + passed_s) * 10**9, passed_s * 10**9]
        sender.step(block(tool, 1, seq))
    sender.stage.close()
    assert [(p.stat().st_size - 24) // RECORD for p in sorted(tmp_path.iterdir())] == [1, 3, 2, 1]
    assert frames(tmp_path) == [payload(100, 100 * seq) for seq in range(7)]


def test_a_tool_that_gets_nothing_leaves_no_file(tmp_path: Path) -> None:
    Sender(tool_in(tmp_path, rotate_s=60)).stage.close()
    assert names(tmp_path) == []


def test_the_oldest_of_our_files_are_removed_and_nothing_else(tmp_path: Path) -> None:
    tool = tool_in(tmp_path, rotate_bytes=24 + RECORD, keep_files=3)
    ours = ["rec0-20200101T000000.000000000Z-lane0.pcap", "rec0-20200101T000001.000000000Z-lane0.pcap.gz"]
    others = [
        "rec0-20200101T000000.000000000Z-lane1.pcap",
        "rec0-20200101T000000.000000000Z-lane0.pcap.txt",
        "rec0-20209999T000000.000000000Z-lane0.pcap",
        "rec01-20200101T000000.000000000Z-lane0.pcap",
        "rec0-20200101T000000.000000000Z-lane0.pcapng",
        "rec0.pcap",
    ]
    for name in ours + others:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "rec0-20200101T000002.000000000Z-lane0.pcap").mkdir()
    (tmp_path / "rec0-20200101T000003.000000000Z-lane0.pcap").symlink_to("rec0.pcap")
    sender = Sender(tool)
    for seq in range(5):
        sender.step(block(tool, 1, seq))
    left = set(names(tmp_path))
    assert not left & set(ours)
    assert left >= {*others, "rec0-20200101T000002.000000000Z-lane0.pcap", "rec0-20200101T000003.000000000Z-lane0.pcap"}
    assert len(left) == len(others) + 2 + 3


def test_a_directory_that_is_missing_is_a_tool_that_is_down(tmp_path: Path) -> None:
    tool = tool_in(tmp_path / "absent", rotate_s=60)
    sender = Sender(tool)
    sender.step(block(tool, 3))
    assert sender.drops() == {"tool_down": 3}


# ---- crashes


def committed(sender: Sender) -> Surroundings:
    """What the worker after this one finds: the counters of the last published block, and what lies in shared memory."""
    s = sender.surroundings
    return Surroundings(epoch=s.epoch + 1, counters=s.counters.copy(), live=s.live, progress=s.progress)


def die(sender: Sender) -> None:
    """As kill -9 does: files are closed as they are."""
    for egress in sender.stage._egresses.values():
        egress._file.close()  # type: ignore[attr-defined]
    sender.stage._egresses.clear()


@needs_libpcap
@pytest.mark.parametrize("torn", [b"", b"\x01", payload(5000)])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_worker_that_dies_in_a_block_leaves_its_packets_once_whether_it_rotated_or_not(tmp_path: Path, blocks: int, torn: bytes) -> None:
    """With room for two blocks in a file, the block after the second begins a file that the next worker has to take back."""
    tool = tool_in(tmp_path, rotate_bytes=24 + 8 * RECORD)
    sender = Sender(tool)
    for seq in range(blocks):
        sender.step(block(tool, 4, seq))
    after = committed(sender)
    sender.step(block(tool, 4, blocks))
    newest = sender.stage._egresses[0]._file.path  # type: ignore[attr-defined]
    die(sender)
    with newest.open("ab") as file:
        file.write(torn)
    again = Sender(tool, surroundings=after)
    for seq in range(blocks, 6):
        again.step(block(tool, 4, seq))
    again.stage.close()
    assert frames(tmp_path) == [payload(100, 100 * seq + i) for seq in range(6) for i in range(4)]
    assert (again.delivered(), again.count("repeated_frames")) == (24, 0)
    assert not any(n.endswith(".part") for n in names(tmp_path))


def test_a_worker_that_dies_before_its_first_block_is_committed_leaves_nothing(tmp_path: Path) -> None:
    tool = tool_in(tmp_path, rotate_s=3600)
    first = Sender(tool)
    after = committed(first)
    after.counters[:] = 0
    first.step(block(tool, 3))
    die(first)
    again = Sender(tool, surroundings=after)
    again.step(block(tool, 3))
    again.stage.close()
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [24 + 3 * RECORD]


def test_a_step_that_breaks_off_leaves_the_file_to_the_next_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception closes the stage before the block is committed."""
    tool = tool_in(tmp_path, rotate_s=3600)
    sender = Sender(tool)
    sender.step(block(tool, 3))
    after = committed(sender)
    send = sender.stage._egresses[0].send

    def fails(*given: Any) -> None:
        send(*given)
        raise MemoryError

    monkeypatch.setattr(sender.stage._egresses[0], "send", fails)
    with pytest.raises(MemoryError):
        sender.step(block(tool, 4, 1))
    sender.stage.close()
    again = Sender(tool, surroundings=after)
    again.step(block(tool, 4, 1))
    again.stage.close()
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [24 + 7 * RECORD]


@needs_libpcap
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_what_a_broker_that_died_has_left_is_cut_to_whole_records_and_kept(tmp_path: Path, kind: str) -> None:
    tool = tool_in(tmp_path, rotate_s=3600, format=kind)
    earlier = Sender(tool)
    earlier.step(block(tool, 3, 0, 101))
    path = earlier.stage._egresses[0]._file.path  # type: ignore[attr-defined]
    die(earlier)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # as after a loss of power
    sender = Sender(tool)
    until(lambda: not path.exists(), "the child to close the file")
    (left,) = [p for p in tmp_path.iterdir() if not p.name.endswith(".part")]
    reading = read(left)
    assert (len(reading.records), reading.error) == (2, "")
    sender.step(block(tool, 1, 1))
    assert sender.delivered() == 1


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    """Two brokers with tools of one name in one directory."""
    tool = tool_in(tmp_path, rotate_s=3600)
    first, second = Sender(tool), Sender(tool)
    for seq in range(2):
        for sender in (first, second):
            sender.step(block(tool, 2, seq))
    until(lambda: all(child.poll() is not None for child in module._children), "the child to have looked at it")
    for sender in (first, second):
        sender.stage.close()
    assert [p.stat().st_size for p in tmp_path.iterdir()] == [24 + 4 * RECORD] * 2


def test_a_name_is_read_back_as_it_was_written() -> None:
    made = Names("a.b", 3, ".pcapng")
    for at in (0, 1, NOON_NS, 253_402_300_799_999_999_999):
        assert made.begun_ns(made.of(at)) == made.begun_ns(made.of(at) + ".part") == made.begun_ns(made.of(at) + ".gz.part") == at
    for name in ("", "a.b", "axb-20231114T221320.123456789Z-lane3.pcapng", "a.b-20231114T221320.123456789Z-lane3.pcapng.part.gz"):
        assert made.begun_ns(name) == 0


# ---- disk


@needs_libpcap
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_file_system_costs_counted_records_until_there_is_room_again(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=True)
    try:
        tool = tool_in(small, rotate_bytes=20_000)
        sender = Sender(tool)
        for seq in range(8):
            sender.step(block(tool, 10, seq, 1400))
        n = sender.delivered()
        assert sender.drops() == {"disk": 80 - n}
        assert 0 < n < 50
        next(p for p in sorted(small.iterdir()) if not p.name.endswith(".part")).unlink()
        seq = 8

        def delivered_again() -> bool:
            nonlocal seq
            seq += 1
            sender.step(block(tool, 1, seq))
            return sender.delivered() > n

        until(delivered_again, "room to be noticed")
        sender.stage.close()
        readings = [read(p) for p in small.iterdir()]
        assert not any(r.error for r in readings)
        assert sum(len(r.records) for r in readings) == sender.delivered() - 10  # less those of the file that was removed
    finally:
        subprocess.run(["umount", str(small)], check=True)


# ---- compression


@needs_libpcap
def test_closed_files_are_compressed_and_a_plain_one_is_never_missing(tmp_path: Path) -> None:
    tool = tool_in(tmp_path, rotate_bytes=24 + 2 * RECORD, compress="gzip")
    sender = Sender(tool)
    sent = []
    for seq in range(5):
        sender.step(block(tool, 2, seq))
        sent += [payload(100, 100 * seq + i) for i in range(2)]
    sender.step(block(tool, 2, 5))
    sent += [payload(100, 500 + i) for i in range(2)]
    sender.stage.close()
    until(lambda: all(child.poll() is not None for child in module._children), "the children to end")
    later = Sender(tool)  # what has been left by then, the next broker has compressed
    until(lambda: sum(n.endswith(".gz") for n in names(tmp_path)) == 6, "all files compressed")
    later.stage.close()
    assert all(n.endswith(".pcap.gz") for n in names(tmp_path))
    for path in list(tmp_path.iterdir()):
        subprocess.run(["gzip", "-d", str(path)], check=True)
    assert frames(tmp_path) == sent


@pytest.mark.parametrize("state", ["half", "done"])
def test_a_child_that_died_leaves_the_plain_file_and_the_next_one_does_it_again(tmp_path: Path, state: str) -> None:
    plain = tmp_path / "rec0-20200101T000000.000000000Z-lane0.pcap"
    plain.write_bytes(payload(100_000))
    plain.chmod(0o640)
    target = plain.with_name(plain.name + ".gz")
    if state == "half":
        target.with_name(target.name + ".part").write_bytes(b"\x1f\x8b half")
    else:
        target.write_bytes(gzip.compress(payload(100_000)))
    command = [sys.executable, "-I", "-m", "stages.send.tidy", "--gzip", str(tmp_path), plain.name, "absent"]
    subprocess.run(command, check=True)
    assert names(tmp_path) == [target.name]
    assert gzip.decompress(target.read_bytes()) == payload(100_000)
    assert target.stat().st_mode & 0o777 == 0o640


def test_the_counters_say_which_file_is_written(tmp_path: Path, clock: list[int]) -> None:
    tool = tool_in(tmp_path, slot=3, rotate_s=60)
    sender = Sender(tool)
    sender.step(block(tool, 1))
    path = tmp_path / "rec3-20231114T221320.123456789Z-lane0.pcap.part"
    assert sender.count("file_begun_ns", 3) == NOON_NS == int(sender.surroundings.live[index("send", "file_next_ns") + 3])
    assert (sender.count("file_bytes", 3), sender.count("file_inode", 3)) == (path.stat().st_size, path.stat().st_ino)
