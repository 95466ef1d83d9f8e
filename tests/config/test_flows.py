"""What `flows` of a configuration says, and what is told of mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.config import hygiene, load_config, parse_config
from broker.config.diff import diff
from broker.config.flow_files import read_key, read_password
from broker.core.errors import ConfigErrors
from broker.core.flow_model import Export, Flows, Link, Site, Store
from broker.core.model import Place, Sample, Tls
from tests.config.mistakes_of_flows import FLOWS, OF_FLOWS


def told(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse_config(text, "t.yaml")
    return str(caught.value).split("\n")


def warned(text: str, path: str = "t.yaml") -> list[str]:
    return [hygiene.text_of(warning) for warning in hygiene.warnings(parse_config(text, path))]


def flows(part: str) -> Flows:
    found = parse_config(f"inputs: {{a: {{kind: pcap, file: f}}}}\nflows: {part}\n", directory="/d").flows
    assert found is not None
    return found


@pytest.mark.parametrize(("old", "new", "lines"), [(old, new, lines) for old, new, *lines in OF_FLOWS])
def test_a_mistake_is_told_in_these_words_and_no_others(old: str, new: str, lines: list[str]) -> None:
    assert old in FLOWS
    text = FLOWS.replace(old, new, 1)
    if "\nflowz:\n" in text:  # of this one all below is no more a part of `flows`
        text = text[: text.index("flowz:\n")] + "flowz: {}\n"
    assert told(text) == [f"t.yaml:{line}" for line in lines]


def test_a_link_is_of_what_records_say() -> None:
    parse_config(FLOWS.replace("net $vms", "'src bytes > 10M and name \"*.example.com\"'", 1), "t.yaml")
    (error,) = told(FLOWS.replace("net $vms", '"ip[8] = 3"', 1))
    assert "flows.links.pos.match: records do not have the bytes of packets" in error


def test_every_key_becomes_its_field() -> None:
    config = parse_config(FLOWS, "t.yaml", directory="")
    assert config.tools == ()
    assert config.flows == Flows(
        exports=(
            Export("collector", "ipfix", address="192.0.2.9", port=4739),
            Export("old", "netflow5", address="2001:db8::1", port=2055),
            Export("lines", "json", "file", file="flows.json"),
        ),
        store=Store("clickhouse", "spool", url="http://db:8123", user="u", password_file="p"),
        links=(Link("uplink", 10**10, ("span0",)), Link("pos", 10**6, match="net $vms")),
        sites=(Site("esx07", ("$vms", "10.2.0.0/24"), "rack1"), Site("rack1")),
    )
    assert config.flows.exports[1].place == Place("t.yaml", 10, 5)
    assert config.flows.store is not None
    assert config.flows.store.place == Place("t.yaml", 12, 3)
    assert [link.place for link in config.flows.links] == [Place("t.yaml", 14, 5), Place("t.yaml", 15, 5)]
    assert [site.place for site in config.flows.sites] == [Place("t.yaml", 17, 5), Place("t.yaml", 18, 5)]


def test_files_are_taken_from_the_directory_of_the_configuration() -> None:
    found = flows(
        "{exports: {a: {kind: json, file: l}, b: {kind: json, file: '-'}, c: {kind: ipfix, to: 'tls://[::1]:1', tls: {ca: c}}},"
        " store: {kind: parquet, directory: s}}"
    )
    assert [e.file for e in found.exports] == ["/d/l", "-", ""]
    assert found.exports[2].tls == Tls(ca="/d/c")
    assert found.store == Store(directory="/d/s")


def test_lines_for_standard_output_send_tables_elsewhere() -> None:
    text = "inputs: {{a: {{kind: pcap, file: f}}}}\nflows: {{exports: {{l: {{kind: json, file: {}}}}}}}\n"
    assert parse_config(text.format("'-'")).uses_stdout
    assert not parse_config(text.format("l")).uses_stdout


def test_whoever_says_tls_gets_it() -> None:
    found = flows("{exports: {a: {kind: ipfix, to: 'tls://192.0.2.1:1'}}, store: {kind: clickhouse, url: 'https://h', directory: s}}")
    assert found.exports[0].tls == Tls()
    assert found.store is not None
    assert (found.store.url, found.store.tls) == ("https://h:8443", Tls())


def test_records_may_be_sampled_and_do_without() -> None:
    found = flows("{sample: {one_in: 10}, drop: [names, ttl], overload: wait, layer: inner, exports: {a: {kind: json, file: l}}}")
    assert (found.sample, found.drop, found.overload, found.layer) == (Sample(10), ("names", "ttl"), "wait", "inner")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("flows: {}\n", ["t.yaml:2:8: flows: nothing would become of the records, expected exports or a store"]),
        ("flows: {exports: {}}\n", ["t.yaml:2:8: flows: nothing would become of the records, expected exports or a store"]),
        ("flows:\n", ["t.yaml:2:7: flows: nothing would become of the records, expected exports or a store"]),
        ("flows: []\n", ["t.yaml:2:8: flows: found a list, expected a mapping"]),
        ("tools: {}\n", [
            "t.yaml:1:1: maps: nothing would be delivered, expected maps or a collector",
            "t.yaml:2:8: tools: found an empty mapping, expected at least 1 entry",
        ]),
        ("tools: {t: {kind: pcap, file: g}}\nflows: {exports: {a: {kind: json, file: l}}}\n",
         ["t.yaml:1:1: maps: nothing would be delivered, expected maps or a collector"]),
        ("flows: {exports: {a: {kind: json, file: f}}}\n",
         ["t.yaml:2:41: flows.exports.a.file: file 'f' would be written while inputs.a.file is read from it"]),
        ("tools: {t: {kind: pcap, file: g}}\ncollector: t\nflows: {exports: {a: {kind: json, file: ./g}}}\n",
         ["t.yaml:4:41: flows.exports.a.file: file 'g' is used twice, the first time in tools.t.file"]),
    ],
)  # fmt: skip
def test_packets_become_something(text: str, lines: list[str]) -> None:
    assert told(f"inputs: {{a: {{kind: pcap, file: f}}}}\n{text}") == lines


def test_there_are_not_more_exports_than_rows() -> None:
    def exports(n: int) -> str:
        return f"{{exports: {{{', '.join(f'e{k}: {{kind: json, file: l{k}}}' for k in range(n))}}}}}"

    assert len(flows(exports(30)).exports) == 30
    with pytest.raises(ConfigErrors, match="found 31 entries, expected at most 30"):
        flows(exports(31))


@pytest.mark.parametrize(
    ("old", "new", "action", "reason"),
    [
        ("idle_s: 15", "idle_s: 20", "reload", "idle_s 15.0 -> 20.0"),
        ("idle_s: 15", "max_flows: 2000", "restart", "max_flows 65536 -> 2000"),
        ("idle_s: 15", "layer: inner", "restart", "layer outer -> inner"),
        ("idle_s: 15", "sample: {one_in: 2}", "reload", "sample none -> Sample"),
        ("idle_s: 15", "drop: ttl", "reload", "drop [] -> [ttl]"),
        ("192.0.2.9:4739", "192.0.2.9:4740", "reload", "exports.collector: port 4739 -> 4740"),
        ("    lines: {kind: json, file: flows.json}\n", "", "reload", "exports.lines removed"),
        ("directory: spool", "directory: spool, flush_s: 5", "reload", "store.flush_s 10 -> 5"),
        ("10_000_000_000", "1_000_000_000", "reload", "links.uplink: capacity_bits_per_s 10000000000 -> 1000000000"),
        (", 10.2.0.0/24", "", "reload", "sites.esx07: nets [$vms, 10.2.0.0/24] -> [$vms]"),
    ],
)
def test_a_change_is_told_with_what_it_needs(old: str, new: str, action: str, reason: str) -> None:
    assert old in FLOWS
    changes = diff(parse_config(FLOWS), parse_config(FLOWS.replace(old, new, 1)))
    assert str(changes) == f"flows: {action}: {reason}"
    assert changes.action == action


def test_what_is_switched_on_or_off_needs_a_restart() -> None:
    part = "flows: {exports: {l: {kind: json, file: l}}}\n"
    without = "inputs: {a: {kind: pcap, file: f}}\ntools: {t: {kind: pcap, file: g}}\ncollector: t\n"
    assert str(diff(parse_config(without), parse_config(without + part))) == "flows: restart: added"
    assert str(diff(parse_config(without + part), parse_config(without))) == "flows: restart: removed"


def test_sets_that_flows_use_are_used() -> None:
    assert warned(FLOWS) == ["t.yaml:5:3: sets.ports: warning: no rule uses set 'ports'"]


def test_nets_that_lie_in_those_of_another_site_are_told() -> None:
    text = FLOWS.replace("ports: [80, 443]", "").replace(
        "rack1: {}", "rack1: {nets: 10.0.0.0/8}\n    esx08: {nets: 10.2.0.0/25}\n    lost: {}"
    )
    assert warned(text) == [
        "t.yaml:19:5: flows.sites.esx08: warning: 10.2.0.0/25 lies in 10.0.0.0/8 of site 'rack1': addresses in both count as of 'esx08'",
        "t.yaml:19:5: flows.sites.esx08: warning: 10.2.0.0/25 lies in 10.2.0.0/24 of site 'esx07': addresses in both count as of 'esx08'",
        "t.yaml:20:5: flows.sites.lost: warning: site 'lost' has no nets and holds no other: nothing is ever there",
    ]


def test_an_input_is_looked_at_by_flows() -> None:
    text = "inputs: {a: {kind: pcap, file: f}, b: {kind: pcap, file: g}}\ntools: {t: {kind: pcap, file: h}}\n"
    text += "maps: [{name: m, inputs: a, rules: [pass: tcp], to: t}]\n"
    part = "flows: {exports: {l: {kind: json, file: l}}}\n"
    assert warned(text + part) == []
    assert len(warned(text)) == len(warned(text + part.replace("{exp", "{of: forwarded, exp"))) == 1


SECRET = """\
inputs: {a: {kind: pcap, file: f}}
flows:
  anonymise: {key_file: key}
  store: {kind: clickhouse, url: "http://h", user: u, password_file: password, directory: s}
"""


def test_secrets_are_read_when_the_configuration_is(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SECRET)
    with pytest.raises(ConfigErrors) as caught:
        load_config(tmp_path / "c.yaml")
    assert str(caught.value).replace(str(tmp_path), "D").split("\n") == [
        "D/c.yaml:3:25: flows.anonymise.key_file: there is no file of that name, expected the name of a file that holds it",
        "D/c.yaml:4:70: flows.store.password_file: there is no file of that name, expected the name of a file that holds it",
    ]
    (tmp_path / "key").write_bytes(b"k" * 31)
    (tmp_path / "password").write_bytes(b"\nx")
    with pytest.raises(ConfigErrors) as caught:
        load_config(tmp_path / "c.yaml")
    assert str(caught.value).replace(str(tmp_path), "D").split("\n") == [
        "D/c.yaml:3:25: flows.anonymise.key_file: 'D/key' holds 31 bytes, expected 32, or 64 hexadecimal digits (openssl rand -hex 32)",
        "D/c.yaml:4:70: flows.store.password_file: 'D/password' has an empty first line, expected a password in it",
    ]


def test_secrets_that_others_can_read_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(SECRET)
    for name, mode in (("key", 0o644), ("password", 0o640)):
        (tmp_path / name).write_text("0f" * 32 + "\n")
        (tmp_path / name).chmod(mode)
    found = [hygiene.text_of(w).replace(str(tmp_path), "D") for w in hygiene.warnings(load_config(tmp_path / "c.yaml"))]
    assert found == [
        "flows.anonymise.key_file: warning: others than its owner can read 'D/key', expected mode 0600",
        "D/c.yaml:4:3: flows.store.password_file: warning: others than its owner can read 'D/password', expected mode 0600",
    ]
    for name in ("key", "password"):
        (tmp_path / name).chmod(0o600)
    assert hygiene.warnings(load_config(tmp_path / "c.yaml")) == []


def test_a_key_is_32_bytes_or_their_hexadecimal_digits(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(bytes(range(32)))
    assert read_key(str(file)) == bytes(range(32))
    file.write_text(bytes(range(32)).hex().upper() + "\n")
    assert read_key(str(file)) == bytes(range(32))
    for wrong in (b"", b"x" * 33, b"g" * 64):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=f"holds {len(wrong)} bytes, expected 32"):
            read_key(str(file))


def test_a_password_is_the_first_line(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes("é a\r\nb".encode())
    assert read_password(str(file)) == "é a"
    file.write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="no UTF-8"):
        read_password(str(file))
