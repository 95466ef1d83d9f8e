"""What each receiver refuses, and what it is warned of: the table of `receivers.py` against a table written apart from it."""

from __future__ import annotations

from typing import get_args

import pytest

from broker.config import hygiene, parse_config
from broker.config.hygiene import text_of
from broker.config.receivers import EVERY, RECEIVERS, refusals, traps
from broker.config.tunnels import TUNNELS
from broker.core.errors import ConfigErrors
from broker.core.model import Tunnel, TunnelKind

KINDS = ("gre", "nvgre", "gre-ip", "erspan1", "erspan2", "erspan3", "vxlan", "geneve", "gre-udp")
READS = {
    # + reads it, - does not, ? nobody has found out; in the order of KINDS, each with its defaults
    "suricata": "+++++-++?",
    "zeek": "+++++++++",
    "arkime": "++++++++?",
    "snort3": "+++-+-++?",
    "tshark": "+++++++++",
    "tcpdump": "+++---++-",
    "packetbeat": "---------",
    "extrahop": "+?????+??",
    "vectra": "+???+?++?",
    "linux": "++++++++?",
}


def tunnel(kind: str, **options: object) -> Tunnel:
    return Tunnel(kind, "192.0.2.9", **options)  # type: ignore[arg-type]


def test_the_table_knows_every_kind_of_tunnel() -> None:
    assert set(KINDS) == set(get_args(TunnelKind)) == EVERY == set(TUNNELS)
    assert set(READS) == set(RECEIVERS)


@pytest.mark.parametrize("receiver", READS)
def test_a_receiver_gets_what_it_reads(receiver: str) -> None:
    got = ""
    for kind in KINDS:
        unknown = any("is not known here" in text for _, text in traps(receiver, tunnel(kind)))
        got += "-" if list(refusals(receiver, tunnel(kind))) else "?" if unknown else "+"
    assert got == READS[receiver]


@pytest.mark.parametrize(
    ("receiver", "kind", "options", "refused", "warned"),
    [
        ("", "erspan3", {}, [], []),
        ("snort3", "erspan3", {"subheader": True}, [], []),
        ("linux", "erspan3", {"subheader": True}, ["subheader"], ["session"]),
        ("linux", "gre", {"key": 7}, [], ["key"]),
        ("linux", "nvgre", {}, [], ["flow_id"]),
        ("linux", "nvgre", {"flow_id": 0}, [], []),
        ("linux", "vxlan", {"port": 8472}, [], ["port"]),
        ("zeek", "gre-udp", {"port": 4755}, ["port"], []),
        ("zeek", "gre-udp", {"port": 4754}, [], []),
        ("zeek", "vxlan", {"port": 8472}, [], ["port"]),
        ("zeek", "geneve", {"port": 6082}, [], ["port"]),
        ("zeek", "gre", {"checksum": True}, [], ["checksum"]),
        ("suricata", "gre", {}, [], []),
        ("suricata", "gre", {"key": 0}, [], ["key"]),
        ("suricata", "gre", {"sequence": True, "checksum": True}, [], ["checksum"]),
        ("suricata", "nvgre", {"vsid": 1}, [], ["vsid"]),
        ("suricata", "vxlan", {}, [], []),
        ("suricata", "vxlan", {"vni": 5, "port": 8472}, [], ["vni", "port"]),
        ("suricata", "geneve", {"vni": 5, "port": 6082}, [], ["vni", "port"]),
        ("arkime", "vxlan", {"vni": 5}, [], ["vni"]),
        ("arkime", "gre", {"key": 5}, [], ["key"]),
        ("snort3", "vxlan", {"port": 1}, [], ["port"]),
        ("snort3", "geneve", {"port": 1}, [], ["port"]),
        ("tshark", "gre-udp", {"port": 1}, [], ["port"]),
        ("tcpdump", "geneve", {"port": 1}, [], ["port"]),
        ("extrahop", "vxlan", {"port": 1}, [], ["port"]),
        ("vectra", "erspan2", {}, [], ["kind"]),
    ],
)
def test_options_that_a_receiver_minds(receiver: str, kind: str, options: dict[str, object], refused: list[str], warned: list[str]) -> None:
    one = tunnel(kind, **options)
    assert [key for key, _ in refusals(receiver, one)] == refused
    assert [key for key, _ in traps(receiver, one)] == warned
    assert all(key in TUNNELS[kind].model_fields for key in refused + warned), "the operator can change it"


CONFIG = """\
inputs:
  span0: {kind: pcap, file: a}
tools:
  ids: {tunnel: {kind: vxlan, remote: 192.0.2.9, port: 8472, vni: 7}, receiver: RECEIVER}
maps:
  - {name: one, rules: [pass: tcp], to: ids}
"""


def test_a_refusal_is_a_mistake_with_its_place_and_reason() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_config(CONFIG.replace("RECEIVER", "packetbeat"), "t.yaml")
    assert str(caught.value) == (
        "t.yaml:4:24: tools.ids.tunnel.kind: Packetbeat decodes no tunnel: let a device of the kernel end it (gretap, vxlan), "
        "which is receiver: linux"
    )


def test_a_trap_is_a_warning_with_its_place_and_key() -> None:
    config = parse_config(CONFIG.replace("RECEIVER", "snort3"), "t.yaml")
    assert [text_of(warning) for warning in hygiene.warnings(config)] == [
        "t.yaml:4:3: tools.ids.tunnel.port: warning: Snort 3 must be told to look for VXLAN there: udp.vxlan_ports"
    ]
    assert hygiene.warnings(parse_config(CONFIG.replace(", receiver: RECEIVER", ""))) == []
