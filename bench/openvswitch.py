"""Open vSwitch with its userspace datapath (netdev) as a side of the live bench: flows into a GRE port, daemons of its own.

The outer header's way is found by OVS itself: b1 is a port of the bridge that has the outer address.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.brokers import NET, Running, background, other_hosts, pinned
from bench.wires import REMOTE, SOURCE, Wires, address_of

COMMANDS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl", "ovs-appctl")
SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_RECEIVE_BUFFER = Path("/proc/sys/net/core/rmem_default")
_RECEIVE_BYTES = 32 << 20  # the default of 208 KiB loses packets at any rate worth a measurement


@contextlib.contextmanager
def switch(wires: Wires, directory: Path) -> Iterator[Running]:
    """RuntimeError with what a command said."""
    home = directory / "ovs"
    home.mkdir(exist_ok=True)
    for old in home.iterdir():
        old.unlink()
    database, socket, control = home / "conf.db", f"unix:{home}/db.sock", home / "ctl"
    environment = [f"OVS_RUNDIR={home}", f"OVS_LOGDIR={home}", f"OVS_DBDIR={home}"]

    def here(*words: str) -> list[str]:
        return wires.command(wires.b, ["env", *environment, *words])

    def run(*words: str) -> None:
        done = subprocess.run(here(*words), capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)[:200]}: {done.stderr.strip()}")

    wires.drop_at_ingress()
    own_address = address_of(wires.b, "b1")
    run("ovsdb-tool", "create", str(database), str(SCHEMA))
    with _receive_buffers(), contextlib.ExitStack() as stack:
        server = stack.enter_context(
            background(
                here("ovsdb-server", str(database), f"--remote=p{socket}", f"--unixctl={home}/db.ctl", "-vconsole:info"),
                until="ovsdb-server (Open vSwitch)",
            )
        )
        run("ovs-vsctl", f"--db={socket}", "--no-wait", "init")
        daemon = ("ovs-vswitchd", socket, f"--unixctl={control}", "-vconsole:info", "--pidfile")
        vswitchd = stack.enter_context(background(pinned(here(*daemon)), until="ovs-vswitchd (Open vSwitch)"))
        wires.ip("addr", "flush", "dev", "b1")
        netdev = "datapath_type=netdev"
        configure = ("ovs-vsctl", f"--db={socket}", "--timeout=20")
        out = f"other-config:hwaddr={own_address}".replace(":", r"\:").replace(r"config\:hwaddr", "config:hwaddr")
        run(*configure, "add-br", "out", "--", "set", "bridge", "out", netdev, out, "fail-mode=standalone", "--", "add-port", "out", "b1")
        wires.ip("addr", "add", f"{SOURCE}/24", "dev", "out")
        wires.ip("link", "set", "out", "up", "mtu", "2000")
        tunnel = ("set", "interface", "tun", "type=gre", f"options:remote_ip={REMOTE}", "options:key=7")
        bridge = ("add-br", "in", "--", "set", "bridge", "in", netdev, "fail-mode=secure")
        run(*configure, *bridge, "--", "add-port", "in", "b0", "--", "add-port", "in", "tun", "--", *tunnel)
        run("ovs-appctl", "-t", str(control), "tnl/neigh/set", "out", REMOTE, address_of(wires.c, "c0"))
        flows = home / "flows"
        nets = [f"{host}" for host, _ in other_hosts()] + [NET]
        flows.write_text("".join(f"priority=10,ip,in_port=b0,nw_src={net},actions=output:tun\n" for net in nets))
        run("ovs-ofctl", "--names", "add-flows", "in", str(flows))
        yield Running(lambda: [*server.pids(), *vswitchd.pids()])


@contextlib.contextmanager
def _receive_buffers() -> Iterator[None]:
    """OVS takes what the system gives a socket by default; put back afterwards."""
    if not os.access(_RECEIVE_BUFFER, os.W_OK):
        yield
        return
    before = _RECEIVE_BUFFER.read_text()
    _RECEIVE_BUFFER.write_text(str(_RECEIVE_BYTES))
    try:
        yield
    finally:
        _RECEIVE_BUFFER.write_text(before)
