"""Configurations that a file can say, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from broker.config.packet import build, fields_text
from broker.config.slots import assign_slots
from broker.core.flow_model import ATTRIBUTES, Export, Flows, Link, Site, Store
from broker.core.model import Config, Cpus, Input, Map, PolicyTest, RingSizes, Rotation, Rule, Sample, Stages, Stream, Tls, Tool, Tunnel

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True) | st.sampled_from(
    ["on", "no", "null", "1e3", "0x1f", "010", "12_3", "y"]
)
words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Zl", "Zp"], exclude_characters="\ufeff"), min_size=1, max_size=12)
expressions = st.sampled_from(
    ["", "tcp", "tcp port 22", "not ip6", "host 10.0.0.1 and port 80", "ether host 00:11:22:33:44:55", "net $set_"]
)
v4 = st.ip_addresses(v=4).filter(lambda a: not (a.is_unspecified or a.is_multicast or str(a) == "255.255.255.255")).map(str)
v6 = st.ip_addresses(v=6).filter(lambda a: not (a.is_unspecified or a.is_multicast or a.is_link_local or a.ipv4_mapped)).map(str)


def packet_fields(inputs: list[str]) -> st.SearchStrategy[dict[str, object]]:
    """Fields as text, as they stand in a document; a few of every kind of value."""
    number = st.integers(0, 255).map(str) | st.just("0x1f")
    return st.fixed_dictionaries(
        {"ip.src": v4, "ip.ttl": number},
        optional={
            "input": st.sampled_from(inputs),
            "vlan.id": number | st.lists(number, min_size=2, max_size=3),
            "payload": st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: not text.startswith("0x")),
            "eth.src": st.just("00:11:22:33:44:55"),
        },
    )


cpu_lists = st.lists(st.integers(0, 4095), max_size=3).map(tuple)


@st.composite
def policy_tests(draw: st.DrawFn, inputs: list[str], tools: list[str], maps: list[str]) -> PolicyTest:
    fields = draw(packet_fields(inputs))
    made = build(fields)
    some_maps = st.lists(st.sampled_from(maps), unique=True).map(tuple) if maps else st.just(())
    return PolicyTest(
        fields_text(fields),
        made.frame,
        made.wirelen,
        made.input or inputs[0],
        draw(st.lists(st.sampled_from(tools), unique=True).map(tuple)),
        draw(st.none() | some_maps),
        draw(st.just("") | words.filter(str.isprintable)),
    )


def _bits(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << n) - 1)


_GRE = {"key": st.none() | _bits(32), "sequence": st.booleans(), "checksum": st.booleans()}
_UDP = {"port": st.integers(1, 65535), "source_port": _bits(16)}
_ERSPAN = {"session": _bits(10), "vlan": st.none() | _bits(12), "cos": st.none() | _bits(3)}
_ERSPAN_3 = {**_ERSPAN, "hw_id": _bits(6), "direction": st.sampled_from(["ingress", "egress"])}
_COARSE = st.sampled_from(["100us", "100ns"])

TUNNEL_KEYS: list[tuple[str, dict[str, st.SearchStrategy[Any]]]] = [
    ("gre", _GRE),
    ("gre-ip", _GRE),
    ("gre-udp", {**_GRE, **_UDP}),
    ("nvgre", {"vsid": _bits(24), "flow_id": st.none() | _bits(8)}),
    ("erspan1", {}),
    ("erspan2", {**_ERSPAN, "encapsulation": st.none() | _bits(2), "index": _bits(20)}),
    ("erspan3", {**_ERSPAN_3, "granularity": _COARSE}),
    ("erspan3", {**_ERSPAN_3, "granularity": _COARSE, "subheader": st.just(True), "index": _bits(14)}),
    ("erspan3", {**_ERSPAN_3, "granularity": st.just("ieee1588"), "subheader": st.just(True), "index": _bits(16)}),
    ("vxlan", {**_UDP, "vni": _bits(24)}),
    ("geneve", {**_UDP, "vni": _bits(24), "generation": st.booleans()}),
]


@st.composite
def tunnels(draw: st.DrawFn) -> Tunnel:
    """Without an index of ERSPAN III where the subheader is not there: that is a mistake."""
    family = draw(st.sampled_from([v4, v6]))
    kind, own = draw(st.sampled_from(TUNNEL_KEYS))
    source = draw(st.just("") | family)
    checksum = {"udp_checksum": draw(st.booleans())} if "port" in own and (source or family is v6) else {}
    return Tunnel(
        kind=kind,  # type: ignore[arg-type]
        remote=draw(family),
        source=source,
        interface=draw(st.sampled_from(["", "ens192", "vlan.7"])),
        ttl=draw(st.integers(1, 255)),
        dscp=draw(st.integers(0, 63)),
        df=draw(st.booleans()),
        **checksum,
        **{key: draw(value) for key, value in own.items()},
    )


@st.composite
def some_tools(draw: st.DrawFn, name: str, file: str, number: int) -> Tool:
    """Of any kind; `file` and `number` make it different from others."""
    kind = draw(st.sampled_from(["tunnel", "file", "rotation", "interface", "stream"]))
    made = draw(st.sampled_from(["pcap", "pcapng"]))
    if kind == "tunnel":
        tunnel = draw(tunnels())
        backends = ["auto", "socket", "packet"] + (["segment"] if tunnel.udp_port and not tunnel.sequence else [])
        return Tool(name, tunnel=tunnel, receiver=draw(st.sampled_from(["", "tshark"])), backend=draw(st.sampled_from(backends)))
    if kind == "interface":
        return Tool(name, interface=f"out{number}", qdisc_bypass=draw(st.booleans()))
    if kind == "file":
        return Tool(name, file=file, format=made)
    if kind == "rotation":
        by_size, by_time = draw(st.sampled_from([(1 << 20, 0), (0, 60), (10**9, 3600)]))
        return Tool(
            name, format=made, rotation=Rotation(file, by_size, by_time, draw(st.integers(0, 9)), draw(st.sampled_from(["none", "gzip"])))
        )
    buffer_bytes = draw(st.integers(1 << 16, 1 << 28))
    if draw(st.booleans()):
        tls = draw(st.none() | st.builds(Tls, ca=st.just("") | words, server_name=st.sampled_from(["", "a.example"]), verify=st.booleans()))
        return Tool(name, format=made, stream=Stream(connect=f"192.0.2.{number}:9000", buffer_bytes=buffer_bytes, tls=tls))
    tls = draw(st.none() | st.builds(Tls, ca=st.just("") | words, cert=words, key=st.just("") | words))
    return Tool(name, format=made, stream=Stream(listen=f"[::]:{9000 + number}", buffer_bytes=buffer_bytes, tls=tls))


@st.composite
def endpoints(draw: st.DrawFn, name: str, n: int) -> Input:
    """`n` differs between those of one configuration."""
    listen = draw(st.sampled_from(["gre-udp", "vxlan", "geneve"] if n else ["gre", "gre-udp", "vxlan", "geneve"]))
    family = draw(st.sampled_from([4, 6]))
    nets = {4: ["10.0.0.0/8", "192.0.2.1/32", "0.0.0.0/0"], 6: ["2001:db8::/32", "fd00::1/128", "::/0"]}
    numbers = {"key" if listen in ("gre", "gre-udp") else "vni": draw(st.none() | st.integers(0, 2**24 - 1))}
    return Input(
        name,
        "tunnel",
        listen=listen,
        senders=tuple(draw(st.lists(st.sampled_from(nets[family]), min_size=1, unique=True))),
        address=draw(st.sampled_from(["", {4: "192.0.2.9", 6: "2001:db8::9"}[family]])),
        port=0 if listen == "gre" else 10_000 + n,
        buffer_bytes=draw(st.integers(1 << 16, 1 << 30)),
        **numbers,
    )


_TLS = st.builds(Tls, ca=st.just("") | words, server_name=st.sampled_from(["", "a.example"]), verify=st.booleans())


@st.composite
def exports(draw: st.DrawFn, name: str, n: int) -> Export:
    """`n` differs between those of one configuration."""
    kind = draw(st.sampled_from(["ipfix", "netflow9", "netflow5", "json"]))
    transport = draw(st.sampled_from({"ipfix": ["udp", "tcp", "tls"], "json": ["tcp", "tls", "file"]}.get(kind, ["udp"])))
    said: dict[str, Any] = {}
    if transport == "udp":
        said |= {"mtu_bytes": draw(st.integers(576, 65_535))}
        said |= {} if kind == "netflow5" else {"template_refresh_s": draw(st.integers(1, 86_400))}
    else:
        said |= {"buffer_bytes": draw(st.integers(1 << 16, 1 << 30))}
    if kind in ("ipfix", "netflow9"):
        said |= {"domain": draw(_bits(32))}
    if transport == "file":
        return Export(name, kind, transport, file=f"lines{n}", **said)
    said |= {"tls": draw(_TLS)} if transport == "tls" else {}
    return Export(name, kind, transport, draw(v4 | v6), draw(st.integers(1, 65_535)), **said)


@st.composite
def stores(draw: st.DrawFn) -> Store:
    kind = draw(st.sampled_from(["parquet", "clickhouse", "kafka"]))
    said: dict[str, Any] = {"flush_s": draw(st.integers(1, 3600)), "spool_bytes": draw(st.integers(1 << 20, 1 << 44))}
    if kind == "parquet":
        said |= {"keep_days": draw(st.integers(0, 36_500)), "keep_bytes": draw(st.integers(0, 1 << 50))}
    elif kind == "clickhouse":
        secure = draw(st.booleans())
        said |= {"url": f"http{'s' if secure else ''}://{draw(st.sampled_from(['db', '192.0.2.1', '[2001:db8::1]']))}:8123"}
        said |= {"tls": draw(_TLS)} if secure else {}
        said |= draw(st.sampled_from([{}, {"user": "on"}, {"user": "u", "password_file": "p"}]))
        said |= {"database": draw(st.sampled_from(["tapmesh", "null", "no"]))}
    else:
        said |= {"servers": draw(st.lists(st.sampled_from(["a:1", "192.0.2.1:9092", "[::1]:9092"]), min_size=1).map(tuple))}
        said |= {"topic": draw(st.sampled_from(["t", "1.5", "a_b"])), "tls": draw(st.none() | _TLS)}
    return Store(kind, draw(words), **said)


@st.composite
def some_flows(draw: st.DrawFn, inputs: list[str], with_tools: bool) -> Flows:
    def named() -> list[str]:
        return draw(st.lists(names, max_size=3, unique=True))

    made = tuple(draw(exports(name, n)) for n, name in enumerate(named()))
    some_inputs = st.lists(st.sampled_from(inputs), min_size=1, unique=True).map(lambda found: {"inputs": tuple(found)})
    of_records = ["tcp", "net 10.0.0.0/8 and port 5432", "port 53 or portrange 80-443", "src host 2001:db8::1", "bytes > 1000", "vlan 7"]
    matched = st.sampled_from(of_records).map(lambda text: {"match": text})
    sites = named()
    return Flows(
        of=draw(st.sampled_from(["captured", "forwarded"] if with_tools else ["captured"])),
        layer=draw(st.sampled_from(["outer", "inner"])),
        max_flows=draw(st.integers(1_000, 8_000_000)),
        idle_s=draw(st.sampled_from([0.1, 15.0, 3600.0])),
        active_s=draw(st.sampled_from([1.0, 60.5, 3600.0])),
        names=draw(st.integers(0, 65_000)),
        records=draw(st.integers(1_024, 1 << 21)),
        sample=draw(st.none() | st.builds(Sample, st.integers(1, 1_000_000), st.sampled_from(["flow", "packet"]))),
        overload=draw(st.sampled_from(["", "skip", "wait"])),
        anonymise_key_file=draw(st.just("") | words),
        drop=draw(st.lists(st.sampled_from(ATTRIBUTES)).map(tuple)),
        exports=made,
        store=draw(stores() if not made else st.none() | stores()),
        meter_s=draw(st.integers(1, 3600)),
        links=tuple(Link(name, draw(st.integers(1, 10**15)), **draw(some_inputs | matched)) for name in named()),
        sites=tuple(
            Site(name, (f"10.{n}.0.0/24", f"2001:db8::{n + 1}/128")[: draw(st.integers(0, 2))], draw(st.sampled_from(["", *sites[:n]])))
            for n, name in enumerate(sites)
        ),
        new_days=draw(st.integers(1, 3650)),
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    def some(least: int) -> list[str]:
        return draw(st.lists(names, min_size=least, max_size=4, unique=True))

    def files(n: int, kind: str) -> list[str]:
        return [f"{kind}{k}{draw(words)}" for k in range(n)]

    inputs = []
    for n, name in enumerate(some(1)):
        kind = draw(st.sampled_from(["afpacket", "pcap", "tunnel"]))
        if kind == "afpacket":
            sizes = {"ring_bytes": draw(st.integers(1 << 20, 1 << 30)), "latency_ms": draw(st.integers(1, 250))}
            switches = {key: draw(st.booleans()) for key in ("promiscuous", "capture_own", "dedicated", "shed")}
            switches["prefilter"] = draw(st.sampled_from(["auto", "on", "off"]))
            inputs.append(Input(name, "afpacket", interface=f"eth{n}", **sizes, **switches))
        elif kind == "tunnel":
            inputs.append(draw(endpoints(name, n)))
        else:
            pace = draw(st.sampled_from(["max", "recorded", "2x", "0.5x", "10000"]))
            inputs.append(Input(name, "pcap", files=tuple(files(draw(st.integers(1, 3)), "in")), pace=pace))
    tool_names = some(1)
    tools = [draw(some_tools(name, file, n)) for n, (name, file) in enumerate(zip(tool_names, files(len(tool_names), "out"), strict=True))]
    to = st.lists(st.sampled_from(tool_names), min_size=1, unique=True).map(tuple)
    to_any = st.just(()) | to
    rules = st.lists(st.builds(Rule, st.sampled_from(["pass", "drop"]), expressions), min_size=1, max_size=3).map(tuple)
    maps = [
        Map(
            name,
            rules=draw(rules),
            to=draw(to_any),
            inputs=draw(st.lists(st.sampled_from([i.name for i in inputs]), unique=True).map(tuple)),
            undetermined=draw(st.sampled_from(["deliver", "drop", "libpcap"])),
        )
        for name in some(0)
    ]
    if not draw(st.integers(0, 3)):  # insight only
        flows: Flows | None = draw(some_flows([i.name for i in inputs], with_tools=False))
        return assign_slots(Config(draw(names), tuple(inputs), (), (), {"set_": ("10.0.0.1",)}, flows=flows))
    flows = draw(st.none() | some_flows([i.name for i in inputs], with_tools=True))
    config = Config(
        node=draw(names),
        inputs=tuple(inputs),
        tools=tuple(tools),
        maps=tuple(maps),
        sets={"set_": draw(st.lists(v4 | v6, max_size=3).map(tuple)), "ports": ("80", "8000-8080", "https")},
        collector=draw(to if not maps else to_any),
        stages=Stages(
            *(draw(st.integers(1, 16)) for _ in range(4)),
            Cpus(*(tuple(draw(st.lists(st.integers(0, 4095), max_size=3))) for _ in range(5))),
        ),
        ring=RingSizes(1 << draw(st.integers(2, 10)), draw(st.integers(1, 16_384)), draw(st.integers(262_144, 1 << 26))),
        http=draw(st.sampled_from(["", "127.0.0.1:0", "0.0.0.0:9464", "[::1]:9464"])),
        drain_s=draw(st.sampled_from([0.0, 0.5, 10.0, 3600.0])),
        flows=flows,
        tests=tuple(draw(st.lists(policy_tests([i.name for i in inputs], tool_names, [m.name for m in maps]), max_size=2))),
    )
    return assign_slots(config)
