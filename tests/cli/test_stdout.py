"""Standard output as a capture: what tcpdump reads from it, with a reader that is slow, and one that has gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.tapmesh import COMMAND, Feed, nothing_left, numbered, unique_name
from tests.libpcap import needs_libpcap, read
from tests.packets import pcap
from tests.waiting import DEADLINE_S, until

pytestmark = needs_libpcap


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(numbered(20_000)))
    return path


def through_tcpdump(command: list[str], out: Path) -> tuple[int, str]:
    """`command | tcpdump -r - -w out`; exit status and stderr of the command."""
    broker = subprocess.Popen([*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tcpdump = subprocess.Popen(["tcpdump", "-Z", "root", "-r", "-", "-w", str(out)], stdin=broker.stdout, stderr=subprocess.DEVNULL)
    assert broker.stdout is not None
    broker.stdout.close()
    _, stderr = broker.communicate(timeout=120)
    assert tcpdump.wait(DEADLINE_S) == 0
    return broker.returncode, stderr


def test_a_replay_can_be_piped_into_tcpdump_and_nothing_is_missing(tmp_path: Path, source: Path) -> None:
    status, stderr = through_tcpdump(["replay", str(source), "-w", "-", "src port 4000"], tmp_path / "out.pcap")
    assert status == 0, stderr
    assert "balanced" in stderr, "the tables go to standard error"
    want = [frame for i, frame in enumerate(numbered(20_000)) if i % 50 == 0]
    assert [record.data for record in read(tmp_path / "out.pcap").records] == want


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_a_replay_waits_for_a_reader_that_is_slow(tmp_path: Path, source: Path, kind: str) -> None:
    """The stream is larger than what the kernel holds: 3 MB. It is begun to be read after the pipe has been full for a while."""
    out = tmp_path / "out.pcap"
    if kind == "file":
        with out.open("wb") as file:
            subprocess.run([*COMMAND, "replay", str(source), "-w", "-", ""], stdout=file, check=True, timeout=120)
    else:
        reading, writing = socket.socketpair() if kind == "socket" else map(os.fdopen, os.pipe(), ("rb", "wb"))
        with reading:
            process = subprocess.Popen([*COMMAND, "replay", str(source), "-w", "-", ""], stdout=writing, stderr=subprocess.PIPE)
            writing.close()
            data = b""
            recv = reading.recv if kind == "socket" else reading.read1  # type: ignore[union-attr]
            data = recv(1000)
            while piece := recv(20_000):
                data += piece
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr
        out.write_bytes(data)
    reading_back = read(out)
    assert (reading_back.error, [record.data for record in reading_back.records]) == ("", numbered(20_000))


def test_a_reader_that_has_seen_enough_is_a_tool_that_is_down(source: Path) -> None:
    broker = subprocess.Popen([*COMMAND, "replay", str(source), "-w", "-", "", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert broker.stdout is not None
    assert len(broker.stdout.read(1000)) == 1000
    broker.stdout.close()
    _, stderr = broker.communicate(timeout=120)
    assert broker.returncode == 1
    ledger, _ = json.JSONDecoder().raw_decode(stderr[stderr.index(b"{\n") :].decode())
    out = ledger["tools"]["out"]
    assert ledger["balanced"]
    assert out["delivered_frames"] + out["dropped_frames"]["tool_down"] == 20_000
    assert out["dropped_frames"]["tool_down"] > 0


def test_a_running_broker_can_be_looked_at_with_tcpdump_and_never_waits_for_it(tmp_path: Path) -> None:
    """The reader does not read at all until all has been sent to another tool; then it has missed whole records, and reads the rest."""
    feed = Feed(tmp_path / "feed")
    config = tmp_path / "c.yaml"
    name = unique_name()
    config.write_text(
        f"""node: test
inputs: {{feed: {{kind: pcap, file: {feed.path}}}}}
tools:
  look: {{kind: pcapng, file: "-"}}
  recorder: {{kind: pcap, file: {tmp_path / "all.pcap"}}}
maps: [{{name: all, rules: [pass: ""], to: [look, recorder]}}]
"""
    )
    frames = numbered(20_000)
    with (tmp_path / "stderr").open("w") as stderr:
        command = [*COMMAND, "run", "--config", str(config), "--name", name]
        broker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
    assert broker.stdout is not None
    try:
        content = pcap(frames)
        feed.write(content)
        until(lambda: (tmp_path / "all.pcap").exists() and (tmp_path / "all.pcap").stat().st_size == len(content), "the recorder")
        feed.end()
        data = broker.stdout.read()
        assert broker.wait(DEADLINE_S) == 0
    finally:
        feed.end()
        if broker.poll() is None:
            broker.send_signal(signal.SIGTERM)
            broker.wait(DEADLINE_S)
        broker.stdout.close()
    (tmp_path / "look.pcapng").write_bytes(data)
    result = subprocess.run(["tcpdump", "-n", "-r", str(tmp_path / "look.pcapng")], capture_output=True, text=True, check=True)
    reading = read(tmp_path / "look.pcapng")
    assert reading.error == ""
    assert len(result.stdout.splitlines()) == len(reading.records) < 20_000
    got = [record.data for record in reading.records]
    assert got == [frame for frame in frames if frame in set(got)]
    (line,) = [text for text in (tmp_path / "stderr").read_text().splitlines() if '"ledger_closed"' in text]
    tool = json.loads(line)
    assert tool["balanced"] is True
    assert nothing_left(name)
