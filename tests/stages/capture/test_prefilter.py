"""What the kernel leaves out before it captures: run by the kernel itself, judged by the slow twin of the filter."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.config.policy.compiler import build_policy
from broker.config.policy.image import prefilter_of
from broker.config.policy.prefilter import MARK, MAX_INSTRUCTIONS
from broker.core.flow_model import Flows
from broker.core.model import Config, Input, Map, Rule, Tool
from stages.capture.socket_filter import MARK_SHED, SHARES, program
from tests import corpus, libpcap
from tests import packets as p
from tests.stages.capture.kernel_filter import left_of
from tests.stages.filter import random_rules as r
from tests.stages.filter.judging import Frame, frame
from tests.stages.filter.test_maps import SETS
from tests.stages.filter.twin import Twin


def _live(config: Config, prefilter: str = "on") -> Config:
    inputs = tuple(Input(i.name, "afpacket", i.slot, interface=f"eth{i.slot}", prefilter=prefilter) for i in config.inputs)  # type: ignore[arg-type]
    return replace(config, inputs=inputs, collector=())


def _body(config: Config) -> bytes:
    return prefilter_of(np.frombuffer(build_policy(config).image, np.uint8), 0)


def _config(*expressions: str, action: str = "pass") -> Config:
    rules = tuple(Rule(action, text) for text in expressions)  # type: ignore[arg-type]
    return _live(Config("node", (Input("i0", "pcap", 0),), (Tool("t0", 0, file="-"),), (Map("m0", rules, ("t0",)),), SETS))


def _is_left_out(body: bytes, frames: list[Frame]) -> list[bool]:
    """Frames without an Ethernet header come from no interface; here one byte of them might look like a mark."""
    left = left_of(program(body, SHARES), [f.data for f in frames])
    return [n == MARK < len(f.data) for n, f in zip(left, frames, strict=True)]


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=r.configurations(), seed=st.integers(0, 1 << 20))
def test_what_is_left_out_is_filtered_by_the_twin_and_touches_no_rule(config: Config, seed: int) -> None:
    config = _live(config)
    image = np.frombuffer(build_policy(config).image, np.uint8)
    for live in config.inputs:
        frames = [Frame(f.data, len(f.data), live.slot) for f in r.adversarial(config, 60, seed)]
        for f, out in zip(frames, _is_left_out(prefilter_of(image, live.slot), frames), strict=True):
            if out:
                twin = Twin(config)
                assert twin.judge(f) == (set(), "filtered"), f.data.hex()
                assert not twin.by_rule


SHARP = (
    ("tcp dst port 443 and net 10.0.0.0/8",),
    ("host 10.0.0.1", "udp port 53", "vlan 5 and tcp"),
    ("src net 2001:db8::/32 and tcp", "ip and udp"),
    ("portrange 1000-2000", "tcp port 22"),
)


@pytest.mark.parametrize("expressions", SHARP, ids=lambda e: e[0])
def test_of_plain_packets_everything_that_nobody_wants_is_left_out(expressions: tuple[str, ...]) -> None:
    """Where the rules are about nothing but addresses, ports and protocols it is not only careful, but sharp."""
    chosen, frames = random.Random(1), []
    for _ in range(400):
        six = chosen.random() < 0.3
        ends = tuple(
            chosen.choice(("2001:db8::1", "2001:db9::1") if six else ("10.0.0.1", "10.0.0.2", "10.1.0.1", "192.0.2.1")) for _ in "ab"
        )
        ports = chosen.choice((22, 53, 443, 1000, 1500, 2000, 2001)), chosen.choice((80, 443, 999, 53))
        make = chosen.choice((p.tcp_frame, p.udp_frame))
        frames.append(frame(make(ends[0], ports[0], ends[1], ports[1], payload=bytes(20))))
    config = _config(*expressions)
    wanted = [Twin(config).judge(f) == (set(), "filtered") for f in frames]
    assert _is_left_out(_body(config), frames) == wanted
    assert 20 < sum(wanted) < 400


def test_a_packet_that_a_rule_drops_is_counted_by_the_rule() -> None:
    config = _config("tcp port 22", action="drop")
    frames = [frame(p.tcp_frame("10.0.0.1", 1000, "10.0.0.2", port, payload=bytes(20))) for port in (22, 23)]
    assert _is_left_out(_body(config), frames) == [False, True]


def test_frames_that_are_not_plain_go_on() -> None:
    config = _config("tcp port 1")
    long = bytes(40)
    udp = p.udp(5, 6, long)
    odd = [
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp, more_fragments=True)),
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp, offset=8)),
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp, options=bytes(4))),
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.ICMP, p.icmp(payload=long))),
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp), vlans=(5, 6)),
        p.ethernet(p.ipv6("fe80::1", "fe80::2", p.HOPOPTS, p.hop_by_hop(p.UDP, udp)), type=p.ETH_IP6),
        p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp))[:40],
        p.arp(1, ("02:00:00:00:00:01", "10.0.0.1"), ("02:00:00:00:00:02", "10.0.0.2")),
    ]
    plain = p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.UDP, udp))
    assert _is_left_out(_body(config), [frame(data) for data in (*odd, plain)]) == [False] * len(odd) + [True]


def test_many_rules_fit_and_still_leave_something_out() -> None:
    config = _config(*(f"tcp and host 10.{i // 200}.{i % 200}.1 and port {1000 + i}" for i in range(1000)))
    body = _body(config)
    assert 0 < len(body) // 8 <= MAX_INSTRUCTIONS
    frames = [frame(p.tcp_frame("192.0.2.1", 5, "192.0.2.2", 6, payload=bytes(20)))]
    frames += [frame(p.tcp_frame(f"10.{i // 200}.{i % 200}.1", 5, "192.0.2.2", 1000 + i, payload=bytes(20))) for i in range(1000)]
    assert _is_left_out(_body(config), frames) == [True] + [False] * 1000


def test_without_a_prefilter_nothing_is_left_out() -> None:
    config = _config("tcp port 1")
    assert _body(config)
    assert not _body(_live(config, "off"))
    assert not _body(replace(config, collector=("t0",)))
    assert not _body(replace(config, flows=Flows()))
    assert not _body(_config("tcp port 1", "greater 5"))
    assert not _body(_config("tcp port 1", "inner (udp)"))
    assert not _body(replace(config, inputs=(Input("i0", "pcap", 0, files=("x",)),)))


@corpus.needs_corpus
def test_what_the_corpus_holds(corpus_frames: list[Frame]) -> None:
    """Real packets: what is left out is filtered, and much is."""
    config = _config("tcp port 80 and net 10.0.0.0/8", "udp port 53", "vlan and host 192.168.1.1", "host fe80::1")
    out = _is_left_out(_body(config), corpus_frames)
    for f, left in zip(corpus_frames, out, strict=True):
        if left:
            assert Twin(config).judge(f) == (set(), "filtered"), f.data.hex()
    assert sum(out) > len(out) // 10


@pytest.fixture
def corpus_frames() -> list[Frame]:
    chosen = [c.path for c in corpus.sample(2) if c.packets]
    return [Frame(one.data, len(one.data)) for path in chosen for one in libpcap.read_ethernet(path, 30) if one.data]


def _pairs() -> list[tuple[bytes, bytes]]:
    """Both directions of 2,000 flows."""
    chosen, found = random.Random(3), []
    for n in range(2000):
        net = "2001:db8::" if n % 4 == 0 else "10.0.0."
        ends = f"{net}{chosen.randrange(1, 200)}", f"{net}{chosen.randrange(1, 200)}"
        ports = chosen.randrange(65536), chosen.choice((80, 443, 53))
        make = p.tcp_frame if n % 3 else p.udp_frame
        one, two = zip(ends, ports, strict=True)
        found.append((make(*one, *two, payload=bytes(30)), make(*two, *one, payload=bytes(50))))
    return found


def test_shedding_keeps_both_directions_of_a_flow_or_neither() -> None:
    """And the share that is asked for; fewer flows are a part of more."""
    there, back = zip(*_pairs(), strict=True)
    before: set[int] = set()
    for share in (0.05, 0.25, 0.5, 0.9):
        code = program(b"", int(share * SHARES))
        kept = {i for i, n in enumerate(left_of(code, there)) if n != MARK_SHED}
        assert kept == {i for i, n in enumerate(left_of(code, back)) if n != MARK_SHED}
        assert abs(len(kept) / len(there) - share) < 0.04
        assert before <= kept
        before = kept


def test_fragments_of_a_datagram_share_their_fate_and_what_is_no_ip_is_kept() -> None:
    code = program(b"", SHARES // 2)
    for n in range(1, 60):
        ends = "10.0.0.1", f"10.0.3.{n}"
        pieces = [
            p.ethernet(p.ipv4(*ends, p.UDP, p.udp(n, 53, bytes(40)), more_fragments=True)),
            p.ethernet(p.ipv4(*ends, p.UDP, bytes(range(48)), offset=48)),
        ]
        assert len({cut == MARK_SHED for cut in left_of(code, pieces)}) == 1
    others = [p.ethernet(bytes([n]) * 60, type=0x88B5) for n in range(60)] + [bytes([n]) * 40 for n in range(60)]
    assert left_of(code, others) == [len(other) for other in others]
