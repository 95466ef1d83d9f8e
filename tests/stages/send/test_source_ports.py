"""The source port of tunnels over UDP: by flow, so that a receiver's queues share the load."""

from __future__ import annotations

import os
import socket

import pytest
from structlog.testing import capture_logs

from tests import packets as by_hand
from tests.stages.delivery import Sender, Surroundings, gre_tool, payload
from tests.stages.send.loopback import LOOPBACK, block, needs_root


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("kind", ["gre-udp", "vxlan", "geneve"])
@pytest.mark.parametrize(("version", "receiver"), [(4, 4), (6, 6)], indirect=["receiver"])
def test_source_ports_follow_the_flow_on_the_wire(kind: str, version: int, receiver: socket.socket) -> None:
    """Each flow has its port, whatever the worker; the kernel of the receiver accepts the checksum, or that there is none."""
    tool = gre_tool(0, kind, LOOPBACK[version], port=receiver.getsockname()[1])
    flows = [0, 1, 0x3FFF, 0x4000, 0xFFFF_FFFF, 0x8000_1234]
    batch = block([tool], [payload(60 + i, i) for i in range(len(flows))], flows=flows)
    for worker in range(2):
        Sender(tool, surroundings=Surroundings(worker=worker, n_workers=2)).step(batch)
    got = sorted((data[-60:], end[1]) for data, end in (receiver.recvfrom(2000) for _ in flows))
    assert got == sorted((payload(60 + i, i)[-60:], 49_152 + flow % 16_384) for i, flow in enumerate(flows))


@pytest.mark.root
@needs_root
def test_without_the_right_to_raw_sockets_all_flows_leave_from_one_port_and_that_is_told(receiver: socket.socket) -> None:
    tool = gre_tool(0, "gre-udp", "127.0.0.1", port=receiver.getsockname()[1])
    batch = block([tool], [payload(60)] * 4, flows=[1, 2, 3, 4])
    Sender(tool).step(batch)  # kernels are in memory: their cache is root's
    assert len({receiver.recvfrom(2000)[1] for _ in range(4)}) == 4
    os.seteuid(65_534)
    try:
        with capture_logs() as logs:
            Sender(tool).step(batch)
    finally:
        os.seteuid(0)
    ends = [receiver.recvfrom(2000) for _ in range(4)]
    assert len({end for _, end in ends}) == 1
    assert [data for data, _ in ends] == [by_hand.gre(payload(60))] * 4
    assert [line["event"] for line in logs] == ["tool_opened", "tool_one_port"]
