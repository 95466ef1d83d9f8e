"""The receiver of the example believes nothing: it counts what is missing and refuses what is not GRE."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
import yaml

from broker.demo.example import Demo, example
from broker.demo.receiver import Received, Unwrapper
from tests.packets import gre, read_pcap, tcp_frame

FRAME = tcp_frame("10.0.0.1", 4000, "10.0.0.2", 443, b"hello")


def send(demo: Demo, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in datagrams:
            sender.sendto(datagram, ("127.0.0.1", demo.port))


def test_frames_are_written_as_they_were_and_holes_are_counted(tmp_path: Path) -> None:
    with example(tmp_path) as demo:
        send(
            demo,
            *(gre(FRAME + bytes([n]), key=7, sequence=n, with_checksum=n == 4) for n in (0, 1, 4, 3)),
            b"\0\0",
            gre(FRAME, protocol=0x800),
        )
        assert demo.stop_receiver() == Received(packets=4, bytes=4 * len(FRAME) + 4, missing=1, refused=2)
        _, packets = read_pcap(demo.received.read_bytes())
        assert [frame for _, frame in packets] == [FRAME + bytes([n]) for n in (0, 1, 4, 3)]


def test_the_receiver_is_gone_however_the_example_ends(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), example(tmp_path) as demo:
        raise KeyboardInterrupt
    assert demo.receiver.returncode is not None


def test_the_configuration_names_what_was_set_up(tmp_path: Path) -> None:
    with example(tmp_path) as demo:
        config = yaml.safe_load(demo.config.read_text())
    assert config["inputs"]["mirror"]["files"] == [str(demo.capture)]
    assert config["tools"]["ids"]["tunnel"]["port"] == demo.port
    assert config["tools"]["recorder"]["file"] == str(demo.recorded)
    assert demo.n_packets == len(read_pcap(demo.capture.read_bytes())[1])


@pytest.mark.parametrize(
    "datagram", [b"", b"\0", struct.pack("!HH", 0x2000, 0x6558), struct.pack("!HH", 1, 0x6558), struct.pack("!HH", 0, 0x88BE)]
)
def test_what_is_not_gre_with_a_frame_is_refused(datagram: bytes) -> None:
    unwrapper = Unwrapper()
    assert unwrapper.unwrap(datagram) is None
    assert unwrapper.summary() == Received(refused=1)


def test_each_key_has_its_own_run_of_numbers() -> None:
    unwrapper = Unwrapper()
    for key, number in ((1, 0), (2, 10), (1, 1), (2, 13)):
        assert unwrapper.unwrap(gre(FRAME, key=key, sequence=number)) == FRAME
    assert unwrapper.summary().missing == 2
