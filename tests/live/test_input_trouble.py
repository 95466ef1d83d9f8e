"""What the operator reads while an input's interface is missing, down or without a link, and that all is well a second after it is."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.tapmesh import Broker, running, tapmesh, unique_name
from tests.live.test_veth import send
from tests.netns import Namespace, connect, needs_root
from tests.packets import udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

CONFIG = """
inputs:
  span0: {kind: afpacket, interface: b0}
tools:
  recorder: {kind: pcap, file: FILE}
maps:
  - {name: all, rules: [pass: udp], to: recorder}
http: 127.0.0.1:9464
"""
SOON_S = 1.0


@pytest.fixture
def host() -> Iterator[Namespace]:
    with contextlib.closing(Namespace()) as made:
        yield made


def health(host: Namespace) -> tuple[int, str]:
    with host.inside():
        try:
            with urllib.request.urlopen("http://127.0.0.1:9464/healthz", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def told(host: Namespace, broker: Broker, trouble: str) -> None:
    """By /healthz within a second, and then by `tapmesh status` from another namespace: `trouble`, or that all is well."""
    until(lambda: health(host) == ((503, f"{trouble}\n") if trouble else (200, "ok\n")), f"/healthz: {trouble or 'ok'}", SOON_S)
    done = tapmesh("status", "--name", broker.name, "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["healthy"], said["troubles"]) == ((1, False, [trouble]) if trouble else (0, True, []))


def delivered(broker: Broker) -> int:
    done = tapmesh("status", "--name", broker.name, "--json")
    return int(json.loads(done.stdout)["ledger"]["tools"]["recorder"]["delivered_frames"])


def test_a_dead_input_is_never_healthy_and_an_idle_one_is(host: Namespace, tmp_path: Path) -> None:
    config = tmp_path / "live.yaml"
    config.write_text(CONFIG.replace("FILE", str(tmp_path / "out.pcap")))
    with contextlib.ExitStack() as stack:
        with host.inside():
            broker = stack.enter_context(running(config, tmp_path, unique_name())).wait_up()
        told(host, broker, "input span0: there is no interface b0")
        connect(host, "a0", host, "b0", quiet=True)
        told(host, broker, "")

        for end, trouble in (("b0", "is down"), ("a0", "has no link")):
            host.ip("link", "set", end, "down")
            told(host, broker, f"input span0: interface b0 {trouble}")
            host.ip("link", "set", end, "up")
            told(host, broker, "")

        host.ip("link", "del", "a0")
        told(host, broker, "input span0: there is no interface b0")
        connect(host, "a0", host, "b0", quiet=True)
        told(host, broker, "")

        send(host, "a0", [udp_frame("10.1.0.1", 1, "10.2.0.1", 53, bytes([n])) for n in range(40)])
        until(lambda: delivered(broker) == 40, "all packets in the file")
        assert broker.stop() == 0
        events = [line["event"] for line in broker.log if line["event"].startswith("interface_")]
    # One that appears is down for a moment, and may be seen so.
    assert set(events) == {"interface_lost", "interface_down", "interface_no_link", "interface_returned"}
    assert events.count("interface_lost") == 2
    assert (events[0], events[-1]) == ("interface_lost", "interface_returned")
