"""Streams: what readers get is a capture with whole records, whatever they do, and what they do not get is counted."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.core.batch import Batch
from broker.core.model import Stream, Tls, Tool
from stages.send import usher
from stages.send.stream import StreamEgress
from tests.certificates import make_certificate, serving, trusting
from tests.libpcap import needs_libpcap, read
from tests.stages.delivery import Sender, encapsulate, fill, new_batch, payload
from tests.waiting import DEADLINE_S, until

pytestmark = needs_libpcap


def stream_tool(slot: int = 0, format: Any = "pcap", **options: Any) -> Tool:  # noqa: A002
    return Tool(f"stream{slot}", slot, format=format, stream=Stream(**options))


def frame(number: int, size: int = 100) -> bytes:
    return number.to_bytes(4, "big") + payload(size - 4, number)


def block(tool: Tool, n: int, seq: int = 0, size: int = 100) -> Batch:
    """Frames 100 * seq and on."""
    batch = new_batch()
    batch.seq = seq
    fill(batch, [frame(100 * seq + i, size) for i in range(n)], 1 << tool.slot)
    encapsulate(batch, tool)
    return batch


def egress_of(sender: Sender) -> StreamEgress:
    (found,) = sender.stage._egresses.values()
    assert isinstance(found, StreamEgress)
    return found


def port_of(sender: Sender) -> int:
    """Where it listens."""
    ushers = egress_of(sender)._usher
    until(lambda: ushers._listener is not None, "the listening socket")
    assert ushers._listener is not None
    return int(ushers._listener.getsockname()[1])


def until_read_by(sender: Sender, n: int) -> None:
    """`n` readers are ready for records."""
    made = egress_of(sender)

    def there() -> bool:
        made._meet()
        return len(made._readers) == n

    until(there, f"{n} readers")


class Reader:
    """Reads all that comes until the end, in a thread; `frames` says what libpcap makes of it."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.data = b""
        self.broken = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while piece := self.socket.recv(1 << 20):
                self.data += piece
        except OSError as error:
            self.broken = str(error)

    def frames(self, directory: Path) -> list[bytes]:
        """After the end."""
        self._thread.join(DEADLINE_S)
        self.socket.close()
        path = directory / f"stream-{id(self)}"
        path.write_bytes(self.data)
        reading = read(path)
        assert (reading.error, self.broken) == ("", "")
        return [record.data for record in reading.records]


def dial(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), DEADLINE_S)


@contextlib.contextmanager
def receiver(port: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        listening.listen()
        listening.settimeout(DEADLINE_S)
        yield listening


@pytest.mark.parametrize(("host", "format"), [("127.0.0.1", "pcap"), ("127.0.0.1", "pcapng"), ("::1", "pcap")])
def test_each_reader_gets_a_capture_from_when_it_came(tmp_path: Path, host: str, format: Any) -> None:  # noqa: A002
    tool = stream_tool(format=format, listen="[::1]:0" if ":" in host else "127.0.0.1:0")
    sender = Sender(tool)
    port = port_of(sender)
    first = Reader(dial(port, host))
    until_read_by(sender, 1)
    sender.step(block(tool, 5, 0))
    second = Reader(dial(port, host))
    until_read_by(sender, 2)
    sender.step(block(tool, 5, 1, 1400))
    sender.stage.close()
    early, late = [frame(i) for i in range(5)], [frame(100 + i, 1400) for i in range(5)]
    assert first.frames(tmp_path) == early + late
    assert second.frames(tmp_path) == late
    assert (sender.delivered(), sender.drops(), sender.count("delivered_bytes")) == (10, {}, 5 * 1500)


def test_we_dial_again_after_a_receiver_has_gone_and_begin_anew(tmp_path: Path) -> None:
    with receiver() as listening:
        tool = stream_tool(connect=f"127.0.0.1:{listening.getsockname()[1]}")
        sender = Sender(tool)
        one, _ = listening.accept()
        until_read_by(sender, 1)
        sender.step(block(tool, 3))
        assert len(one.recv(1000)) == 24 + 3 * 116
        one.close()
        seq = 0

        def noticed() -> bool:
            nonlocal seq
            seq += 1
            sender.step(block(tool, 1, seq))
            return sender.drops() != {}

        until(noticed, "the loss to be noticed")
        again = Reader(listening.accept()[0])
        until_read_by(sender, 1)
        sender.step(block(tool, 2, 50))
        sender.stage.close()
        assert again.frames(tmp_path) == [frame(5000), frame(5001)]
    assert sender.drops() == {"tool_down": sender.accounted(0) - sender.delivered()}


def test_where_nobody_listens_it_is_said_so() -> None:
    with receiver() as listening:
        port = listening.getsockname()[1]
    tool = stream_tool(connect=f"127.0.0.1:{port}")
    sender = Sender(tool)
    until(lambda: egress_of(sender)._usher.down != usher.TOOL_DOWN, "the answer")
    sender.step(block(tool, 3))
    assert sender.drops() == {"no_listener": 3}


def test_frames_that_come_while_there_is_no_reader_are_counted() -> None:
    tool = stream_tool(listen="127.0.0.1:0")
    sender = Sender(tool)
    sender.step(block(tool, 3))
    assert sender.drops() == {"tool_down": 3}


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_slow_reader_loses_whole_records_and_another_none(tmp_path: Path, encrypted: bool, certificate: Path) -> None:
    tool = stream_tool(listen="127.0.0.1:0", buffer_bytes=1 << 18, tls=Tls(cert=str(certificate)) if encrypted else None)
    sender = Sender(tool)
    port = port_of(sender)
    wrap = (lambda opened: trusting(certificate).wrap_socket(opened, server_hostname="127.0.0.1")) if encrypted else (lambda opened: opened)
    slow_socket = socket.socket()
    slow_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
    slow_socket.settimeout(DEADLINE_S)
    slow_socket.connect(("127.0.0.1", port))
    slow_socket = wrap(slow_socket)
    until_read_by(sender, 1)
    fast = Reader(wrap(dial(port)))
    until_read_by(sender, 2)
    seq = 0

    def left_behind() -> bool:
        nonlocal seq
        sender.step(block(tool, 100, seq, 1000))
        seq += 1
        until(lambda: len(fast.data) == 24 + seq * 100 * 1016, "the fast reader")
        return sender.count("reader_missed_frames") > 300

    until(left_behind, "the slow reader to be left behind")
    until_read_by(sender, 1)
    slow = Reader(slow_socket)  # now it reads
    until_read_by(sender, 2)
    sender.step(block(tool, 1, seq))
    sender.stage.close()
    sent = [frame(n, 1000) for n in range(100 * seq)] + [frame(100 * seq)]
    assert fast.frames(tmp_path) == sent
    got = slow.frames(tmp_path)
    assert got[-1] == sent[-1]
    assert got == [f for f in sent if f in set(got)]
    assert sender.count("reader_missed_frames") == len(sent) - len(got)
    assert (sender.delivered(), sender.drops()) == (len(sent), {})
    assert sender.count("reader_lost_frames") == 0


def test_a_reader_that_goes_with_records_of_ours_is_counted(tmp_path: Path) -> None:
    tool = stream_tool(listen="127.0.0.1:0", buffer_bytes=65_536)
    sender = Sender(tool)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        reader.connect(("127.0.0.1", port_of(sender)))
        until_read_by(sender, 1)
        for seq in range(40):
            sender.step(block(tool, 100, seq, 997))
        assert sender.drops()["full"] > 0
        until(lambda: not egress_of(sender)._usher._returned, "the usher to hold it")
        begun = next(iter(egress_of(sender)._usher._here.values())).held
    made = egress_of(sender)

    def has_parted() -> bool:
        made._meet()
        return not made._readers and not made._n_full

    until(has_parted, "word that the reader has gone")
    sender.step(block(tool, 2, 41))
    assert sender.drops()["tool_down"] == 2
    assert sender.count("reader_lost_frames") == begun


def test_there_are_no_more_readers_than_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usher, "MOST_READERS", 1)
    tool = stream_tool(listen="127.0.0.1:0")
    sender = Sender(tool)
    with dial(port_of(sender)) as first, dial(port_of(sender)) as second:
        assert first.recv(100)
        assert second.recv(100) == b""


def test_an_address_that_is_taken_is_tried_again_until_it_is_free() -> None:
    with receiver() as listening:
        port = listening.getsockname()[1]
        tool = stream_tool(listen=f"127.0.0.1:{port}")
        sender = Sender(tool)
        sender.step(block(tool, 1))
        assert sender.drops() == {"tool_down": 1}
    assert port_of(sender) == port


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signed by itself, for 127.0.0.1, its key in the same file."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "cert.pem")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_readers_that_dial_us_over_tls_get_all_of_it(tmp_path: Path, certificate: Path, version: ssl.TLSVersion) -> None:
    tool = stream_tool(listen="127.0.0.1:0", tls=Tls(cert=str(certificate), key=str(certificate.with_suffix(".key"))))
    sender = Sender(tool)
    context = trusting(certificate)
    context.maximum_version = version
    reader = Reader(context.wrap_socket(dial(port_of(sender)), server_hostname="127.0.0.1"))
    until_read_by(sender, 1)
    for seq in range(10):
        sender.step(block(tool, 100, seq, 1000))
    sender.stage.close()
    assert reader.frames(tmp_path) == [frame(n, 1000) for n in range(1000)]
    assert (sender.delivered(), sender.drops()) == (1000, {})


@pytest.mark.parametrize("options", [{}, {"server_name": "collector.example.net"}, {"verify": False}], ids=str)
def test_a_receiver_is_verified_before_it_gets_anything(tmp_path: Path, options: dict[str, Any]) -> None:
    by_name = "server_name" in options
    certificate = make_certificate(tmp_path / "c.pem", "DNS:collector.example.net" if by_name else "IP:127.0.0.1")
    with receiver() as listening:
        trust = {} if options.get("verify") is False else {"ca": str(certificate)}
        tool = stream_tool(connect=f"127.0.0.1:{listening.getsockname()[1]}", tls=Tls(**trust, **options))
        sender = Sender(tool)
        reader = Reader(serving(certificate).wrap_socket(listening.accept()[0], server_side=True))
        until_read_by(sender, 1)
        sender.step(block(tool, 3))
        sender.stage.close()
        assert reader.frames(tmp_path) == [frame(i) for i in range(3)]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")  # of versions that nobody ought to use
@pytest.mark.parametrize("wrong", ["unknown", "name", "plain", "old"])
def test_a_receiver_that_is_not_the_one_meant_gets_nothing(tmp_path: Path, certificate: Path, wrong: str) -> None:
    other = make_certificate(tmp_path / "other.pem", "DNS:other.example.net" if wrong == "name" else "IP:127.0.0.1")
    with receiver() as listening:
        ca = {"unknown": certificate, "name": other}.get(wrong, other)
        tool = stream_tool(connect=f"127.0.0.1:{listening.getsockname()[1]}", tls=Tls(ca=str(ca)))
        sender = Sender(tool)
        opened, _ = listening.accept()
        with opened:
            opened.settimeout(DEADLINE_S)
            if wrong == "plain":
                assert b"tapmesh" not in opened.recv(1000)
                opened.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            else:
                context = serving(other)
                if wrong == "old":
                    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
                    context.set_ciphers("ALL:@SECLEVEL=0")
                # A TLS 1.3 server is done before the client has looked at the certificate: then it reads the refusal.
                with pytest.raises(OSError, match=r"."), context.wrap_socket(opened, server_side=True) as refused:
                    refused.recv(100)
            until(lambda: not egress_of(sender)._usher._since, "the attempt to be over")
        sender.step(block(tool, 3))
        assert sender.drops() == {"tool_down": 3}


def test_with_a_ca_readers_must_show_a_certificate_of_it(tmp_path: Path, certificate: Path) -> None:
    tool = stream_tool(listen="127.0.0.1:0", tls=Tls(ca=str(certificate), cert=str(certificate)))
    sender = Sender(tool)
    anonymous = ssl.create_default_context(cafile=str(certificate))
    with pytest.raises(OSError, match=r"."), anonymous.wrap_socket(dial(port_of(sender)), server_hostname="127.0.0.1") as refused:
        refused.recv(100)
    reader = Reader(trusting(certificate).wrap_socket(dial(port_of(sender)), server_hostname="127.0.0.1"))
    until_read_by(sender, 1)
    sender.step(block(tool, 1))
    sender.stage.close()
    assert reader.frames(tmp_path) == [frame(0)]


def test_a_certificate_that_is_missing_is_a_tool_that_is_down_until_it_is_there(tmp_path: Path) -> None:
    tool = stream_tool(listen="127.0.0.1:0", tls=Tls(cert=str(tmp_path / "later.pem")))
    sender = Sender(tool)
    sender.step(block(tool, 2))
    assert sender.drops() == {"tool_down": 2}
    make_certificate(tmp_path / "later.pem")
    assert port_of(sender)


def test_one_that_dials_and_says_nothing_holds_nobody_up(tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usher, "GREETING_S", 0.3)
    tool = stream_tool(listen="127.0.0.1:0", tls=Tls(cert=str(certificate)))
    sender = Sender(tool)
    with dial(port_of(sender)) as silent:
        reader = Reader(trusting(certificate).wrap_socket(dial(port_of(sender)), server_hostname="127.0.0.1"))
        until_read_by(sender, 1)
        sender.step(block(tool, 1))
        assert silent.recv(100) == b"", "it is sent away"
    sender.stage.close()
    assert reader.frames(tmp_path) == [frame(0)]
