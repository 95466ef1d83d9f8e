"""An expression selects what libpcap selects, packet for packet."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.config.policy import PolicyError, parse_expression
from broker.config.policy.refused import REFUSED
from tests import libpcap
from tests import packets as p
from tests.corpus import needs_corpus, sample
from tests.stages.filter import rare, traffic
from tests.stages.filter.expressions import EXPRESSIONS, batches
from tests.stages.filter.judging import Frame, Judge, frame, one_map_each

pytestmark = libpcap.needs_libpcap


def differences(texts: Sequence[str], frames: Sequence[Frame], *, memo: bool = True, lenient: bool = False) -> list[str]:
    """Where we and libpcap, optimizing as tcpdump does, do not agree.

    The optimizer drops reads whose outcome does not matter (the address in `arp net 10 or arp`), and with them the refusal of packets
    that are cut there. We go by what is written. `lenient`: where libpcap with and without optimizing disagree, either will do, unless
    the expression is a single test: then the optimizer is right (`net 0.0.0.0/0` and the second half of `net fe80::/10` read nothing).
    """
    judge = Judge(one_map_each(texts), memo=memo)
    found = []
    oracles = [libpcap.Filter(text) for text in texts]
    literal = [libpcap.Filter(text, optimize=False) for text in texts]
    single = ["net" in text and not {"and", "or", "not"} & set(text.split()) for text in texts]
    for f, verdict in zip(frames, judge.verdicts(frames), strict=True):
        for i, text in enumerate(texts):
            wanted = oracles[i](f.data, f.wirelen)
            if wanted != bool(verdict >> i & 1):
                if lenient and not single[i] and literal[i](f.data, f.wirelen) != wanted:
                    continue
                found.append(f"{text!r}: libpcap says {wanted} of {f.data[:120].hex()} ({len(f.data)} of {f.wirelen} bytes)")
    return found


def captured(share: int, limit: int) -> list[Frame]:
    return [frame(c.data, c.wirelen) for capture in sample(share) for c in libpcap.read_ethernet(capture.path, limit)]


@needs_corpus
def test_expressions_select_from_real_captures_what_libpcap_selects() -> None:
    frames = captured(12, 100)
    assert len(frames) > 3000
    for texts in batches(rare=()):
        assert differences(texts, frames) == []
    for texts in batches(texts=()):
        assert differences(texts, frames[::5]) == []


@pytest.mark.corpus
@needs_corpus
def test_expressions_select_from_the_whole_corpus_what_libpcap_selects() -> None:
    frames = captured(100, 1000)
    for texts in batches():
        assert differences(texts, frames) == []


@pytest.mark.parametrize("memo", [True, False])
def test_expressions_select_from_made_packets_what_libpcap_selects(memo: bool) -> None:
    frames = traffic.some(1500, seed=1)
    for texts in batches():
        assert differences(texts, frames, memo=memo, lenient=True) == []


@pytest.mark.parametrize("memo", [True, False])
def test_a_packet_cut_anywhere_is_selected_where_libpcap_selects_it(memo: bool) -> None:
    frames = traffic.every_cut(seed=3, n=40)
    for texts in batches():
        assert differences(texts, frames, memo=memo, lenient=True) == []


def test_the_expressions_are_many_and_most_of_them_select_something() -> None:
    assert len(EXPRESSIONS) >= 120
    frames = traffic.some(3000, seed=5)
    hits: Counter[str] = Counter()
    for texts in batches():
        for verdict in Judge(one_map_each(texts)).verdicts(frames):
            hits.update(text for i, text in enumerate(texts) if verdict >> i & 1)
    assert sum(1 for text in EXPRESSIONS if hits[text]) >= 120


# ---- generated expressions

_addresses = st.sampled_from(traffic.ADDRESSES4 + traffic.ADDRESSES6)
_sides = st.sampled_from(("", "src ", "dst ", "src or dst ", "src and dst "))
_ports = st.sampled_from(traffic.PORTS)
_nets = st.sampled_from(
    ("10", "10.1", "192.168.0.0/16", "224.0.0.0/4", "10.0.0.0/30", "fe80::/10", "fe80::/127", "2001:db8::/33", "0.0.0.0/1")
)
_words = st.sampled_from(
    ("ip", "ip6", "arp", "rarp", "tcp", "udp", "sctp", "icmp", "icmp6", "igmp", "esp", "ah", "stp", "iso", "broadcast", "multicast",
     "ip multicast", "ip6 multicast", "ip proto 6", "ip6 proto 44", "proto 17", "ether proto 0x800", "ether proto 0x8100", "less 60",
     "greater 64", "len = 60", "net 10.0.0.1 mask 255.0.0.255", "ether host ff:ff:ff:ff:ff:ff")
)  # fmt: skip
_primitives = st.one_of(
    _words,
    st.builds("{}host {}".format, _sides, _addresses),
    st.builds("{}net {}".format, _sides, _nets),
    st.builds("{}{}port {}".format, st.sampled_from(("", "tcp ", "udp ", "sctp ")), _sides, _ports),
    st.builds(lambda s, a, b: f"{s}portrange {a}-{b}", _sides, _ports, _ports),
    st.builds(lambda a, b: f"host {a} or {b}", _addresses, _addresses),
    st.just("vlan"),
    st.builds("vlan {}".format, st.sampled_from((1, 5, 10))),
)
_expressions = st.recursive(
    _primitives,
    lambda inner: st.one_of(
        st.builds("not {}".format, inner),
        st.builds("({})".format, inner),
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
    ),
    max_leaves=6,
)


_numbers = st.sampled_from(("0", "1", "2", "3", "6", "17", "31", "64", "0xff", "1500", "0x0800", "0x7fffffff", "0xffffffff"))
_INDEXED = "ether ip ip6 arp rarp tcp udp sctp icmp icmp6 igmp pim vrrp decnet lat"
_indexed = st.sampled_from(_INDEXED.split())
_formulas = st.recursive(
    st.one_of(
        _numbers,
        st.just("len"),
        st.builds("{}[{}:{}]".format, _indexed, st.sampled_from((0, 1, 2, 6, 8, 9, 12, 13, 20, 40)), st.sampled_from((1, 2, 4))),
    ),
    lambda inner: st.one_of(
        st.builds("{} {} {}".format, inner, st.sampled_from(("+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>")), inner),
        st.builds("({})".format, inner),
        st.builds("- {}".format, inner),
        st.builds("{}[{}]".format, _indexed, inner),
    ),
    max_leaves=6,
)
_comparisons = st.builds("{} {} {}".format, _formulas, st.sampled_from(("=", "!=", "<", ">", "<=", ">=", "==")), _formulas)
_rare = st.one_of(
    _comparisons,
    _comparisons,
    st.sampled_from(
        ("mpls", "mpls 5", "pppoes", "pppoes 1", "pppoed", "llc", "llc u", "isis", "l1", "clnp", "iso proto 131", "atalk", "aarp", "ipx",
         "decnet host 1.2", "byte 12 = 8", "protochain 6", "ip6 protochain 58", "ip protochain 51")
    ),
)  # fmt: skip
_anything = st.recursive(
    st.one_of(_primitives, _rare, _rare),
    lambda inner: st.one_of(
        st.builds("not {}".format, inner),
        st.builds("({})".format, inner),
        st.builds("{} and {}".format, inner, inner),
        st.builds("{} or {}".format, inner, inner),
    ),
    max_leaves=5,
)


def taken(text: str) -> bool:
    """By us and by libpcap, which must agree; its optimizer also refuses what it computes to be a division by zero."""
    try:
        libpcap.Filter(text, optimize=False)
        theirs = ""
        libpcap.Filter(text)
    except libpcap.RefusedError as error:
        theirs = str(error)
    try:
        parse_expression(text, {})
        ours = ""
    except PolicyError as error:
        ours = error.message
    computed = ("division by zero", "modulus by zero", "shift by more than 31 bits")
    assert bool(ours) == bool(theirs) or theirs in computed or any(reason in ours for reason in REFUSED.values()), (text, ours, theirs)
    return not ours and not theirs


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(_expressions, min_size=1, max_size=8), seed=st.integers(0, 1 << 20))
def test_generated_expressions_select_what_libpcap_selects(texts: list[str], seed: int) -> None:
    assert differences([text for text in texts if taken(text)], traffic.some(60, seed), lenient=True) == []


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(_anything, min_size=1, max_size=8), seed=st.integers(0, 1 << 20))
def test_generated_arithmetic_and_rare_words_select_what_libpcap_selects(texts: list[str], seed: int) -> None:
    assert differences([text for text in texts if taken(text)], traffic.some(60, seed), lenient=True) == []


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(_anything, min_size=1, max_size=8), seed=st.integers(0, 1 << 20))
def test_what_is_generated_behind_geneve_is_looked_for_inside(texts: list[str], seed: int) -> None:
    chosen = random.Random(seed)
    datagrams = (rare.geneve(chosen, p.ETH_TEB, f.data) for f in traffic.some(40, seed))
    frames = [frame(p.ip_frame("10.0.0.1", "10.0.0.2", p.UDP, datagram)) for datagram in datagrams]
    # libpcap does not optimize behind geneve: there it reads all of an address of which a net asks for the first bits
    texts = [f"geneve and ({text})" for text in texts if "len" not in text and "net" not in text]
    assert differences([text for text in texts if taken(text)], frames, lenient=True) == []
