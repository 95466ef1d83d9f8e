"""Pure parts of the commands: tables, the configuration of a replay, arguments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.cli.main import parser
from broker.cli.replay_config import Play, parse_plays, replayed, selecting
from broker.cli.report import tools_table
from broker.cli.status import as_json
from broker.cli.table import Column, reasons, render, share, size
from broker.cli.top import frame
from broker.core.errors import TapmeshError
from broker.core.layout import STATE_RUNNING, TOOL_ALIVE, TOOL_DEAD
from broker.core.model import Config, Input, Map, Rule, Stages, Tool, Tunnel
from broker.core.shm import Pipeline
from broker.supervisor.ledger import balance
from broker.supervisor.snapshot import Names, Reader
from tests.supervisor.rings import NAMES, capture_block, count_live, frame_block, judge_block, send_block

CONFIG = Config(
    node="n",
    inputs=(Input("left", "afpacket", slot=0, interface="eth0"), Input("right", "afpacket", slot=1, interface="eth1")),
    tools=(Tool("ids", 0, Tunnel("gre", "192.0.2.9")), Tool("disk", 1, file="/var/x.pcap")),
    maps=(Map("m", (Rule("pass", "tcp"),), ("ids",), inputs=("left",)),),
    stages=Stages(capture=4, filter=3),
    http="127.0.0.1:1",
)


def test_a_table_is_aligned_and_ends_without_blanks():
    table = render([Column("name", right=False), Column("n"), Column("why", right=False)], [["a", "1,000", "x"], ["long name", "2", ""]])
    assert table.splitlines() == [
        "  name           n  why",
        "  ---------  -----  ---",
        "  a          1,000  x",
        "  long name      2",
    ]


def test_the_last_column_is_cut_to_the_width_of_the_terminal():
    columns, rows = [Column("n"), Column("expression", right=False)], [["1", "host 192.0.2.1 and tcp"], ["22", "udp port 7"]]
    assert render(columns, rows, width=20).splitlines()[2:] == ["   1  host 192.0....", "  22  udp port 7"]
    assert render(columns, rows, width=5).splitlines()[2:] == ["   1  host 19...", "  22  udp port 7"]
    assert render(columns, rows, width=28) == render(columns, rows)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (9_996_000, "10.0 MB"),
        (5 * 10**15, "5.00 PB"),
    ],
)
def test_sizes_have_three_digits(n: int, text: str):
    assert size(n) == text


def test_shares_and_reasons():
    assert (share(1, 3), share(0, 0)) == ("33 %", "-")
    assert reasons({"full": 0, "disk": 0}) == "0"
    assert reasons({"full": 1500, "disk": 0, "other": 2}) == "1,502: full 1,500, other 2"


def test_files_take_the_place_of_inputs_in_the_order_given(tmp_path: Path):
    plays = parse_plays(["/a.pcap", "right=/b.pcap", "right=/c.pcap", "left=/d.pcap"], ["left", "right"])
    config = replayed(CONFIG, plays, tmp_path, "2x")
    assert [(i.name, i.slot, i.kind, i.files, i.pace) for i in config.inputs] == [
        ("left", 0, "pcap", ("/a.pcap",), "2x"),
        ("right", 1, "pcap", ("/b.pcap", "/c.pcap"), "2x"),
        ("left", 0, "pcap", ("/d.pcap",), "2x"),
    ]
    assert config.stages == Stages(capture=1, filter=3)
    assert config.http == ""
    assert config.tools == (
        replace(CONFIG.tools[0], file=str(tmp_path / "ids.pcap")),
        replace(CONFIG.tools[1], file=str(tmp_path / "disk.pcap")),
    )


def test_an_input_that_is_not_played_stays_known_to_the_maps(tmp_path: Path):
    config = replayed(CONFIG, [Play("/b.pcap", "right")], tmp_path, None)
    assert [(i.name, i.files) for i in config.inputs] == [("right", ("/b.pcap",)), ("left", ())]


def test_a_word_with_an_equals_sign_may_be_a_file(tmp_path: Path):
    odd = tmp_path / "x=y.pcap"
    odd.touch()
    assert parse_plays([str(odd), "a=b"], []) == [Play(str(odd)), Play("a=b")]
    assert parse_plays([str(odd)], ["left"]) == [Play(str(odd))]
    with pytest.raises(TapmeshError, match="there is no input 'lft'; the configuration has left, right"):
        parse_plays(["lft=/a.pcap"], ["left", "right"])


def test_a_selection_means_what_libpcap_means():
    config = selecting([Play("-"), Play("/a.pcap")], Path("/o.pcap"), "tcp port 80", None)
    assert config.inputs[0].files == ("-", "/a.pcap")
    assert config.maps[0].undetermined == "libpcap"
    assert config.maps[0].rules[0].expression == "tcp port 80"
    assert selecting([Play("/a.pcap")], Path("/o.pcap"), "", None).collector == ("out",)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["replay", "a", "b", "-w", "o", "tcp", "or", "udp"], {"files": ["a", "b"], "select": ["o", "tcp", "or", "udp"]}),
        (["replay", "a", "--config", "c", "--out", "d", "--pace", "2x"], {"config": Path("c"), "out": Path("d"), "pace": "2x"}),
        (["run", "--demo"], {"demo": True, "name": None, "external_stages": False}),
        (["run", "--config", "c", "--name", "n", "--external-stages"], {"name": "n", "external_stages": True}),
        (["status", "--json"], {"json": True, "rules": False}),
        (["status", "--rules"], {"json": False, "rules": True}),
        (["top", "--once"], {"once": True}),
    ],
)
def test_arguments_are_read(words: list[str], expected: dict[str, object]):
    found = vars(parser().parse_args(words))
    assert {key: found[key] for key in expected} == expected


def test_a_frame_of_top_shows_what_happened_between_two_looks(pipeline: Pipeline):
    lane = pipeline.lanes[0]
    lane.workers["state"] = STATE_RUNNING
    reader = Reader(pipeline)
    before = reader.take(NAMES)
    judge_block(lane, capture_block(lane, 10), [1] * 10)
    frame_block(lane, 0, [(0, 0)] * 10)
    send_block(lane, 0, {0: 10})
    count_live(lane, "filter", "busy_ns", 3000)
    count_live(lane, "filter", "starved_ns", 1000)
    after = replace(reader.take(NAMES), taken_ns=before.taken_ns + 500_000_000)
    lines = {line.split()[0]: line.split() for line in frame(before, after).splitlines() if line.strip()}
    assert lines["filter"] == ["filter", "1", "20", "300", "75", "%", "25", "%", "0", "%", "0"]
    assert lines["ids"][:3] == ["ids", "20", "0"]


def test_tools_that_are_asked_are_shown_alive_or_dead_by_status_and_top(pipeline: Pipeline):
    judge_block(pipeline.lanes[0], capture_block(pipeline.lanes[0], 1), [1 | 2])
    names = Names(inputs=NAMES.inputs, maps=NAMES.maps, tools={0: "ids", 1: "zeek", 2: "disk"})
    reader = Reader(pipeline)

    def shown() -> list[dict[str, str]]:
        snapshot = reader.take(names)
        tables = (tools_table(balance(snapshot), snapshot.alive), frame(snapshot, snapshot))
        return [{words[0]: " ".join(words[1:]) for line in table.splitlines() if (words := line.split())} for table in tables]

    assert not any(table["tool"].startswith("is ") for table in shown())
    pipeline.tool_state[:2] = TOOL_ALIVE, TOOL_DEAD
    for table in shown():
        assert table["tool"].startswith("is ")
        assert table["ids"].startswith("alive ")
        assert table["zeek"].startswith("dead ")
        assert table["disk"].startswith("not asked ")
    snapshot = reader.take(names)
    assert as_json(snapshot, balance(snapshot), [])["alive"] == {"ids": True, "zeek": False}
