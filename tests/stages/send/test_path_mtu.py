"""What a router on the way says about the MTU of a link further on: learnt within a second, and forgotten again.

Three namespaces: ours, a router, the receiver behind a link that takes less than ours. Nothing tells us so but ICMP.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from stages.encapsulate.stage import Encapsulate
from tests import packets as by_hand
from tests.netns import Namespace, connect, needs_root
from tests.stages.delivery import (
    Sender,
    Surroundings,
    allow_batch,
    allow_encapsulate,
    fill,
    generation,
    gre_tool,
    new_batch,
    payload,
)
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]

WIDE, NARROW = 1500, 1300
END = {4: "10.88.2.2", 6: "fd88:2::2"}
KINDS = [(kind, version) for kind in ("gre", "vxlan") for version in (4, 6)]
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
IP_BYTES = {4: 20, 6: 40}
TUNNEL_BYTES = {"gre": 4, "vxlan": 16}
SHORT, LONG = by_hand.ethernet(payload(600), type=0x88B5), by_hand.ethernet(payload(1400), type=0x88B5)
SEEN_S = 2.0  # it is looked for twice a second


@dataclass
class Hosts:
    near: Namespace
    router: Namespace
    far: Namespace

    def narrow(self, mtu: int) -> None:
        """The MTU of the link behind the router."""
        self.router.ip("link", "set", "r2", "mtu", str(mtu))
        self.far.ip("link", "set", "f0", "mtu", str(mtu))

    def refused(self, version: int) -> int:
        """Packets that the router has dropped because they were too long for the link."""
        with self.router.inside():
            if version == 6:
                with open("/proc/thread-self/net/snmp6") as file:
                    return int(dict(line.split() for line in file)["Ip6InTooBigErrors"])
            with open("/proc/thread-self/net/snmp") as file:
                names, values = (line.split() for line in file if line.startswith("Ip:"))
            return int(dict(zip(names, values, strict=True))["FragFails"])


def _set(host: Namespace, **settings: int) -> None:
    with host.inside():
        for name, value in settings.items():
            with open(f"/proc/sys/net/{name.replace('__', '/')}", "w") as file:
                file.write(str(value))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as closing:
        near, router, far = (closing.enter_context(contextlib.closing(Namespace())) for _ in range(3))
        connect(near, "n0", router, "r1")
        connect(router, "r2", far, "f0")
        _set(router, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        # What was learnt holds for three seconds instead of ten minutes.
        _set(near, ipv4__route__mtu_expires=3, ipv6__route__mtu_expires=3)
        for host, name, number, net in ((near, "n0", 1, 1), (router, "r1", 2, 1), (router, "r2", 1, 2), (far, "f0", 2, 2)):
            host.ip("addr", "add", f"10.88.{net}.{number}/24", "dev", name)
            host.ip("addr", "add", f"fd88:{net}::{number}/64", "dev", name, "nodad")
        for host, via in ((near, 1), (far, 2)):
            host.ip("route", "add", "default", "via", f"10.88.{via}.{3 - via}")
            host.ip("-6", "route", "add", "default", "via", f"fd88:{via}::{3 - via}")
        for host, name, other, peer, ends in (
            (near, "n0", router, "r1", ("10.88.1.2", "fd88:1::2")), (router, "r2", far, "f0", tuple(END.values())),
            (router, "r1", near, "n0", ("10.88.1.1", "fd88:1::1")),
        ):  # fmt: skip
            (link,) = json.loads(other.ip("-j", "link", "show", peer))
            for end in ends:  # the kernel keeps only some frames while it asks for an address
                host.ip("neigh", "add", end, "lladdr", link["address"], "dev", name)
        yield Hosts(near, router, far)


class Tools:
    """One of each of KINDS: encapsulate and send, block after block, and what has come to each in the far namespace."""

    def __init__(self, hosts: Hosts, oversize: str, closing: contextlib.ExitStack) -> None:
        self.tools = [replace(gre_tool(slot, kind, END[v]), oversize=oversize) for slot, (kind, v) in enumerate(KINDS)]
        self.came: list[list[bytes]] = [[] for _ in KINDS]
        self.rounds = 0
        with hosts.far.inside():
            self._sockets = [closing.enter_context(_receiver(kind, version)) for kind, version in KINDS]
        self._surroundings = Surroundings()
        self._encapsulate = Encapsulate()
        self._encapsulate.open(self._surroundings.context)
        self.look()
        self.sender = Sender(*self.tools)

    def look(self) -> None:
        """Ask the kernel for the MTUs now, and then not for half a second."""
        self._encapsulate.load(generation(*self.tools))

    def round(self, *packets: bytes) -> None:
        """`packets` to every tool."""
        batch = new_batch()
        batch.seq = self.rounds
        fill(batch, packets, (1 << len(KINDS)) - 1)
        allow_batch(batch)
        allow_encapsulate(self._encapsulate, self._surroundings)
        self._encapsulate.step(batch)
        self.sender.step(batch)
        self.rounds += 1
        self.take()

    def take(self) -> None:
        for (kind, version), receiver, came in zip(KINDS, self._sockets, self.came, strict=True):
            outer = (20 if (kind, version) == ("gre", 4) else 0) + (4 if kind == "gre" else 8)  # a raw IPv4 socket gives the IP header too
            with contextlib.suppress(BlockingIOError):
                while True:
                    came.append(receiver.recv(70_000)[outer:])

    def count(self, name: str, slot: int) -> int:
        return self._surroundings.count("encapsulate", name, slot)


def _receiver(kind: str, version: int) -> socket.socket:
    family = {4: socket.AF_INET, 6: socket.AF_INET6}[version]
    how = (socket.SOCK_RAW, socket.IPPROTO_GRE) if kind == "gre" else (socket.SOCK_DGRAM, socket.IPPROTO_UDP)
    made = socket.socket(family, how[0] | socket.SOCK_NONBLOCK, how[1])
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    made.bind((END[version], 4789 if kind == "vxlan" else 0))
    return made


@pytest.mark.parametrize("oversize", ["slice", "drop"])
def test_what_a_router_says_of_the_mtu_is_followed_within_a_second_and_forgotten_again(hosts: Hosts, oversize: str) -> None:
    slots = range(len(KINDS))
    kept = [LONG[: NARROW - IP_BYTES[version] - TUNNEL_BYTES[kind]] for kind, version in KINDS]
    with contextlib.ExitStack() as closing:
        closing.enter_context(hosts.near.inside())
        tools = Tools(hosts, oversize, closing)
        tools.round(SHORT, LONG)
        until(lambda: tools.take() or tools.came == [[SHORT, LONG]] * len(KINDS), "both frames, whole")

        hosts.narrow(NARROW)
        tools.look()

        def learnt() -> bool:
            tools.round(SHORT, LONG)
            if oversize == "slice":
                return all(came[-1] == short for came, short in zip(tools.came, kept, strict=True))
            return all(tools.count("dropped_mtu", slot) for slot in slots)

        until(learnt, "frames cut to the path, or dropped for it", SEEN_S)
        for slot in slots:
            assert tools.sender.drops(slot).keys() == {"too_big"}
        while_narrow = tools.rounds

        hosts.narrow(WIDE)
        before = [came.count(LONG) for came in tools.came]

        def forgotten() -> bool:
            tools.round(SHORT, LONG)
            return all(came.count(LONG) > n for came, n in zip(tools.came, before, strict=True))

        until(forgotten, "whole frames again")
        assert tools.rounds > while_narrow
        lost = {4: 0, 6: 0}
        for slot, (_, version) in enumerate(KINDS):
            until(lambda slot=slot: tools.take() or tools.came[slot].count(SHORT) == tools.rounds, "every short frame")  # type: ignore[misc]
            assert set(tools.came[slot]) == ({SHORT, LONG, kept[slot]} if oversize == "slice" else {SHORT, LONG})
            assert tools.sender.accounted(slot) + tools.count("dropped_mtu", slot) == 2 * tools.rounds
            lost[version] += tools.sender.delivered(slot) - len(tools.came[slot])
        assert lost == {version: hosts.refused(version) for version in lost}, "what was sent and did not come is what the router refused"
        assert all(lost.values()), "the first one is always lost: it is what the router's message is about"


def test_what_is_fragmented_on_the_way_arrives_whole(hosts: Hosts) -> None:
    """Over IPv6 only we can do it, once the router has said how: what was on the way until then is lost."""
    huge = by_hand.ethernet(payload(4000), type=0x88B5)
    with contextlib.ExitStack() as closing:
        closing.enter_context(hosts.near.inside())
        hosts.narrow(NARROW)
        tools = Tools(hosts, "fragment", closing)

        def learnt() -> bool:
            tools.round(huge, LONG, SHORT)
            return all({huge, LONG} <= set(came) for came in tools.came)

        until(learnt, "long frames over every tunnel")
        learnt_at = [len(came) for came in tools.came]
        for _ in range(10):
            tools.round(huge, LONG, SHORT)
        until(lambda: tools.take() or [len(came) for came in tools.came] == [n + 30 for n in learnt_at], "all of them")
        assert all(came[-30:] == [huge, LONG, SHORT] * 10 for came in tools.came)
        for slot, (_, version) in enumerate(KINDS):
            assert (tools.sender.delivered(slot), tools.sender.drops(slot)) == (3 * tools.rounds, {})
            assert version == 6 or tools.came[slot] == [huge, LONG, SHORT] * tools.rounds
