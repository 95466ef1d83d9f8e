"""A minute in the network of a shop, as a mirror port sees it: (time, frame) pairs, the same at every run.

```
tills 10.20.1.0/24  10.20.2.0/24                                                  443, 80           5432
kiosks 10.20.3.0/24, tagged VLAN 30        --->  point-of-sale web server  --->  its database
office 2001:db8:20::/64                          10.30.0.10, 2001:db8:30::10     10.40.0.5
```

Between them what a filter has to keep away from a tool: names, logins, a backup, pings, ARP, broadcasts, spanning tree. The tills of
10.20.2.0/24 sit behind a tunnel that fragments their long packets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.demo import frames, messages
from broker.demo.frames import ACK, FIN, ICMP, PSH, SYN, TCP, UDP

WEB, WEB6, DATABASE = "10.30.0.10", "2001:db8:30::10", "10.40.0.5"
NAMES, ADMIN, BACKUP, SWITCH = "10.50.0.53", "10.60.0.9", "10.70.0.2", "10.20.1.1"
KIOSK_VLAN = 30

START_NS = 1_767_258_000_000_000_000  # 2026-01-01 09:00:00 UTC, the shop opens
LENGTH_NS = 60 * 1_000_000_000
_MS = 1_000_000

Timed = tuple[int, bytes]


@dataclass
class Side:
    """One end of a TCP connection and what it has sent."""

    address: str
    port: int
    seq: int
    identification: int


@dataclass
class Connection:
    """A TCP connection that only does what is expected of it: every segment arrives, every second one is acknowledged."""

    client: Side
    server: Side
    now_ns: int
    rng: random.Random
    vlan: int = 0
    client_most: int = 0  # IPv4 payload bytes that fit the client's path; 0: any
    frames: list[Timed] = field(default_factory=list)

    def _send(self, a: Side, b: Side, flags: int, payload: bytes = b"") -> None:
        self.now_ns += self.rng.randint(40_000, 400_000)
        segment = frames.tcp((a.address, a.port), (b.address, b.port), flags, a.seq, b.seq if flags & ACK else 0, payload)
        a.seq = (a.seq + len(payload) + bool(flags & (SYN | FIN))) % (1 << 32)
        a.identification = (a.identification + 1) & 0xFFFF
        if a is self.client and 0 < self.client_most < len(segment):
            parts = frames.ip_fragments(a.address, b.address, TCP, segment, identification=a.identification, most=self.client_most)
            self.frames += [(self.now_ns, part) for part in parts]
        else:
            frame = frames.ip(a.address, b.address, TCP, segment, identification=a.identification, vlan=self.vlan)
            self.frames.append((self.now_ns, frame))

    def open(self) -> None:
        self._send(self.client, self.server, SYN)
        self._send(self.server, self.client, SYN | ACK)
        self._send(self.client, self.server, ACK)

    def say(self, payload: bytes, *, from_client: bool) -> None:
        a, b = (self.client, self.server) if from_client else (self.server, self.client)
        most = 1440 if ":" in a.address else 1460
        parts = [payload[at : at + most] for at in range(0, len(payload), most)]
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            self._send(a, b, ACK | PSH if last else ACK, part)
            if i % 2 or last:
                self._send(b, a, ACK)

    def close(self) -> None:
        self._send(self.client, self.server, FIN | ACK)
        self._send(self.server, self.client, FIN | ACK)
        self._send(self.client, self.server, ACK)


def _connection(rng: random.Random, at_ns: int, client: str, server: tuple[str, int]) -> Connection:
    a = Side(client, rng.randint(32_768, 60_999), rng.getrandbits(32), rng.getrandbits(16))
    b = Side(*server, rng.getrandbits(32), rng.getrandbits(16))
    return Connection(a, b, at_ns, rng)


def _moment(rng: random.Random) -> int:
    """Early enough that what begins then ends within the minute."""
    return START_NS + rng.randrange(LENGTH_NS - 2_000 * _MS)


def _customers(rng: random.Random) -> Iterator[Timed]:
    """Users and the web server: what the first map is for."""
    for number in range(150):
        where = rng.choice(("till", "till", "tunnelled", "kiosk", "office"))
        host = rng.randint(11, 90)
        client, web = {
            "till": (f"10.20.1.{host}", WEB),
            "tunnelled": (f"10.20.2.{host}", WEB),
            "kiosk": (f"10.20.3.{host}", WEB),
            "office": (f"2001:db8:20::{host:x}", WEB6),
        }[where]
        secure = rng.random() < 0.8
        c = _connection(rng, _moment(rng), client, (web, 443 if secure else 80))
        c.vlan = KIOSK_VLAN if where == "kiosk" else 0
        c.client_most = 1240 if where == "tunnelled" else 0
        c.open()
        for _ in range(rng.randint(1, 3)):
            # Every third customer pays: a request of more than one packet, which the tunnel fragments.
            asked = rng.randint(2_000, 4_000) if number % 3 == 0 else rng.randint(200, 700)
            answered = rng.choice((300, 1_200, 4_000, 9_000))
            c.say(messages.tls(asked, rng) if secure else messages.http_request(host), from_client=True)
            c.now_ns += rng.randint(2, 30) * _MS
            c.say(messages.tls(answered, rng) if secure else messages.http_response(answered), from_client=False)
            c.now_ns += rng.randint(10, 300) * _MS
        c.close()
        yield from c.frames


def _database(rng: random.Random) -> Iterator[Timed]:
    """The web server and its database, over four connections that stay open: what the second map is for."""
    for _ in range(4):
        c = _connection(rng, START_NS + rng.randint(1, 900) * _MS, WEB, (DATABASE, 5432))
        c.open()
        c.say(messages.database_start(), from_client=True)
        c.say(messages.database_ready(), from_client=False)
        for number in range(60):
            c.now_ns += rng.randint(300, 1_400) * _MS
            if c.now_ns > START_NS + LENGTH_NS - 1_000 * _MS:
                break
            c.say(messages.database_query(number), from_client=True)
            c.say(messages.database_rows(rng.randint(1, 60)), from_client=False)
        c.close()
        yield from c.frames


def _datagrams(rng: random.Random) -> Iterator[Timed]:
    """Names that everybody asks for, a question to all, and a backup over UDP in fragments."""
    for number in range(120):
        at, asker, port = _moment(rng), f"10.20.{rng.randint(1, 2)}.{rng.randint(11, 90)}", rng.randint(32_768, 60_999)
        question = frames.udp((asker, port), (NAMES, 53), messages.dns_question(number, "pos.example"))
        answer = frames.udp((NAMES, 53), (asker, port), messages.dns_answer(number, "pos.example", frames.packed(WEB)))
        yield at, frames.ip(asker, NAMES, UDP, question)
        yield at + 3 * _MS, frames.ip(NAMES, asker, UDP, answer)
    for _ in range(20):
        asker = f"10.20.1.{rng.randint(11, 90)}"
        question = frames.udp((asker, 5353), ("224.0.0.251", 5353), messages.dns_question(0, "printer.local"))
        yield _moment(rng), frames.ip(asker, "224.0.0.251", UDP, question, to=bytes.fromhex("01005e0000fb"))
    for number in range(15):
        at = _moment(rng)
        datagram = frames.udp((DATABASE, 40_001), (BACKUP, 40_001), messages.table(4_096))
        for i, frame in enumerate(frames.ip_fragments(DATABASE, BACKUP, UDP, datagram, identification=1 + number, most=1480)):
            yield at + i * 12_000, frame


def _administration(rng: random.Random) -> Iterator[Timed]:
    """A login on the web server and on the database, and the nightly backup that has not finished."""
    for server in (WEB, DATABASE):
        c = _connection(rng, START_NS + rng.randint(1, 5_000) * _MS, ADMIN, (server, 22))
        for _ in range(40):
            c.say(rng.randbytes(rng.randint(36, 120)), from_client=True)
            c.say(rng.randbytes(rng.randint(36, 400)), from_client=False)
            c.now_ns += rng.randint(100, 900) * _MS
        yield from c.frames
    c = _connection(rng, START_NS + 20_000 * _MS, DATABASE, (BACKUP, 9103))
    c.say(messages.table(260_000), from_client=True)
    yield from c.frames


def _link(rng: random.Random) -> Iterator[Timed]:
    """What keeps a network running."""
    for number in range(40):
        at, asker = _moment(rng), f"10.20.1.{rng.randint(11, 90)}"
        yield at, frames.arp_question(asker, SWITCH)
        yield at + _MS, frames.arp_answer(asker, SWITCH)
        yield at + 5 * _MS, frames.ip(ADMIN, WEB, ICMP, frames.echo(reply=False, number=number))
        yield at + 6 * _MS, frames.ip(WEB, ADMIN, ICMP, frames.echo(reply=True, number=number))
    for second in range(0, 60, 2):
        yield START_NS + second * 1000 * _MS, frames.spanning_tree(SWITCH)


def minute() -> list[Timed]:
    """Everything, in the order of time: (nanoseconds since 1970, frame)."""
    rng = random.Random(2026)  # noqa: S311 - repeatable, not secret
    parts = (_customers, _database, _datagrams, _administration, _link)
    return sorted((item for part in parts for item in part(rng)), key=lambda item: item[0])
