"""What is read is what was written, whatever YAML 1.1 would make of it; and all of it can be written again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.config import load_config, parse_config, render
from broker.config.document import read_document
from broker.config.packet import build
from broker.config.parts import Part
from broker.config.schema import Whole, schema_text
from broker.core import model
from broker.core.errors import ConfigErrors, PipelineError
from broker.core.model import Config, Place
from broker.core.model_codec import from_bytes, to_bytes
from tests.config.mistakes import BASE
from tests.config.strategies import configs

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))


def test_every_key_becomes_its_field() -> None:
    config = parse_config(BASE, "t.yaml", "/etc/tapmesh")
    assert config == Config(
        node="esx07",
        inputs=(
            model.Input("span0", "afpacket", slot=0, interface="ens224"),
            model.Input("old", "pcap", slot=1, files=("/etc/tapmesh/old.pcap",), pace="max"),
        ),
        tools=(
            model.Tool("ids", slot=0, tunnel=model.Tunnel("gre", "192.0.2.9", key=7)),
            model.Tool("udp", slot=1, tunnel=model.Tunnel("gre-udp", "2001:db8::9", port=4754)),
            model.Tool("recorder", slot=2, file="/etc/tapmesh/out.pcap"),
        ),
        maps=(
            model.Map(
                "pos-db",
                (model.Rule("drop", "tcp port 22"), model.Rule("pass", "src net $pos_web and tcp dst port 5432")),
                to=("ids", "recorder"),
                inputs=("span0",),
            ),
        ),
        sets={"pos_web": ("10.1.0.0/24", "2001:db8:1::/64")},
        collector=("recorder",),
        stages=model.Stages(filter=2),
        ring=model.RingSizes(blocks=8),
        http="127.0.0.1:9464",
        drain_s=10.0,
        tests=(
            model.PolicyTest(
                "ip.src=10.1.0.5 ip.dst=10.2.0.9 tcp.dst=5432",
                build({"ip.src": "10.1.0.5", "ip.dst": "10.2.0.9", "tcp.dst": "5432"}).frame,
                wirelen=54,
                input="span0",
                delivers=("ids", "recorder"),
                by=("pos-db",),
                name="the shop asks its database",
            ),
            model.PolicyTest("udp.dst=53", build({"udp.dst": "53"}).frame, wirelen=42, input="span0", delivers=("recorder",)),
        ),
    )
    assert [rule.place for rule in config.maps[0].rules] == [Place("t.yaml", 15, 16), Place("t.yaml", 16, 15)]
    assert [i.place for i in config.inputs] == [Place("t.yaml", 3, 3), Place("t.yaml", 4, 3)]
    assert [t.place for t in config.tools] == [Place("t.yaml", 6, 3), Place("t.yaml", 7, 3), Place("t.yaml", 8, 3)]
    assert config.set_places == {"pos_web": Place("t.yaml", 10, 3)}
    assert [m.place for m in config.maps] == [Place("t.yaml", 12, 5)]
    assert [test.place for test in config.tests] == [Place("t.yaml", 24, 5), Place("t.yaml", 28, 5)]


def test_defaults_are_those_of_the_frozen_values() -> None:
    config = parse_config("inputs: {a: {kind: afpacket, interface: e}}\ntools: {t: {kind: pcap, file: f}}\ncollector: t\n")
    assert config == Config(
        node="tapmesh",
        inputs=(model.Input("a", "afpacket", interface="e"),),
        tools=(model.Tool("t", file="f"),),
        maps=(),
        collector=("t",),
    )


@pytest.mark.parametrize(
    ("written", "number"),
    [("7", 7), ("1_000_000", 1_000_000), ("0x2a", 42), ("0xFFFF_FFFF", 2**32 - 1), ("0", 0)],
)
def test_whole_numbers_are_decimal_or_hexadecimal_with_underscores(written: str, number: int) -> None:
    tunnel = parse_config(BASE.replace("key: 7", f"key: {written}")).tools[0].tunnel
    assert tunnel is not None
    assert tunnel.key == number


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "true", "7", "1e3", "0x1f", "10.30", "010", "1_0", "2026-01-01"])
def test_a_name_is_the_word_that_was_written(word: str) -> None:
    assert parse_config(BASE.replace("node: esx07", f"node: {word}")).node == word
    assert word in [t.name for t in parse_config(BASE.replace("  udp:", f"  {word}:")).tools]


def test_expressions_keep_what_yaml_would_take_for_a_time_or_a_list() -> None:
    text = BASE.replace('"tcp port 22"', "ether host 00:11:22:33:44:55")
    assert parse_config(text).maps[0].rules[0].expression == "ether host 00:11:22:33:44:55"


def test_addresses_ports_and_endpoints_get_their_one_spelling() -> None:
    text = BASE.replace('"2001:db8::9"', "2001:0DB8:0::0:9").replace("127.0.0.1:9464", '"[0::1]:9464"')
    text = text.replace("10.1.0.0/24, 2001:db8:1::/64", "2001:DB8:1:0::/64, 10.1.0.0/24")
    text = text.replace("sets:\n", "sets:\n  web: [80, 443, 8000-8080, https]\n  mac: [00:AA:22:33:44:55]\n")
    config = parse_config(text)
    assert config.tools[1].tunnel is not None
    assert config.tools[1].tunnel.remote == "2001:db8::9"
    assert config.http == "[::1]:9464"
    assert config.sets == {
        "web": ("80", "443", "8000-8080", "https"),
        "mac": ("00:aa:22:33:44:55",),
        "pos_web": ("2001:db8:1::/64", "10.1.0.0/24"),
    }


def test_pace_may_be_a_number_of_packets_per_second() -> None:
    assert parse_config(BASE.replace("pace: max", "pace: 10_000")).inputs[1].pace == "10000"


def test_a_test_may_name_an_input_and_what_was_captured() -> None:
    test = parse_config(BASE.replace("udp.dst: 53", "input: old, udp.dst: 53, length: 100, cut: 40")).tests[1]
    assert (test.input, test.wirelen, len(test.frame)) == ("old", 100, 40)


@pytest.mark.parametrize(
    "written",
    ["0x0d0a", '"0"', "'no'", '"GET\\r\\n\\0"', "null-", '"~"', "12:30:00", "2026-01-01", '"a  b "', "'= x'", "<<", '"\\x85"', '"\\u2028"'],
)
def test_a_payload_is_written_again_as_it_was_meant(written: str) -> None:
    config = parse_config(BASE.replace("udp.dst: 53", f"udp.dst: 53, payload: {written}"))
    assert parse_config(render(config)) == config


def test_a_tool_that_names_a_directory_writes_a_file_of_its_own_name_there() -> None:
    assert parse_config(BASE.replace("file: out.pcap", "directory: rec"), directory="/x").tools[2].file == "/x/rec/recorder.pcap"


def test_json_is_a_configuration_too() -> None:
    config = parse_config(BASE)
    as_json = json.dumps(
        {
            "node": "n",
            "inputs": {"a": {"kind": "pcap", "files": ["x"], "pace": 5}},
            "tools": {"t": {"tunnel": {"kind": "gre", "remote": "192.0.2.1", "sequence": True}}},
            "maps": [{"name": "m", "rules": [{"pass": "tcp"}], "to": ["t"]}],
        }
    )
    assert parse_config(as_json).inputs[0].pace == "5"
    assert config.node == "esx07"


def test_both_yaml_parsers_give_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = read_document(BASE, "t")
    monkeypatch.delattr("yaml.CSafeLoader")
    slow = read_document(BASE, "t")
    assert fast.value == slow.value
    assert [fast.place(p, of_key=True) for p in fast.spots] == [slow.place(p, of_key=True) for p in slow.spots]
    assert [fast.inside(p, 0) for p in fast.spots] == [slow.inside(p, 0) for p in slow.spots]


def test_a_byte_order_mark_moves_no_column() -> None:
    assert parse_config("\ufeff" + BASE).maps[0].rules[0].place == parse_config(BASE).maps[0].rules[0].place


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_its_effective_configuration_says_the_same(path: Path) -> None:
    config = load_config(path)
    assert parse_config(render(config)) == config


def test_there_are_examples() -> None:
    assert {p.name for p in EXAMPLES} >= {"minimal.yaml", "point-of-sale.yaml", "live.yaml", "udp.yaml"}


@settings(max_examples=100, deadline=None)
@given(configs())
def test_the_effective_configuration_is_read_back_as_the_same(config: Config) -> None:
    assert parse_config(render(config)) == config


@settings(max_examples=100, deadline=None)
@given(configs())
def test_a_generation_file_is_read_back_as_the_same(config: Config) -> None:
    assert from_bytes(to_bytes(config)) == config
    without = replace(config, maps=tuple(replace(m, rules=()) for m in config.maps))
    assert from_bytes(to_bytes(config), rules=False) == without


def test_a_generation_file_keeps_places_and_what_no_file_can_say() -> None:
    config = parse_config(BASE, "t.yaml")
    tool = model.Tool("x", tunnel=model.Tunnel("gre", "192.0.2.1"), file="both")
    kept = from_bytes(to_bytes(replace(config, tools=(tool,))))
    assert kept.tools == (tool,)
    assert kept.maps[0].rules[0].place == Place("t.yaml", 15, 16)
    assert kept.set_places == {"pos_web": Place("t.yaml", 10, 3)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colour": 1}, "config: unknown .'colour'.; another version wrote it"),
        ({"node": 7}, "config.node: expected .*str.*, found 7"),
        ({"tools": [{"slot": 1}]}, r"config.tools\[0\]: .'name'. missing; another version wrote it"),
        ({"stages": {"send": True}}, "config.stages.send: expected .*int.*, found True"),
        ({"maps": [{"name": "m", "rules": [], "to": [], "undetermined": "?"}]}, r"config.maps\[0\].undetermined: "),
    ],
)
def test_a_generation_file_of_another_version_is_refused_in_words(change: dict[str, object], told: str) -> None:
    plain = msgpack.unpackb(to_bytes(parse_config(BASE)))
    with pytest.raises(PipelineError, match=told):
        from_bytes(msgpack.packb({**plain, **change}))
    with pytest.raises(PipelineError, match="not msgpack"):
        from_bytes(to_bytes(parse_config(BASE))[:-1])


pieces = st.sampled_from([*"[]{}:,&*!|>'\"#%@-?\n\t $<é\0", "  ", ": ", "- ", "null", "tpc", "\n  ", "<<: ", "---\n", "256"])


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(BASE)), st.integers(0, 12), st.lists(pieces, max_size=4).map("".join))
def test_whatever_is_written_is_read_or_told_with_a_place_in_the_text(at: int, n: int, put: str) -> None:
    text = BASE[:at] + put + BASE[at + n :]
    errors: tuple[tuple[Place | None, str, str], ...] = ()
    try:
        parse_config(text, "t.yaml")
    except ConfigErrors as caught:
        errors = caught.errors or ((None, "", "no error in it"),)
    lines = text.split("\n")
    for place, _, said in errors:
        assert said
        assert place is not None, said
        assert place.line <= len(lines)
        assert place.column <= len(lines[place.line - 1]) + 1


def test_ten_thousand_nested_lists_are_refused_and_not_followed() -> None:
    with pytest.raises(ConfigErrors, match="nested more than 20 deep"):
        parse_config("a: " + "[" * 10_000 + "]" * 10_000)
    with pytest.raises(ConfigErrors, match="nested more than 20 deep"):
        parse_config("a: 1\na: " + "[" * 10_000 + "]" * 10_000)


def test_the_json_schema_in_deploy_is_current() -> None:
    assert (ROOT / "deploy" / "tapmesh.schema.json").read_text() == schema_text(), (
        "make it with: python -m broker.config.schema > deploy/tapmesh.schema.json"
    )


def parts_below(part: type[Part]) -> list[type[Part]]:
    return [part, *(p for sub in part.__subclasses__() for p in parts_below(sub))]


def test_every_key_is_described_to_editors_and_in_the_readme() -> None:
    readme = (ROOT / "broker" / "config" / "README.md").read_text()
    for part in parts_below(Part):
        for key, field in part.model_fields.items():
            assert key == "kind" or field.description, (part, key)
            assert f"`{field.alias or key}`" in readme, (part, key)
    assert Whole in parts_below(Part)


def test_workers_need_neither_yaml_nor_pydantic() -> None:
    """They import lanes and the codec, and the start of each costs time and memory."""
    code = "import sys, broker.config.lanes, broker.core.model_codec; sys.exit(bool({'yaml', 'pydantic'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
