"""An opener that does not answer: said soon, waited for shortly afterwards, and no reason to give up what it keeps."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.core.model import Input, Lane
from broker.privileges import asking
from stages.capture.packet_socket import PacketSocket
from stages.capture.socket_filter import TAKE_ALL
from stages.send.rules import Rules


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / asking.SOCKET_NAME))
        listener.listen(8)
        assert asking.use(tmp_path)
        yield
    (tmp_path / asking.SOCKET_NAME).unlink()
    asking.use(tmp_path)
    asking._hangs = False


@pytest.mark.usefixtures("hung")
def test_who_sends_goes_on() -> None:
    begun = time.monotonic()
    rules = Rules()
    assert [rules.now() for _ in range(100)] == [""] * 100
    assert time.monotonic() - begun < 1.0


@pytest.mark.usefixtures("hung")
def test_capture_opens_no_other_socket_than_the_one_that_may_be_kept() -> None:
    near = Input("near", "afpacket", interface="lo")
    for _ in range(3):
        with pytest.raises(TimeoutError, match="the opener does not answer"):
            PacketSocket(near, Lane(0, (near,)), TAKE_ALL)
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        asking.find_kept("capture-0", "lo")
    assert time.monotonic() - begun < 1.0
