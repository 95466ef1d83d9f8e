"""Every worker that a test has started is closed with it: sockets and files left open are errors."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from stages import memory
from tests.stages import delivery
from tests.stages.send.loopback import FAMILY, LOOPBACK


@pytest.fixture(autouse=True)
def _close_senders() -> Iterator[None]:
    yield
    while delivery.senders:
        delivery.senders.pop().stage.close()
    memory.forbid_all()


@pytest.fixture
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A datagram socket, and the other end of it: nobody reads there unless the test does."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    with contextlib.closing(near), contextlib.closing(far):
        yield near, far


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A UDP socket on loopback of the IP version that is the parameter (4 unless said)."""
    version = getattr(request, "param", 4)
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as opened:
        opened.bind((LOOPBACK[version], 0))
        opened.settimeout(20)
        yield opened
