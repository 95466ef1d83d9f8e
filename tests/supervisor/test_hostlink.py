"""The talk with the stage host: answers and events in any order, refusals, silence, a host that is gone."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import msgpack
import pytest

from broker.supervisor import hostlink
from broker.supervisor.hostlink import HostError, HostLink
from broker.supervisor.processes import Process


@pytest.fixture
def ends() -> Iterator[tuple[HostLink, socket.socket]]:
    """The link, and the host's end of its connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = HostLink(Process(os.getpid()), None, ours)
    yield link, theirs
    link.close()
    theirs.close()


def say(host: socket.socket, **message: object) -> None:
    host.send(msgpack.packb(message))


def test_an_answer_is_found_among_events_and_no_event_is_lost(ends: tuple[HostLink, socket.socket]):
    link, host = ends
    say(host, event="ready")
    say(host, event="exited", pid=7, status=-9)
    say(host, ok=True, pid=8)
    assert link.request(do="start", lane=0, kind="send", worker=0) == {"ok": True, "pid": 8}
    assert msgpack.unpackb(host.recv(65536)) == {"do": "start", "lane": 0, "kind": "send", "worker": 0}
    assert [e["event"] for e in link.events()] == ["ready", "exited"]
    assert link.ready
    assert link.events() == []


def test_a_refusal_is_told_with_its_reason(ends: tuple[HostLink, socket.socket]):
    link, host = ends
    say(host, ok=False, reason="send worker 0 of lane 0 is running already")
    with pytest.raises(HostError, match="refuses to start: send worker 0 of lane 0 is running already"):
        link.request(do="start", lane=0, kind="send", worker=0)
    assert link.connected


def test_a_host_that_does_not_answer_is_given_up(ends: tuple[HostLink, socket.socket], monkeypatch: pytest.MonkeyPatch):
    link, host = ends
    monkeypatch.setattr(hostlink, "ANSWER_S", 0.05)
    with pytest.raises(HostError, match=rf"the stage host \(pid {os.getpid()}\) does not answer"):
        link.request(do="list")
    assert not link.connected
    del host


def test_progress_that_comes_meanwhile_is_no_answer(ends: tuple[HostLink, socket.socket], monkeypatch: pytest.MonkeyPatch):
    """Else one that compiles for minutes is waited for as long."""
    link, host = ends
    monkeypatch.setattr(hostlink, "ANSWER_S", 0.3)
    stop = threading.Event()

    def compile_kernels() -> None:
        while not stop.wait(0.05):
            say(host, event="progress", text="compiling kernels")

    with contextlib.ExitStack() as stack:
        thread = threading.Thread(target=compile_kernels)
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        stack.callback(threading.Timer(3, stop.set).cancel)
        begun = time.monotonic()
        with pytest.raises(HostError, match="does not answer"):
            link.request(do="quit")
        assert time.monotonic() - begun < 2


def test_a_host_that_is_gone_is_noticed(ends: tuple[HostLink, socket.socket]):
    link, host = ends
    say(host, event="progress", text="compiling kernels 1/9")
    host.close()
    assert [e["text"] for e in link.events()] == ["compiling kernels 1/9"]
    assert not link.connected
    with pytest.raises(HostError):
        link.request(do="list")
