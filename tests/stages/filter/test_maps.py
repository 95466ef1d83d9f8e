"""What maps make of it: order of rules, several maps, inputs, collector, undetermined; against a twin written apart."""

from __future__ import annotations

import random

import pytest

from broker.core.layout import CAUSE_COLLECTED, CAUSE_FILTERED, CAUSE_FORWARDED, CAUSE_RULE, CAUSE_UNDETERMINED, Geometry
from broker.core.metrics import COUNTERS, WIDTH
from broker.core.model import Config, Input, Map, Rule, Tool
from tests import packets as p
from tests.stages.filter import traffic
from tests.stages.filter.expressions import EXPRESSIONS, RARE
from tests.stages.filter.judging import Frame, Judge, frame
from tests.stages.filter.twin import Twin

CAUSES = {
    CAUSE_FORWARDED: "forwarded",
    CAUSE_FILTERED: "filtered",
    CAUSE_RULE: "dropped_rule",
    CAUSE_UNDETERMINED: "dropped_undetermined",
    CAUSE_COLLECTED: "collected",
}
SETS = {
    "web": ("10.0.0.0/24", "192.168.1.1", "fe80::/64", "2001:db8::1"),
    "four": ("10.1.0.0/16", "224.0.0.0/4"),
    "six": ("ff02::/16", "::1"),
    "ports": ("22", "80-443", "8080", "domain"),
    "cards": (p.MAC_A, "ff:ff:ff:ff:ff:ff"),
    "nobody": (),
}
OURS = (
    "src net $web", "dst net $web and tcp dst port $ports", "net $four", "ip6 net $six", "port $ports", "udp portrange $ports",
    "ether host $cards", "ether src $cards", "net $nobody", "not net $nobody", "tcp port $nobody or arp", "src or dst net $web or $six",
)  # fmt: skip


def random_config(seed: int) -> Config:
    chosen = random.Random(seed)
    tools = tuple(Tool(f"t{slot}", slot, file="-") for slot in chosen.sample(range(64), 6))
    inputs = tuple(Input(f"i{slot}", "pcap", slot) for slot in (0, 1, 2, 63))
    names = [tool.name for tool in tools]

    def rule() -> Rule:
        texts = chosen.choices((EXPRESSIONS, OURS, RARE), (5, 3, 2))[0]
        return Rule(chosen.choice(("pass", "pass", "drop")), chosen.choice(texts))  # type: ignore[arg-type]

    maps = tuple(
        Map(
            f"m{n}",
            tuple(rule() for _ in range(chosen.randrange(0, 6))),
            tuple(chosen.sample(names, chosen.randrange(1, 4))),
            tuple(i.name for i in inputs if chosen.random() < 0.4),
            chosen.choice(("deliver", "drop", "libpcap")),  # type: ignore[arg-type]
            slot,
        )
        for n, slot in enumerate(chosen.sample(range(256), chosen.choice((1, 2, 5, 40))))
    )
    collector = tuple(chosen.sample(names, 2)) if chosen.random() < 0.5 else ()
    return Config("node", inputs, tools, maps, SETS, collector)


def with_inputs(frames: list[Frame], seed: int) -> list[Frame]:
    chosen = random.Random(seed)
    return [Frame(f.data, f.wirelen, chosen.choice((0, 1, 2, 3, 63, 64, 65535))) for f in frames]


@pytest.mark.parametrize("seed", range(24))
def test_maps_decide_and_count_as_the_twin_does(seed: int) -> None:
    config = random_config(seed)
    frames = with_inputs(traffic.some(400, seed), seed)
    twin, judge = Twin(config), Judge(config)
    for f, (verdict, cause, _) in zip(frames, judge.judge(frames), strict=True):
        slots, why = twin.judge(f)
        assert ({t for t in range(64) if verdict >> t & 1}, CAUSES[cause]) == (slots, why), f.data.hex()
    for counter in COUNTERS:
        if counter.stage == "filter" and not counter.name.startswith(("fragments_", "ip6_")):  # tests/stages/wire has those
            for slot in range(WIDTH[counter.per]):
                assert judge.count(counter.name, slot) == twin.counts[counter.name, slot], (counter.name, slot)
    assert judge.rules() == [counts for m in config.maps for counts in twin.rule_counts(m.name)]


@pytest.mark.parametrize("seed", range(24))
def test_every_packet_has_one_fate_and_the_block_says_how_many_frames_it_makes(seed: int) -> None:
    judge = Judge(random_config(seed))
    n = judge.fill(with_inputs(traffic.some(500, seed), seed))
    judge.stage.step(judge.batch)
    fates = ("forwarded_packets", "filtered_packets", "dropped_rule", "dropped_undetermined")
    assert judge.count("judged_packets") == n == sum(judge.count(name) for name in fates)
    wanted = sum((int(v) & (1 << 64) - 1).bit_count() for v in judge.batch.verdicts["verdict"][:n])
    assert int(judge.batch.block["n_wanted"][0]) == wanted == sum(judge.count("wanted_frames", t) for t in range(64))


def config(*rules: Rule, undetermined: str = "deliver", collector: bool = False, extra: tuple[Map, ...] = ()) -> Config:
    tools = (Tool("ids", 0, file="-"), Tool("store", 63, file="-"))
    first = Map("first", rules, ("ids",), undetermined=undetermined)  # type: ignore[arg-type]
    return Config("n", (Input("in", "pcap"),), tools, (first, *extra), {}, ("store",) if collector else ())


WEB = frame(p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80))
SSH = frame(p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 22))
IDS, STORE = 1, 1 << 63


def test_the_first_matching_rule_of_a_map_decides() -> None:
    judge = Judge(config(Rule("drop", "port 22"), Rule("pass", "tcp"), Rule("drop", "port 80")))
    assert [v[:2] for v in judge.judge([WEB, SSH])] == [(IDS, CAUSE_FORWARDED), (0, CAUSE_RULE)]


def test_what_no_map_took_goes_to_the_collector_and_what_a_rule_dropped_does_not() -> None:
    judge = Judge(config(Rule("drop", "port 22"), collector=True))
    assert [v[:2] for v in judge.judge([WEB, SSH])] == [(STORE, CAUSE_COLLECTED), (0, CAUSE_RULE)]


def test_a_drop_in_one_map_takes_nothing_from_another() -> None:
    other = Map("other", (Rule("pass", "tcp"),), ("store", "ids"), slot=1)
    judge = Judge(config(Rule("drop", "port 22"), Rule("pass", "tcp"), extra=(other,)))
    assert judge.verdicts([WEB, SSH]) == [IDS | STORE, IDS | STORE]
    assert judge.count("wanted_frames", 0) == 2


LATER = frame(p.ethernet(p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, b"x" * 32, offset=1480)))
CUT = frame(WEB.data[:35], len(WEB.data))
RUNT = frame(WEB.data[:35])
FRAGMENT6 = frame(p.ethernet(p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, p.fragment_header(p.TCP, bytes(32), offset=8)), type=p.ETH_IP6))


@pytest.mark.parametrize("hidden", [LATER, CUT, RUNT, FRAGMENT6], ids=["later fragment", "cut", "runt", "IPv6 fragment"])
@pytest.mark.parametrize("action", ["pass", "drop"])
def test_where_the_ports_are_not_shown_the_map_says_what_becomes_of_it(hidden: Frame, action: str) -> None:
    rule = Rule(action, "tcp port 80")  # type: ignore[arg-type]
    delivering = Judge(config(rule, undetermined="deliver", collector=True))
    assert delivering.judge([hidden])[0][:2] == (IDS, CAUSE_FORWARDED)
    keeping = Judge(config(rule, undetermined="drop", collector=True))
    assert keeping.judge([hidden])[0][:2] == (0, CAUSE_UNDETERMINED)
    for judge in (delivering, keeping):
        assert (judge.count("undetermined_packets"), judge.count("map_undetermined_packets")) == (1, 1)
        assert judge.count("map_passed_packets") == judge.count("map_dropped_packets") == 0
    as_libpcap = Judge(config(rule, undetermined="libpcap", collector=True))
    assert as_libpcap.judge([hidden])[0][:2] == (STORE, CAUSE_COLLECTED)
    assert as_libpcap.count("undetermined_packets") == 0


def test_a_test_that_does_not_matter_leaves_the_packet_determined() -> None:
    judge = Judge(config(Rule("pass", "udp and port 80"), Rule("pass", "host 10.0.0.1 or port 80")))
    assert [v[:2] for v in judge.judge([LATER])] == [(IDS, CAUSE_FORWARDED)]
    assert judge.count("undetermined_packets") == 0


def test_a_row_that_points_outside_the_block_is_an_empty_packet() -> None:
    judge = Judge(config(Rule("pass", "tcp"), undetermined="drop"), geometry=Geometry(max_packets=4, max_frames=4, data_bytes=4096))
    judge.fill([WEB, WEB, WEB])
    judge.batch.packets["data_at"][1] = 0xFFFFFFFF
    judge.batch.packets["caplen"][2] = 0xFFFFFFFF
    assert judge.stage.step(judge.batch) == 3
    assert judge.batch.verdicts["cause"][:3].tolist() == [CAUSE_FORWARDED, CAUSE_UNDETERMINED, CAUSE_UNDETERMINED]


@pytest.mark.parametrize("claimed", [-1, 0, 5, 1 << 40])
def test_a_block_that_claims_more_packets_than_it_can_hold_is_not_believed(claimed: int) -> None:
    judge = Judge(config(Rule("pass", "tcp")), geometry=Geometry(max_packets=4, max_frames=4, data_bytes=4096))
    judge.batch.block["n_packets"] = claimed
    assert judge.stage.step(judge.batch) == max(0, min(claimed, 4))


@pytest.mark.parametrize("port", [80, 443])
def test_a_later_fragment_goes_where_its_first_went(port: int) -> None:
    """A map that follows libpcap looks at the fragment alone."""
    first4 = p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, p.tcp(4000, port, payload=bytes(12)), more_fragments=True)
    later4 = p.ipv4("10.0.0.1", "10.0.0.2", p.TCP, bytes(32), offset=32)
    first6 = p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, p.fragment_header(p.TCP, p.tcp(4000, port, payload=bytes(12)), more=True))
    later6 = p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, p.fragment_header(p.TCP, bytes(32), offset=32))
    frames = [frame(p.ethernet(first4)), frame(p.ethernet(later4))]
    frames += [frame(p.ethernet(packet, type=p.ETH_IP6)) for packet in (first6, later6)]
    expected = IDS if port == 80 else 0
    for undetermined in ("deliver", "drop"):
        judge = Judge(config(Rule("pass", "tcp port 80"), undetermined=undetermined))
        assert judge.verdicts(frames) == [expected] * 4
        assert judge.count("undetermined_packets") == 0
    assert Judge(config(Rule("pass", "tcp port 80"), undetermined="libpcap")).verdicts(frames) == [expected, 0, 0, 0]


@pytest.mark.parametrize("expression", ["tcp port 80", "tcp flags syn", "not port 80"])
@pytest.mark.parametrize("index", [True, False])
def test_of_a_later_fragment_whose_first_is_not_looked_into_the_ports_cannot_be_told(expression: str, index: bool) -> None:
    """The fragment header of the first is behind another extension header, that of the later one is not."""
    first = p.hop_by_hop(p.FRAGMENT, p.fragment_header(p.TCP, p.tcp(4000, 80, payload=bytes(12)), more=True))
    later = p.fragment_header(p.TCP, bytes(32), offset=32)
    packets = p.ipv6("fe80::1", "fe80::2", p.HOPOPTS, first), p.ipv6("fe80::1", "fe80::2", p.FRAGMENT, later)
    judge = Judge(config(Rule("pass", expression), undetermined="drop"), index=index)
    causes = [cause for _, cause, _ in judge.judge([frame(p.ethernet(packet, type=p.ETH_IP6)) for packet in packets])]
    assert causes == [CAUSE_FORWARDED if expression.startswith("not") else CAUSE_FILTERED, CAUSE_UNDETERMINED]


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize(
    ("expression", "kind"), [("not icmp", p.ETH_IP6), ("not icmp6", p.ETH_IP), ("not ip6 proto 6 and not icmp6", p.ETH_IP)]
)
def test_a_protocol_that_is_cut_off_does_not_matter_to_what_is_not_of_the_other_ip(expression: str, kind: int, index: bool) -> None:
    """libpcap does not read it, so it does not end there."""
    cut = frame(p.ethernet(bytes([0x60 if kind == p.ETH_IP6 else 0x45, 0, 0, 40]), type=kind))
    judge = Judge(config(Rule("pass", expression), undetermined="libpcap"), index=index)
    assert judge.verdicts([cut]) == [IDS]
    assert Judge(config(Rule("pass", "not tcp"), undetermined="libpcap"), index=index).verdicts([cut]) == [0]
