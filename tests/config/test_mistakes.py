"""What an operator reads for each mistake: one line for each, in the order of the text, and nothing else."""

from __future__ import annotations

import pytest

from broker.config import load_config, parse_config
from broker.config.policy import PolicyError, parse_expression
from broker.core.errors import ConfigErrors
from tests.config.mistakes import BASE, MISTAKES

SETS = {"pos_web": ("10.1.0.0/24", "2001:db8:1::/64")}


def told(text: str, file: str = "t.yaml") -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse_config(text, file)
    return str(caught.value).split("\n")


def told_by_policy(expression: str) -> str:
    with pytest.raises(PolicyError) as caught:
        parse_expression(expression, SETS)
    return f"{caught.value.message} (column {caught.value.offset + 1} of the expression)"


def test_the_configuration_that_the_mistakes_are_made_in_is_right() -> None:
    assert parse_config(BASE).node == "esx07"


@pytest.mark.parametrize(("old", "new", "lines"), [(old, new, lines) for old, new, *lines in MISTAKES])
def test_a_mistake_is_told_in_these_words_and_no_others(old: str, new: str, lines: list[str]) -> None:
    assert old in BASE
    assert told(BASE.replace(old, new, 1)) == [f"t.yaml:{line}" for line in lines]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", ["t.yaml:1:1: the document is empty, expected a mapping with inputs, tools and maps"]),
        ("# nothing\n", ["t.yaml:1:1: the document is empty, expected a mapping with inputs, tools and maps"]),
        ("- a\n", ["t.yaml:1:1: found a list, expected a mapping"]),
        ("hello\n", ["t.yaml:1:1: found 'hello', expected a mapping"]),
        (
            "node: x\n",
            [
                "t.yaml:1:1: key 'inputs' is missing, expected inputs by name: where traffic comes from",
                "t.yaml:1:1: key 'tools' is missing, expected tools by name: where traffic is delivered",
                "t.yaml:1:1: maps: nothing would be delivered, expected maps or a collector",
            ],
        ),
        ("a: \x07\n", ["t.yaml:1:4: character U+0007 is not allowed in YAML"]),
        (
            "? [a]\n: b\n",
            [*told("{}\n"), "t.yaml:1:3: found a list, a mapping or an alias as a key, expected a word"],
        ),
    ],
)
def test_a_document_that_is_none_is_told(text: str, lines: list[str]) -> None:
    assert told(text) == lines


def test_all_mistakes_are_told_at_once_in_the_order_of_the_text() -> None:
    text = BASE
    for old, new in (("7}", "-7}"), ("[span0]", "[span1]"), ("to: [ids", "to: [idss"), ("filter: 2", "filter: 0"), ("ens224", "a/b")):
        text = text.replace(old, new, 1)
    assert told(text) == [
        (
            "t.yaml:3:38: inputs.span0.interface: 'a/b' is not an interface, "
            "expected a name of up to 15 characters without '/', ':' and spaces"
        ),
        "t.yaml:6:53: tools.ids.tunnel.key: -7 is out of range, expected 0..4294967295",
        "t.yaml:13:14: maps[0].inputs[0]: unknown input 'span1'; did you mean 'span0'?",
        "t.yaml:17:10: maps[0].to[0]: unknown tool 'idss'; did you mean 'ids'?",
        "t.yaml:19:30: stages.filter: 0 is out of range, expected 1..16",
    ]


@pytest.mark.parametrize(
    ("written", "expression", "column"),
    [
        ("tcp and tpc", "tcp and tpc", 23),
        ('"tcp and tpc"', "tcp and tpc", 24),
        ("'tcp and tpc'", "tcp and tpc", 24),
        ("   tcp and tpc  # why", "tcp and tpc", 26),
        (r'"tcp\x20and tpc"', "tcp and tpc", 15),  # an escape: the start of the scalar
        ("tcp\n          and tpc", "tcp and tpc", 15),  # folded: the same
        (">\n          tcp and tpc", "tcp and tpc\n", 15),
    ],
)
def test_a_mistake_in_an_expression_is_told_at_its_column_in_the_file(written: str, expression: str, column: int) -> None:
    text = BASE.replace('"tcp port 22"', written)
    assert told(text) == [f"t.yaml:15:{column}: maps[0].rules[0].drop: {told_by_policy(expression)}; did you mean 'tcp'?"]


def test_quotes_doubled_in_a_quoted_expression_are_counted() -> None:
    (line,) = told(BASE.replace('"tcp port 22"', "'''tcp'"))
    assert line.startswith("t.yaml:15:16: maps[0].rules[0].drop: ")
    (line,) = told(BASE.replace('"tcp port 22"', "'tcp and ''tcp'''"))
    assert line.startswith("t.yaml:15:24: maps[0].rules[0].drop: ")


def test_an_unknown_set_is_told_with_what_may_be_meant() -> None:
    text = BASE.replace("$pos_web", "$pos_wep")
    expression = "src net $pos_wep and tcp dst port 5432"
    assert told(text) == [f"t.yaml:16:23: maps[0].rules[1].pass: {told_by_policy(expression)}; did you mean '$pos_web'?"]


def test_a_mistake_in_a_set_is_not_told_again_where_the_set_is_used() -> None:
    assert told(BASE.replace("[10.1.0.0/24, 2001:db8:1::/64]", "[10.1.0.5/24]")) == [
        "t.yaml:10:13: sets.pos_web[0]: '10.1.0.5/24' has bits set behind its prefix, expected 10.1.0.0/24 or 10.1.0.5"
    ]


@pytest.mark.parametrize(("part", "n", "limit"), [("inputs", 65, 64), ("tools", 65, 64), ("maps", 257, 256)])
def test_there_are_not_more_than_the_slots(part: str, n: int, limit: int) -> None:
    one = {
        "inputs": "i{}: {{kind: pcap, file: f{}}}",
        "tools": "t{}: {{kind: pcap, file: g{}}}",
        "maps": "- {{name: m{}{}, rules: [pass: tcp], to: t0}}",
    }
    parts = {p: [row.format(k, k if p != "maps" else "") for k in range(n if p == part else 1)] for p, row in one.items()}
    text = "".join(f"{p}:\n" + "".join(f"  {row}\n" for row in rows) for p, rows in parts.items())
    line = text.split("\n").index(f"{part}:") + 2
    assert told(text) == [f"t.yaml:{line}:3: {part}: found {n} entries, expected at most {limit}"]
    assert parse_config(text.replace(f"  {parts[part][-1]}\n", ""))


def test_a_file_that_cannot_be_read_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("configuration")
    with pytest.raises(ConfigErrors, match=r"absent.yaml:1:1: cannot be read: No such file or directory$"):
        load_config(directory / "absent.yaml")
    with pytest.raises(ConfigErrors, match=r":1:1: cannot be read: Is a directory$"):
        load_config(directory)
    (directory / "latin.yaml").write_bytes("node: a\n# é\xff".encode("latin-1"))
    with pytest.raises(ConfigErrors, match=r"latin.yaml:2:3: byte 0xe9 is not UTF-8$"):
        load_config(directory / "latin.yaml")


def test_copies_that_no_ring_has_room_for_are_told() -> None:
    tools = ", ".join(f"t{k}: {{kind: pcap, file: f{k}, mask: payload}}" for k in range(20))
    text = f"inputs: {{i: {{kind: pcap, file: x}}}}\ntools: {{{tools}}}\nring: {{block_bytes: 67108864}}\ncollector: t0\n"
    (found,) = told(text)
    assert found.startswith("t.yaml:3:21: ring.block_bytes: tools and maps that change bytes of packets need 1342834240 bytes")


def test_two_inputs_do_not_listen_at_one_port() -> None:
    inputs = "{a: {kind: tunnel, listen: vxlan, from: 192.0.2.1}, b: {kind: tunnel, listen: geneve, port: 4789, from: 192.0.2.1}}"
    (found,) = told(f"inputs: {inputs}\ntools: {{t: {{kind: pcap, file: f}}}}\ncollector: t\n")
    assert "listener 'UDP port 4789' is used twice" in found
