"""Three hosts on one machine: A sends on a0, B is the broker (b0 in, b1 out), C counts on c0 and drops.

```
A a0 --- b0 B b1 --- c0 C          B: 10.99.0.1 on b1; C: 10.99.0.2 on c0
```

Frames end at b0 and c0 by a filter at their tc ingress, behind packet sockets and before the IP stack, which would cost more than some of
the brokers and is none of their business. It is classic BPF, so that no compiler is needed. Neighbours are fixed, since ARP ends there too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SOURCE, REMOTE = "10.99.0.1", "10.99.0.2"
MTU, JUMBO_MTU = 2000, 9200  # a full frame fits with its outer header: nobody has to make fragments
_DROP = ("bpf", "da", "bytecode", "1,6 0 0 2")  # return TC_ACT_SHOT


@dataclass(frozen=True)
class Wires:
    a: str
    b: str
    c: str

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """`words` to be run on a host: the process is the one that is started."""
        return ["ip", "netns", "exec", host, *words]

    def received(self) -> int:
        """Frames that have arrived at C."""
        return int(json.loads(_run("ip", "-n", self.c, "-s", "-j", "link", "show", "c0"))[0]["stats64"]["rx"]["packets"])

    def tc(self, *words: str) -> None:
        """tc on B."""
        _run("tc", "-n", self.b, *words)

    def ip(self, *words: str) -> None:
        """ip on B."""
        _run("ip", "-n", self.b, *words)

    def drop_at_ingress(self) -> None:
        """Frames end at b0 once the packet sockets have them."""
        self.tc("qdisc", "add", "dev", "b0", "clsact")
        self.tc("filter", "add", "dev", "b0", "ingress", "pref", "99", *_DROP)


def _run(*words: str) -> str:
    """RuntimeError with what it said."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextlib.contextmanager
def wires(mtu: int = MTU) -> Iterator[Wires]:
    """RuntimeError when they cannot be made here."""
    made = Wires(*(f"bench-{os.getpid()}-{host}" for host in "abc"))
    hosts = (made.a, made.b, made.c)
    try:
        for host in hosts:
            _run("ip", "netns", "add", host)
            _run("ip", "netns", "exec", host, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
            _run("ip", "-n", host, "link", "set", "lo", "up")
        for one, name, other, other_name in ((made.a, "a0", made.b, "b0"), (made.b, "b1", made.c, "c0")):
            ends = ("mtu", str(mtu), "type", "veth", "peer", "name", other_name, "mtu", str(mtu), "netns", other)
            _run("ip", "-n", one, "link", "add", name, *ends)
            _run("ip", "-n", one, "link", "set", name, "up")
            _run("ip", "-n", other, "link", "set", other_name, "up")
        for host, name, address in ((made.b, "b1", SOURCE), (made.c, "c0", REMOTE)):
            _run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", name)
        if shutil.which("ethtool"):
            # Else the veth carries runs as they are, and C counts each as one frame.
            _run("ip", "netns", "exec", made.b, "ethtool", "-K", "b1", "tx-udp-segmentation", "off")
        made.ip("neigh", "add", REMOTE, "lladdr", address_of(made.c, "c0"), "dev", "b1")
        _run("tc", "-n", made.c, "qdisc", "add", "dev", "c0", "clsact")
        _run("tc", "-n", made.c, "filter", "add", "dev", "c0", "ingress", *_DROP)
        yield made
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host], capture_output=True)


def address_of(host: str, interface: str) -> str:
    """Its Ethernet address."""
    return str(json.loads(_run("ip", "-n", host, "-j", "link", "show", interface))[0]["address"])
