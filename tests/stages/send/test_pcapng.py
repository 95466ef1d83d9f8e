"""pcapng: block structure, times, lengths and inputs as capinfos, tshark and libpcap read them."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path

import pytest

from broker.core.batch import Batch
from broker.core.model import Input, Tool
from tests.libpcap import needs_libpcap, read
from tests.packets import tcp_frame
from tests.stages.delivery import NOON_NS, Sender, Surroundings, encapsulate, fill, new_batch, payload

INPUTS = (Input("span0", "pcap", slot=5), Input("back-up", "pcap", slot=63), Input("span0", "pcap", slot=5))
TIMES = [0, 1, NOON_NS, 4_294_967_296_000_000_001, NOON_NS + 1]
SIZES = [0, 1, 2, 3, 1514]


def tool_of(path: Path) -> Tool:
    return Tool("rec", 0, file=str(path), format="pcapng")


def block(tool: Tool, packets: list[bytes], seq: int = 0, inputs: list[int] | None = None, **rows: list[int]) -> Batch:
    batch = new_batch()
    batch.seq = seq
    fill(batch, packets, 1, **rows)
    batch.packets["input"][: len(packets)] = inputs or [5] * len(packets)
    encapsulate(batch, tool)
    return batch


def tshark(path: Path, *names: str) -> list[list[str]]:
    command = ["tshark", "-r", str(path), "-T", "fields", *(part for name in names for part in ("-e", name))]
    return [line.split("\t") for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    tool = tool_of(tmp_path / "out.pcapng")
    sender = Sender(tool, surroundings=Surroundings(inputs=INPUTS))
    packets = [payload(n, n) for n in SIZES]
    sender.step(block(tool, packets, inputs=[5, 63, 5, 63, 5], times=TIMES, wirelens=[60, 1, 2, 9000, 1514]))
    sender.stage.close()
    assert (sender.delivered(), sender.count("delivered_bytes")) == (5, sum(SIZES))
    return tmp_path / "out.pcapng"


@needs_libpcap
def test_libpcap_reads_every_byte_time_and_length_back(written: Path) -> None:
    reading = read(written)
    assert (reading.error, reading.datalink) == ("", 1)
    want = list(zip(TIMES, [60, 1, 2, 9000, 1514], [payload(n, n) for n in SIZES], strict=True))
    assert [(r.ts_ns, r.wirelen, r.data) for r in reading.records] == want


def test_tshark_says_which_input_each_packet_came_from_to_the_nanosecond(written: Path) -> None:
    found = tshark(written, "frame.interface_name", "frame.time_epoch", "frame.len", "frame.cap_len")
    names = ["span0", "back-up", "span0", "back-up", "span0"]
    want = [
        [name, f"{ts // 10**9}.{ts % 10**9:09}", str(wirelen), str(n)]
        for name, ts, wirelen, n in zip(names, TIMES, [60, 1, 2, 9000, 1514], SIZES, strict=True)
    ]
    assert found == want


def test_capinfos_finds_a_whole_file_with_an_interface_for_each_input(written: Path) -> None:
    told = subprocess.run(["capinfos", str(written)], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    lines = [" ".join(line.split()) for line in told.stdout.splitlines()]
    for line in (
        "File type: Wireshark/... - pcapng",
        "Number of packets: 5",
        "File timestamp precision: nanoseconds (9)",
        "Number of interfaces in file: 2",
        "Capture application: tapmesh",
    ):
        assert line in lines
    per_interface = [line for line in lines if line.startswith(("Name =", "Number of packets ="))]
    assert per_interface == ["Name = span0", "Number of packets = 3", "Name = back-up", "Number of packets = 2"]


def test_every_size_is_padded_so_that_the_next_block_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.send.formats.BUFFER_BYTES", 3000)
    tool = tool_of(tmp_path / "out.pcapng")
    sender = Sender(tool)
    packets = [tcp_frame("10.0.0.1", 1, "10.0.0.2", 2, payload(n, n)) for n in range(200)]
    for seq, some in enumerate((packets[:100], packets[100:])):
        sender.step(block(tool, some, seq, inputs=[0] * 100))
    assert [bytes.fromhex(row[0]) for row in tshark(tmp_path / "out.pcapng", "tcp.payload") if row[0]] == [
        payload(n, n) for n in range(1, 200)
    ]


@pytest.mark.parametrize(("committed", "torn"), list(itertools.product((0, 3), (0, 1, 40))))
def test_after_a_crash_the_file_is_cut_to_whole_blocks(tmp_path: Path, committed: int, torn: int) -> None:
    path = tmp_path / "out.pcapng"
    tool = tool_of(path)
    died = Sender(tool)
    died.step(block(tool, [payload(61)] * committed))
    counters = died.surroundings.counters.copy()
    died.step(block(tool, [payload(70)] * 4, 1))
    died.stage.close()
    with path.open("ab") as file:
        file.write(payload(torn))
    again = Sender(tool, surroundings=Surroundings(epoch=2, counters=counters))
    again.step(block(tool, [payload(70)] * 4, 1))
    reading = read(path)
    assert (reading.error, [len(r.data) for r in reading.records]) == ("", [61] * committed + [70] * 4)


def test_the_two_formats_are_never_mixed_in_one_file(tmp_path: Path) -> None:
    one, other = Tool("rec", 0, file=str(tmp_path / "out")), tool_of(tmp_path / "out")
    sender = Sender(one)
    sender.step(block(one, [payload(60)]))
    sender.load(other)
    sender.step(block(other, [payload(60)], 1))
    assert sender.drops() == {"tool_down": 1}
    assert len(read(tmp_path / "out").records) == 1
