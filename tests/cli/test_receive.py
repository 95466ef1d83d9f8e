"""`tapmesh receive`: real processes, fed by plain sockets; libpcap, tcpdump and a packet socket say what comes out."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.tapmesh import COMMAND, Broker, numbered, running, tapmesh
from tests.netns import Namespace, needs_root
from tests.packets import gre, pcap, read_pcap
from tests.waiting import until


@dataclass
class Receiver:
    """A command that is going on, and the port that it listens to."""

    process: subprocess.Popen[bytes]
    errors: Path
    port: int

    def wait_ready(self) -> None:
        until(lambda: "receiving\n" in self.errors.read_text() or self.process.poll() is not None, "it to receive")
        assert self.process.poll() is None, self.errors.read_text()

    def send(self, packets: list[bytes]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for packet in packets:
                sender.sendto(packet, ("127.0.0.1", self.port))

    def told(self) -> str:
        """The table of senders as it is now, asked for by a signal."""
        before = len(self.errors.read_text())
        self.process.send_signal(signal.SIGUSR1)
        until(lambda: self.errors.read_text()[before:].endswith("\n"), "an answer")
        return self.errors.read_text()[before:]

    def received(self) -> int:
        found = re.search(r"127\.0\.0\.1 +gre +\S+ +([\d,]+)", self.told())
        return int(found[1].replace(",", "")) if found else 0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def receiving(directory: Path, *words: object, stdout: int | None = None) -> Iterator[Receiver]:
    port, errors = free_port(), directory / "errors"
    command = [*COMMAND, "receive", "--listen", "gre-udp", "--from", "127.0.0.1", "--port", str(port), *map(str, words)]
    with errors.open("w") as stderr, (directory / "printed").open("w") as printed:
        process = subprocess.Popen(command, stdout=printed if stdout is None else stdout, stderr=stderr)
    try:
        yield Receiver(process, errors, port)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def in_gre(frames: list[bytes], key: int = 7) -> list[bytes]:
    return [gre(frame, key=key, sequence=n) for n, frame in enumerate(frames)]


def test_a_file_gets_the_frames_and_the_end_tells_what_the_sender_sent(tmp_path: Path) -> None:
    frames = numbered(2000)
    packets = in_gre(frames)
    with receiving(tmp_path, "-w", tmp_path / "out.pcap") as receiver:
        receiver.wait_ready()
        assert "nothing has come yet" in receiver.told()
        receiver.send(packets[:500] + packets[600:] + packets[1990:])
        until(lambda: receiver.received() == 1910, "all of them to be counted")
        assert receiver.stop() == 0, receiver.errors.read_text()
    assert [f for _, f in read_pcap((tmp_path / "out.pcap").read_bytes())[1]] == frames[:500] + frames[600:] + frames[1990:]
    printed = (tmp_path / "printed").read_text()
    (line,) = (line.split() for line in printed.splitlines() if "127.0.0.1" in line)
    assert (line[:4], line[-6:]) == (["127.0.0.1", "gre", "7", "1,910"], ["2,000", "100", "0", "10", "0", "-"])
    assert "= received: balanced" in printed


def test_only_what_an_expression_wants_is_written(tmp_path: Path) -> None:
    frames = numbered(100)
    with receiving(tmp_path, "-w", tmp_path / "out.pcap", "udp", "src", "port", "4007") as receiver:
        receiver.wait_ready()
        receiver.send(in_gre(frames))
        until(lambda: receiver.received() == 100, "all of them to be counted")
        assert receiver.stop() == 0, receiver.errors.read_text()
    assert [f for _, f in read_pcap((tmp_path / "out.pcap").read_bytes())[1]] == [frames[7], frames[57]]


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="tcpdump is not installed")
def test_standard_output_is_a_stream_that_tcpdump_reads(tmp_path: Path) -> None:
    frames = numbered(300)
    reading, writing = os.pipe()
    with (tmp_path / "seen.pcap").open("wb") as seen:
        tcpdump = subprocess.Popen(["tcpdump", "-U", "-r", "-", "-w", "-"], stdin=reading, stdout=seen, stderr=subprocess.DEVNULL)
    os.close(reading)
    with receiving(tmp_path, "-w", "-", stdout=writing) as receiver:
        os.close(writing)
        receiver.wait_ready()
        receiver.send(in_gre(frames))
        until(lambda: receiver.received() == 300, "all of them to be counted")
        assert receiver.stop() == 0, receiver.errors.read_text()
    assert tcpdump.wait(60) == 0
    assert [f for _, f in read_pcap((tmp_path / "seen.pcap").read_bytes())[1]] == frames
    assert "= received: balanced" in receiver.errors.read_text()


@needs_root
@pytest.mark.root
def test_frames_come_in_on_a_tap_device(tmp_path: Path) -> None:
    frames = numbered(100)  # as many as the sniffer has room for
    with contextlib.closing(Namespace()) as host, host.inside(), receiving(tmp_path, "--tap", "tm-tap") as receiver:
        receiver.wait_ready()
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sniffer:
            sniffer.bind(("tm-tap", 0x0003))
            receiver.send(in_gre(frames))
            seen: list[bytes] = []

            def all_seen() -> bool:
                while select.select([sniffer], [], [], 0)[0]:
                    frame, about = sniffer.recvfrom(65_536)
                    if about[2] != socket.PACKET_OUTGOING:
                        seen.append(frame)
                return len(seen) >= len(frames)

            until(all_seen, "all frames on the device")
        assert seen == frames
        assert receiver.stop() == 0, receiver.errors.read_text()
        assert "tm-tap" not in host.ip("link")


def test_a_port_that_is_taken_ends_it_with_the_reason(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 0))
        port = other.getsockname()[1]
        done = tapmesh("receive", "--listen", "vxlan", "--from", "127.0.0.1", "--port", port, "-w", tmp_path / "out.pcap")
    assert done.returncode == 1
    assert f"vxlan port {port}: UDP port {port} is taken by another program" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--listen", "gre", "--port", "5", "--from", "::1"), "gre has no port"),
        (("--listen", "vxlan", "--key", "5", "--from", "::1"), "vxlan has no key"),
        (("--listen", "gre", "--vni", "5", "--from", "::1"), "gre has no vni"),
        (("--listen", "gre", "--from", "10.0.0.1/8"), "'10.0.0.1/8' has bits set behind its prefix"),
        (("--listen", "gre"), "--from"),
        (("--listen", "vxlan", "--vni", "16777216", "--from", "::1"), "16777216 is out of range, expected 0..16777215"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(words: tuple[str, ...], said: str) -> None:
    done = tapmesh("receive", *words, "-w", "/dev/null")
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_brokers_chain_and_their_books_agree(tmp_path: Path) -> None:
    """One sends a file through a tunnel to another, whose capture worker is killed meanwhile: delivered = received + lost."""
    frames, port = numbered(20_000), free_port()
    (tmp_path / "in.pcap").write_bytes(pcap(frames))
    (tmp_path / "far.yaml").write_text(
        f"""inputs: {{remote: {{kind: tunnel, listen: gre-udp, port: {port}, from: 127.0.0.1}}}}
tools: {{recorder: {{kind: pcap, file: {tmp_path}/out.pcap}}}}
collector: recorder
"""
    )
    (tmp_path / "near.yaml").write_text(
        f"""inputs: {{file: {{kind: pcap, file: {tmp_path}/in.pcap, pace: 10000}}}}
tools: {{far: {{tunnel: {{kind: gre-udp, remote: 127.0.0.1, port: {port}, key: 3, sequence: true}}}}}}
collector: far
"""
    )
    with running(tmp_path / "far.yaml", tmp_path) as far:
        far.wait_up()
        with running(tmp_path / "near.yaml", tmp_path) as near:
            until(lambda: far.cursor("capture") > 5, "some blocks to come")
            far.wait_again("capture", far.kill("capture"))
            assert near.process.wait(60) == 0, near.stderr
            delivered = near.ledger()["ledger"]["tools"]["far"]["delivered_frames"]
        until(lambda: counted(far)["expected_packets"] == delivered, "the far end to have counted all")
        sender = counted(far)
        assert far.stop() == 0, far.stderr
        captured = far.ledger()["ledger"]["inputs"]["remote"]["captured_packets"]
    assert (sender["address"], sender["tunnel"], sender["session"]) == ("127.0.0.1", "gre", 3)
    assert sender["received_packets"] == captured
    assert delivered == sender["received_packets"] + sender["lost_packets"]
    written = [f for _, f in read_pcap((tmp_path / "out.pcap").read_bytes())[1]]
    assert len(written) == captured
    assert set(written) <= set(frames)


def counted(broker: Broker) -> dict[str, object]:
    senders = json.loads(tapmesh("status", "--name", broker.name, "--json").stdout)["senders"]
    return dict(senders[0]) if senders else {"expected_packets": 0}
