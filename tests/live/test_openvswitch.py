"""Userspace Open vSwitch receives every tunnel that it knows from a running broker; what comes out of it is what libpcap selects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tapmesh import running, unique_name
from tests.libpcap import Filter, needs_libpcap, read
from tests.live.openvswitch import Switch, needs_openvswitch
from tests.live.test_veth import WEB, flows_in_order, send, tcpdump, traffic
from tests.netns import Namespace, connect, needs_root
from tests.stages.send.tshark import whole
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root, needs_libpcap, needs_openvswitch]


@dataclass(frozen=True)
class Way:
    """`tool`: the tunnel as we are told it. `options`: as Open vSwitch is."""

    name: str
    tool: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


FIRST = (
    Way("gre", "kind: gre, key: 1", "gre", {"key": 1}),
    Way("gre-full", "kind: gre, key: 2, sequence: true, checksum: true", "gre", {"key": 2}),
    Way("nvgre", "kind: nvgre, vsid: 3, flow_id: 4", "gre", {"key": 0x304}),
    Way("vxlan", "kind: vxlan, vni: 5", "vxlan", {"key": 5}),
    Way("geneve", "kind: geneve, vni: 6", "geneve", {"key": 6}),
    Way("geneve-opt", "kind: geneve, vni: 7, generation: true", "geneve", {"key": 7}),
)
SECOND = (
    Way("erspan2", "kind: erspan2, session: 8, index: 9", "erspan", {"key": 8, "erspan_ver": 1, "erspan_idx": 9}),
    Way("erspan3", "kind: erspan3, session: 10, hw_id: 3", "erspan", {"key": 10, "erspan_ver": 2, "erspan_dir": 0, "erspan_hwid": 3}),
)
"""On a switch of their own, because one switch takes what comes over GRE for either GRE or ERSPAN."""
ENDS = {"c": ("10.99.1.2", "fd99:1::2"), "d": ("10.99.2.2", "fd99:2::2")}
OURS = {"c": ("10.99.1.1", "fd99:1::1"), "d": ("10.99.2.1", "fd99:2::1")}
VERSIONS = (4, 6)
BURST = 6
"""Frames at a time: the switch's sockets hold some 90, and each of these comes over twelve tunnels."""


@dataclass
class Wires:
    """A sends on a0; B captures b0 and delivers over b-c and b-d; there the switches take it."""

    a: Namespace
    b: Namespace
    switches: dict[str, Switch]
    hosts: dict[str, Namespace]


@pytest.fixture
def wires(tmp_path: Path) -> Iterator[Wires]:
    with contextlib.ExitStack() as closing:
        a, b, c, d = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(4))
        connect(a, "a0", b, "b0", mtu=9000, quiet=True)
        switches = {}
        for name, host in (("c", c), ("d", d)):
            connect(b, f"b-{name}", host, "wire", mtu=1600)
            (tmp_path / name).mkdir()
            ends, ours = ENDS[name], OURS[name]
            switches[name] = closing.enter_context(
                contextlib.closing(Switch(host, tmp_path / name, "wire", f"{ends[0]}/24", f"{ends[1]}/64"))
            )
            b.ip("addr", "add", f"{ours[0]}/24", "dev", f"b-{name}")
            b.ip("addr", "add", f"{ours[1]}/64", "dev", f"b-{name}", "nodad")
            for end in ends:  # the kernel keeps only some frames while it asks for an address
                b.ip("neigh", "add", end, "lladdr", switches[name].mac, "dev", f"b-{name}")
        yield Wires(a, b, switches, {"c": c, "d": d})


def config(path: Path) -> Path:
    lines = ["node: live", "inputs: {span0: {kind: afpacket, interface: b0}}", "tools:"]
    names = []
    for where, ways in (("c", FIRST), ("d", SECOND)):
        for version, remote in zip(VERSIONS, ENDS[where], strict=True):
            for way in ways:
                names.append(f"{way.name}-{version}")
                lines.append(f'  {names[-1]}: {{tunnel: {{remote: "{remote}", {way.tool}}}}}')
    lines.append(f"maps: [{{name: web, rules: [pass: '{WEB}'], to: [{', '.join(names)}]}}]")
    path.write_text("\n".join(lines))
    return path


def test_open_vswitch_takes_in_every_tunnel_and_gives_the_very_frames(wires: Wires, tmp_path: Path) -> None:
    selects = Filter(WEB)
    frames = traffic()[::7]  # of every kind, and every size
    expected = [frame for frame in frames if selects(frame, len(frame))]
    assert len(expected) > 50
    assert any(frame[12:14] == b"\x81\x00" for frame in expected), "tagged frames too"
    dumps: dict[str, Path] = {}
    with contextlib.ExitStack() as stack:
        for where, ways in (("c", FIRST), ("d", SECOND)):
            for version, ours in zip(VERSIONS, OURS[where], strict=True):
                for way in ways:
                    name = f"{way.name}-{version}"
                    out = wires.switches[where].end(f"{way.name}{version}"[:11], way.kind, remote_ip=ours, **way.options)
                    dumps[name] = tmp_path / f"{name}.pcap"
                    stack.enter_context(tcpdump(wires.hosts[where], out, dumps[name]))
        with wires.b.inside():
            broker = stack.enter_context(running(config(tmp_path / "live.yaml"), tmp_path, unique_name())).wait_up()
        n_bytes = 24
        for at in range(0, len(frames), BURST):
            burst = frames[at : at + BURST]
            send(wires.a, "a0", burst)
            n_bytes += sum(16 + len(frame) for frame in burst if selects(frame, len(frame)))
            for name, dump in dumps.items():
                until(lambda dump=dump, n=n_bytes: len(whole(dump)) >= n, f"all frames out of {name}", 30)  # type: ignore[misc]
        assert broker.stop() == 0
        ledger = broker.ledger()
    for name, dump in dumps.items():
        came = [record.data for record in read(dump).records]
        assert sorted(came) == sorted(expected), name
        assert flows_in_order(came, expected), name  # the switch handles the packets of a burst by its own flows
    assert ledger["balanced"] is True
