"""Open vSwitch in user space (its netdev datapath), with a database, sockets and logs of its own: a receiver that knows nothing of us."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.netns import Namespace, connect
from tests.waiting import until

_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_PROGRAMS = ("ovsdb-tool", "ovsdb-server", "ovs-vswitchd", "ovs-vsctl", "ovs-ofctl")

needs_openvswitch = pytest.mark.skipif(
    not _SCHEMA.exists() or any(shutil.which(name) is None for name in _PROGRAMS),
    reason="Open vSwitch is not installed (Debian: openvswitch-switch)",
)


class Switch:
    """One that ends tunnels in the namespace `host`: what comes out of each leaves by a port of its own. Close it when done.

    The bridge `under` has the interface `wire` and, as a tap device of its name, the addresses that tunnels end at. The bridge `inside`
    has the tunnels; what comes out of tunnel `t` is seen on the interface `out-t` of `host`.
    """

    def __init__(self, host: Namespace, directory: Path, wire: str, *addresses: str) -> None:
        self._host = host
        self._socket = f"unix:{directory / 'db.sock'}"
        self._directory = directory
        self._environment = {**os.environ, **{f"OVS_{name}": str(directory) for name in ("RUNDIR", "LOGDIR", "DBDIR", "SYSCONFDIR")}}
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            self._set_up(wire, addresses)
        except BaseException:
            self.close()
            raise

    def _set_up(self, wire: str, addresses: Sequence[str]) -> None:
        self._run("ovsdb-tool", "create", self._directory / "conf.db", _SCHEMA)
        self._start("ovsdb-server", f"--remote=p{self._socket}", self._directory / "conf.db")
        until((self._directory / "db.sock").exists, "the switch's database")
        self._configure("--no-wait", "init")
        self._start("ovs-vswitchd", self._socket, "--disable-system")
        self._configure("add-br", "under", "--", "set", "bridge", "under", "datapath_type=netdev", "--", "add-port", "under", wire)
        self._configure("add-br", "inside", "--", "set", "bridge", "inside", "datapath_type=netdev", "fail_mode=secure")
        for address in addresses:
            self._host.ip("addr", "add", address, "dev", "under", *(["nodad"] if ":" in address else []))
        self._host.ip("link", "set", "under", "up")

    def _inside(self, program: str, *words: object) -> list[str]:
        return [program, "-vconsole:off", f"--log-file={self._directory / program}.log", *map(str, words)]

    def _start(self, program: str, *words: object) -> None:
        command = self._inside(program, f"--unixctl={self._directory / program}.ctl", *words)
        with self._host.inside():
            self._processes.append(subprocess.Popen(command, env=self._environment))

    def _run(self, *words: object) -> str:
        with self._host.inside():
            done = subprocess.run([*map(str, words)], env=self._environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    def _configure(self, *words: str) -> None:
        self._run("ovs-vsctl", "--timeout=30", f"--db={self._socket}", *words)

    @property
    def mac(self) -> str:
        """Of the addresses that tunnels end at."""
        (link,) = json.loads(self._host.ip("-j", "link", "show", "under"))
        return str(link["address"])

    def end(self, name: str, kind: str, **options: object) -> str:
        """Terminate a tunnel (ovs-vswitchd.conf.db(5), Interface). Returns the interface on which its frames come out."""
        out = f"out-{name}"
        connect(self._host, f"in-{name}", self._host, out, mtu=9000, quiet=True)
        self._configure("add-port", "inside", f"in-{name}")
        settings = [f"options:{key}={value}" for key, value in options.items()]
        self._configure("add-port", "inside", name, "--", "set", "interface", name, f"type={kind}", *settings)
        problem = self._run("ovs-vsctl", f"--db={self._socket}", "get", "interface", name, "error").strip()
        assert problem == "[]", problem
        self._run("ovs-ofctl", "add-flow", f"unix:{self._directory / 'inside.mgmt'}", f"in_port={name},actions=output:in-{name}")
        return out

    def close(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            process.wait(30)
