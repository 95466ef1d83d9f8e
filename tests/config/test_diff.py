"""What a reload may change, and what it may not."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from broker.config import parse_config
from broker.config.diff import RELOAD, RESTART, diff
from broker.config.lanes import tool_room
from broker.core.model import Config
from tests.config.mistakes import BASE


def changed(old: str, new: str) -> Config:
    assert old in BASE
    return parse_config(BASE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "part", "action", "reason"),
    [
        ("esx07", "esx08", "node", "restart", "esx07 -> esx08"),
        ("ens224", "ens256", "inputs", "restart", "span0: interface ens224 -> ens256"),
        ("pace: max", "pace: 2x", "inputs", "restart", "old: pace max -> 2x"),
        ("  old: {kind: pcap, file: old.pcap, pace: max}\n", "", "inputs", "restart", "old removed"),
        ("filter: 2", "filter: 3", "stages", "restart", "filter 2 -> 3"),
        ("blocks: 8", "blocks: 16", "ring", "restart", "blocks 8 -> 16"),
        ("http: 127.0.0.1:9464\n", "", "http", "restart", "127.0.0.1:9464 -> none"),
        ("192.0.2.9, key: 7", "192.0.2.10", "tools", "reload", "ids: tunnel.remote 192.0.2.9 -> 192.0.2.10, tunnel.key 7 -> none"),
        ("  udp:", "  new: {kind: pcap, file: n}\n  udp:", "tools", "reload", "new added"),
        ("ids: {tunnel: {kind: gre, remote: 192.0.2.9, key: 7}}", "ids: {kind: pcap, file: i}", "tools", "reload",
         "ids: tunnel gre -> none, file none -> i"),
        ("10.1.0.0/24, ", "", "sets", "reload", "pos_web: [10.1.0.0/24, 2001:db8:1::/64] -> [2001:db8:1::/64]"),
        ("tcp dst port 5432", "tcp dst port 5433", "maps", "reload", "pos-db: rules"),
        ('      - drop: "tcp port 22"\n', "", "maps", "reload", "pos-db: rules 2 -> 1"),
        ("[ids, recorder]", "[ids]", "maps", "reload", "pos-db: to [ids, recorder] -> [ids]"),
        ("collector: recorder\n", "", "collector", "reload", "[recorder] -> []"),
        ("drain_s: 10", "drain_s: 5", "drain_s", "reload", "10.0 -> 5.0"),
        ("delivers: recorder", "delivers: ids", "tests", "reload", "[1]: delivers [recorder] -> [ids]"),
        ("udp.dst: 53", "udp.dst: 54", "tests", "reload", "[1]: packet udp.dst=53 -> udp.dst=54"),
        ("  - {packet: {udp.dst: 53}, delivers: recorder}\n", "", "tests", "reload", "[1] removed"),
    ],
)  # fmt: skip
def test_a_change_is_told_with_what_it_needs(old: str, new: str, part: str, action: str, reason: str) -> None:
    changes = diff(parse_config(BASE), changed(old, new))
    assert [str(c) for c in changes.parts if c.action != "keep"] == [f"{part}: {action}: {reason}"]
    assert changes.action == action
    assert str(changes) == f"{part}: {action}: {reason}"


def test_nothing_changed_is_kept_part_by_part() -> None:
    changes = diff(parse_config(BASE), parse_config(BASE))
    assert changes.action == "keep"
    assert [c.part for c in changes.of("keep")] == [*RESTART, *RELOAD]
    assert str(changes) == "nothing changed"


def test_every_part_of_a_configuration_is_looked_at() -> None:
    assert set(RESTART + RELOAD) == {f.name for f in fields(Config) if f.compare}


def test_a_change_further_down_says_nothing_of_places() -> None:
    old, new = parse_config(BASE), parse_config("# moved\n" + BASE.replace("remote: 192.0.2.9", "remote: 192.0.2.10"))
    assert str(diff(old, new)) == "tools: reload: ids: tunnel.remote 192.0.2.9 -> 192.0.2.10"


def test_moved_text_comments_and_slots_are_no_change() -> None:
    old = parse_config(BASE)
    moved = parse_config("# a comment\n\n" + BASE, "elsewhere.yaml")
    slotted = replace(moved, tools=tuple(replace(t, slot=t.slot + 5) for t in moved.tools))
    assert diff(old, slotted).action == "keep"


def test_files_played_in_another_order_need_a_restart() -> None:
    text = BASE.replace("  old:", "  older: {kind: pcap, file: older.pcap}\n  old:")
    swapped = BASE.replace("pace: max}\n", "pace: max}\n  older: {kind: pcap, file: older.pcap}\n")
    assert str(diff(parse_config(text), parse_config(swapped))) == "inputs: restart: in another order"


def test_more_tools_a_packet_than_the_rings_have_frames_for_need_a_restart() -> None:
    old = parse_config(BASE)
    more = BASE
    for k in range(5):
        more = more.replace("  udp:", f"  new{k}: {{kind: pcap, file: new{k}.pcap}}\n  udp:").replace(
            "ids, recorder]", f"new{k}, ids, recorder]"
        )
    new = parse_config(more)
    assert tool_room(old) == 4
    assert diff(old, new, max_tools=7).action == "reload"
    assert diff(old, new).action == "restart"
    (told,) = diff(old, new, max_tools=6).of("restart")
    assert told.part == "tools"
    assert told.reason.endswith("; a packet may go to 7 tools, and the rings were made for 6")
