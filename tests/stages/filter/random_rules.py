"""Random rules, and packets that lie where the rules' ranges begin and end."""

from __future__ import annotations

import ipaddress
import random
from collections import defaultdict
from collections.abc import Iterable

from hypothesis import strategies as st

from broker.config.policy import PolicyError, parse_expression
from broker.config.policy import tree as t
from broker.core.model import Config, Input, Map, Rule, Tool
from tests import packets as p
from tests.stages.filter import traffic, tunnel_traffic
from tests.stages.filter.expressions import EXPRESSIONS, RARE
from tests.stages.filter.judging import Frame, frame
from tests.stages.filter.own_expressions import OWN
from tests.stages.filter.test_maps import SETS

# ---- expressions: pcap-filter's words and ours, sets, any AND, OR and NOT of them

_addresses = st.sampled_from(traffic.ADDRESSES4 + traffic.ADDRESSES6)
_addresses4 = st.sampled_from(traffic.ADDRESSES4)
_sides = st.sampled_from(("", "src ", "dst ", "src or dst ", "src and dst "))
_ports = st.one_of(st.sampled_from(traffic.PORTS), st.integers(0, 65535))
_nets = st.sampled_from(
    ("10", "10.1", "192.168.0.0/16", "224.0.0.0/4", "10.0.0.0/30", "10.0.0.2/31", "0.0.0.0/1", "0.0.0.0/0", "fe80::/10", "fe80::/127",
     "2001:db8::/33", "::/0", "$web", "$four", "$six", "$nobody", "{10.0.0.0/31, 10.1.2.3, fe80::/64}", "{10.0.0.2, 224.0.0.0/8}")
)  # fmt: skip
_port_lists = st.sampled_from(("$ports", "{80, 443, 8000-8100}", "{0-52, 54-65535}", "{22}"))
_transports = st.sampled_from(("", "tcp ", "udp ", "sctp "))
_wholes = st.sampled_from(tuple(text for text in EXPRESSIONS + RARE + OWN if "geneve or" not in text))
_primitives = st.one_of(
    _wholes,
    st.builds("{}host {}".format, _sides, _addresses),
    st.builds("{}net {}".format, _sides, _nets),
    st.builds("net {} mask {}".format, st.just("0.0.0.1"), st.just("0.0.0.3")),
    st.builds("{}{}port {}".format, _transports, _sides, st.one_of(_ports, _port_lists)),
    st.builds("{}{}portrange {}-{}".format, _transports, _sides, _ports, _ports),
    st.builds("arp host {}".format, _addresses4),
    st.builds("vlan {}".format, st.sampled_from((1, 5, 10, "{1-9, 4095}"))),
    st.builds("len {} {}".format, st.sampled_from((">=", "<", "=", "!=")), st.sampled_from((54, 60, 64, 100))),
    st.builds("tcp flags {}".format, st.sampled_from(("syn", "syn/syn,ack", "0/0xff", "fin,urg"))),
    st.builds("icmp[icmptype] = {}".format, st.sampled_from((0, 8, 3))),
    st.builds("tcp[tcpflags] & {} != 0".format, st.sampled_from((1, 2, 18))),
    st.builds("ip proto {}".format, st.sampled_from((6, 17, 132, 47, 1))),
    st.builds("ip6 proto {}".format, st.sampled_from((6, 17, 44, 0, 58))),
)


def _combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.builds("not ({})".format, inner),
        st.builds("({}) and ({})".format, inner, inner),
        st.builds("({}) or ({})".format, inner, inner),
        st.builds("{} and {}".format, inner, inner),
    )


expressions = st.recursive(_primitives, _combined, max_leaves=6)


def _is_taken(text: str) -> bool:
    try:
        parse_expression(text, SETS)
    except PolicyError:  # what may not stand behind 'mpls', 'pppoes', 'geneve'
        return False
    return True


_INPUTS = (0, 1, 63)
_N_TOOLS = 5


@st.composite
def _maps(draw: st.DrawFn, n: int) -> Map:
    texts = draw(st.lists(expressions.filter(_is_taken), max_size=8))
    rules = tuple(Rule(draw(st.sampled_from(("pass", "pass", "drop"))), text) for text in texts)  # type: ignore[arg-type]
    tools = draw(st.lists(st.integers(0, _N_TOOLS - 1), min_size=1, max_size=3, unique=True))
    inputs = draw(st.one_of(st.just([]), st.lists(st.sampled_from(_INPUTS), min_size=1, max_size=3, unique=True)))
    mode = draw(st.sampled_from(("deliver", "drop", "libpcap")))
    return Map(f"m{n}", rules, tuple(f"t{i}" for i in tools), tuple(f"i{i}" for i in inputs), mode, n)  # type: ignore[arg-type]


@st.composite
def configurations(draw: st.DrawFn) -> Config:
    maps = tuple(draw(_maps(n)) for n in range(draw(st.integers(1, 5))))
    tools = tuple(Tool(f"t{i}", i, file="-") for i in range(_N_TOOLS))
    collector = (f"t{draw(st.integers(0, _N_TOOLS - 1))}",) if draw(st.booleans()) else ()
    return Config("node", tuple(Input(f"i{slot}", "pcap", slot) for slot in _INPUTS), tools, maps, SETS, collector)


# ---- packets at the edges of rules

Edges = dict[str, list[int]]


def edges(config: Config) -> list[Edges]:
    """Of each rule, by what they are of: the first and last values of all ranges that it asks for, those beside them, and one within."""
    found = []
    for m in config.maps:
        for rule in m.rules:
            of: Edges = defaultdict(list)
            _note(parse_expression(rule.expression, config.sets), of)
            found.append(of)
    return found


_TOPS = {"address4": (1 << 32) - 1, "address6": (1 << 128) - 1, "port": 65535, "vlan": 4095, "length": 1 << 16, "mac": (1 << 48) - 1}


def _note(node: t.Node, found: Edges) -> None:
    kind, ranges = "", ()
    match node:
        case t.Not():
            _note(node.item, found)
        case t.And() | t.Or():
            for item in node.items:
                _note(item, found)
        case t.Address4():
            kind, ranges = "address4", ((node.net, node.net | ~node.mask & 0xFFFFFFFF),)
        case t.Address6():
            kind, ranges = "address6", ((node.net, node.net | (1 << 128 - node.prefix) - 1),)
        case t.Address4Set():
            kind, ranges = "address4", node.ranges
        case t.Address6Set():
            kind, ranges = "address6", node.ranges
        case t.Port():
            kind, ranges = "port", node.ranges
        case t.VlanId():
            kind, ranges = "vlan", node.ranges
        case t.Mac():
            kind, ranges = "mac", ((node.value, node.value),)
        case t.Length():
            kind, ranges = "length", ((node.first, node.last),)
    for first, last in ranges:
        found[kind] += [v for v in (first, last, (first + last) // 2, first, last, first - 1, last + 1) if 0 <= v <= _TOPS[kind]]


def _mac(value: int) -> str:
    return value.to_bytes(6, "big").hex(":")


_USUAL = {"address4": [0x0A000001], "address6": [1], "port": [80], "vlan": [1], "mac": [2], "length": [60]}


def at_edges(of_rules: list[Edges], n: int, seed: int, *, inputs: Iterable[int] = _INPUTS) -> list[Frame]:
    """Whole ones, fragments and cut ones, most of them at the edges of one rule."""
    chosen, slots = random.Random(seed), tuple(inputs)
    of_all = {kind: [value for of in of_rules for value in of.get(kind, ())] or usual for kind, usual in _USUAL.items()}
    frames = []
    for _ in range(n):
        of = {**of_all, **chosen.choice(of_rules)} if of_rules and chosen.random() < 0.9 else of_all
        fours, sixes, ports, vlans, macs, lengths = (of[kind] for kind in _USUAL)
        is_six = chosen.random() < 0.3
        ends = [str(ipaddress.ip_address(chosen.choice(sixes if is_six else fours).to_bytes(16 if is_six else 4, "big"))) for _ in range(2)]
        ends_of_segment = chosen.choice(ports), chosen.choice(ports)
        protocol = chosen.choice((p.TCP, p.TCP, p.UDP, p.SCTP, p.ICMP, p.ICMP6, p.ESP))
        segment = p.tcp(*ends_of_segment, flags=chosen.choice((2, 16, 18, 0, 255))) if protocol == p.TCP else p.udp(*ends_of_segment)
        if protocol in (p.ICMP, p.ICMP6):
            segment = p.icmp(chosen.choice((0, 3, 8, 128)))
        offset, more = chosen.choice(((0, False),) * 5 + ((0, True), (8, False), (1480, True)))
        if is_six and chosen.random() < 0.2:
            protocol, segment = p.FRAGMENT, p.fragment_header(protocol, segment, offset=offset, more=more)
        packet = p.ipv6(*ends, protocol, segment) if is_six else p.ipv4(*ends, protocol, segment, offset=offset, more_fragments=more)
        tags = chosen.choices(vlans, k=chosen.choice((0, 0, 0, 1, 1, 2)))
        addresses = {"source": _mac(chosen.choice(macs)), "destination": _mac(chosen.choice(macs))}
        data = p.ethernet(packet, type=p.ETH_IP6 if is_six else p.ETH_IP, vlans=tags, **addresses)
        wirelen = chosen.choice(lengths) if chosen.random() < 0.3 else len(data)
        if chosen.random() < 0.3:
            data = data[: chosen.choice((chosen.randrange(62), chosen.randrange(len(data) + 1)))]
        frames.append(frame(data, wirelen, chosen.choice(slots)))
    return frames


def adversarial(config: Config, n: int, seed: int) -> list[Frame]:
    """A third each: at the edges of the rules, of all kinds, and tunnels."""
    inputs = (*_INPUTS, 64, 65535)
    chosen = random.Random(seed)
    others = traffic.some(n // 3, seed) + tunnel_traffic.some(n // 3, seed)
    found = at_edges(edges(config), n // 3, seed, inputs=inputs) + [Frame(f.data, f.wirelen, chosen.choice(inputs)) for f in others]
    chosen.shuffle(found)
    return found


# ---- large sets


def large(n_rules: int, seed: int, shapes: tuple[str, ...]) -> Config:
    """Three maps of three modes, as many rules of each shape. There {a} and {b} are hosts, {n}, {m} nets, {x}, {y} ports, {v} a VLAN."""
    chosen = random.Random(seed)
    hosts = [ipaddress.IPv4Address(chosen.getrandbits(32)) for _ in range(n_rules // 4)]

    def net() -> str:
        return str(ipaddress.ip_network((int(chosen.choice(hosts)), chosen.choice((8, 12, 16, 20, 24, 24, 28, 30, 32))), strict=False))

    def rule(shape: str) -> Rule:
        ports = sorted(chosen.choice((chosen.randrange(65536), chosen.randrange(1024), 80)) for _ in range(2))
        values = {"a": chosen.choice(hosts), "b": chosen.choice(hosts), "n": net(), "m": net(), "x": ports[0], "y": ports[1]}
        text = shape.format(**values, v=chosen.randrange(4096))
        return Rule(chosen.choice(("pass", "drop")), text)  # type: ignore[arg-type]

    rules = [rule(shapes[i % len(shapes)]) for i in range(n_rules)]
    chosen.shuffle(rules)
    modes = ("deliver", "drop", "libpcap")
    maps = tuple(Map(mode, tuple(rules[i::3]), (f"t{i}",), (), mode, i) for i, mode in enumerate(modes))  # type: ignore[arg-type]
    return Config("node", (Input("i0", "pcap", 0),), tuple(Tool(f"t{i}", i, file="-") for i in range(3)), maps)


CONJUNCTIVE = (
    "src net {n} and dst net {m} and tcp dst port {x}", "src net {n} and dst net {m} and udp", "tcp src portrange {x}-{y} and dst host {a}",
    "src host {a} and dst host {b}", "vlan {v} and src net {n}", "dst net {n} and icmp",
    "dst net {n} and tcp flags syn/syn,ack and dst port {x}",
)  # fmt: skip
MANY_SIDED = (
    "host {a} or port {x}", "not (net {n} or portrange {x}-{y}) and vlan {v}", "host {a} and not port {x}",
    "(src net {n} or dst net {m}) and not udp and not tcp portrange {x}-{y}", "host {a} and (port {x} or port {y} or icmp)",
    "port {x} and not host {a} and not host {b} and len > 60", "not tcp and not udp and not icmp and net {n}",
    "fragment and net {n} or fragment and port {x}", "host {a} and ip[8] < 65 or inner (host {b})", "not ip and not port {x} and vlan {v}",
)  # fmt: skip
