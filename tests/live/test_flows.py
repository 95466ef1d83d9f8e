"""Flows on wires: frames on a veth, their records at nfcapd, in both lanes, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.supervisor.companions import MODULE
from broker.supervisor.processes import find
from tests.cli.tapmesh import Broker, running, unique_name
from tests.flows.tools import needs, nfcapd, nfdump
from tests.live.test_veth import send
from tests.netns import Namespace, connect, needs_root
from tests.packets import tcp_frame, udp_frame
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root, needs("nfcapd", "nfdump")]

FLOWS = """
flows:
  idle_s: 2
  of: {of}
  exports: {{nf: {{kind: netflow9, to: "udp://127.0.0.1:{port}"}}}}
"""


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with contextlib.ExitStack() as closing:
        a, b = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(2))
        connect(a, "a0", b, "b0", quiet=True)
        yield a, b


def traffic(n: int) -> list[bytes]:
    found = []
    for i in range(n):
        client, port = f"10.1.{i % 5}.{i % 50 + 1}", 30_000 + i % 97
        found += [tcp_frame(client, port, "10.2.0.1", 443, bytes(i % 500)), udp_frame("10.2.0.9", 53, client, port, bytes(40))]
    return found


def metered(broker: Broker) -> int:
    from broker.supervisor.flow_ledger import flows_ledger
    from broker.supervisor.snapshot import Names, Reader

    ledger = flows_ledger(Reader(broker.pipeline()).take(Names()).lanes)
    assert ledger is not None
    return ledger.metered_packets


@pytest.mark.parametrize("of", ["captured", "forwarded"])
def test_every_packet_is_in_a_record_at_the_collector(hosts: tuple[Namespace, Namespace], tmp_path: Path, of: str) -> None:
    a, b = hosts
    (tmp_path / "nf").mkdir()
    config = tmp_path / "c.yaml"
    frames = traffic(1500)
    with b.inside():
        collector = nfcapd(tmp_path / "nf")
        port = collector.__enter__()
    config.write_text(
        "node: live\ninputs: {span: {kind: afpacket, interface: b0}}\nstages: {capture: 2, filter: 2}\n"
        f"tools: {{out: {{kind: pcap, file: {tmp_path}/out.pcap}}}}\nmaps: [{{name: tcp, rules: [pass: tcp], to: [out]}}]\n"
        + FLOWS.format(of=of, port=port)
    )
    with b.inside():
        broker = running(config, tmp_path, unique_name())
        live = broker.__enter__().wait_up()
    try:
        until(lambda: "export" in find(live.name, MODULE).values(), "the exporter to run")
        send(a, "a0", frames[:1500])
        os.kill(next(iter(find(live.name, MODULE))), signal.SIGKILL)
        live.process.kill()  # the supervisor: nobody misses it
        live.process.wait()
        send(a, "a0", frames[1500:])
        wanted = len(frames) if of == "captured" else len(frames) // 2
        until(lambda: metered(live) == wanted, "all packets to be metered")
        with b.inside(), running(config, tmp_path, live.name) as second:
            until(lambda: second.events("pipeline_adopted"), "the next supervisor")
            until(lambda: "export" in find(live.name, MODULE).values(), "an exporter again")
            assert second.stop() == 0, second.stderr
            flows = second.ledger()["ledger"]["flows"]
    finally:
        broker.__exit__(None, None, None)
        with b.inside():
            collector.__exit__(None, None, None)
    found = nfdump(tmp_path / "nf")
    assert flows["metered_packets"] == wanted
    assert flows["unmetered_packets"]["unwanted"] == len(frames) - wanted
    assert (flows["off_by"], flows["dropped_records"]) == (0, 0)
    truth: Counter[tuple[str, str, int, int, int]] = Counter()
    for i in range(1500):
        client, port = f"10.1.{i % 5}.{i % 50 + 1}", 30_000 + i % 97
        truth[client, "10.2.0.1", port, 443, 6] += 1
        if of == "captured":
            truth["10.2.0.9", client, 53, port, 17] += 1
    assert found.packets == truth
