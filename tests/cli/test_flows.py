"""``tapmesh flows``: each question from the command line, as a table, JSON, CSV and picture; and what is said when it cannot be asked."""

from __future__ import annotations

import csv
import json
import struct
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from broker.cli.flows_output import duration, rate
from broker.cli.flows_questions import QUESTIONS
from broker.cli.main import main
from tests.flows.answers.records import DAY, S, some, write, write_meters

CONFIG = """
inputs: {span0: {kind: pcap, file: f}, span1: {kind: pcap, file: g}}
sets: {web: [10.1.0.0/24], rest: [10.2.0.0/15]}
flows:
  store: {kind: parquet, directory: STORE}
  links:
    web: {capacity_bits_per_s: 100_000, match: "net $web"}
    both: {capacity_bits_per_s: 1_000_000_000, inputs: [span0, span1]}
  sites:
    rack: {}
    h1: {nets: ["$web"], within: rack}
    h2: {nets: [10.2.0.0/24], within: rack}
    h3: {nets: [10.3.0.0/24]}
"""
WHEN = ("--from", "2024-10-04", "--to", "2024-10-04T03:00")
ASKED = {
    "list": ("tcp", "and", "host", "10.1.0.1"),
    "top": ("--by", "conversation", "--of", "packets,bytes"),
    "conversations": ("net $web",),
    "services": ("--limit", "3"),
    "matrix": ("--by", "sets", "tcp or udp"),
    "locality": (),
    "utilisation": ("--step", "10m", "--capacity", "span0=10M"),
    "forecast": ("span0", "--ahead", "2d", "--from", "2024-10-04", "--to", "2024-10-08"),
    "new": ("--days", "1", "--from", "2024-10-04T02:00"),
    "access": ("$web", "--port", "443"),
    "gaps": (),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("flows")
    write(directory / "store", some(400, seed=3))
    rows = [
        {"kind": kind, "name": name, "at_ns": (DAY + 3600 * (h + 1)) * S, "for_ns": 3600 * S, "bytes": 10**9 + h % 24 * 10**7}
        for kind, name in (("input", "span0"), ("tool", "ids"))
        for h in range(96)
    ]
    write_meters(directory / "store", rows)
    path = directory / "C.yaml"
    path.write_text(CONFIG.replace("STORE", str(directory / "store")))
    return path


def asked(config: Path, question: str, *more: object) -> list[str]:
    arguments = ASKED[question]
    when = () if "--to" in arguments else WHEN if "--from" not in arguments else WHEN[2:]
    return ["flows", question, *arguments, *when, "--config", str(config), *map(str, more)]


def test_every_question_is_asked_here() -> None:
    assert set(ASKED) == {question.name for question in QUESTIONS}


@pytest.mark.parametrize("question", ASKED)
def test_a_question_has_a_table_json_csv_and_a_picture(
    question: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plots = next(q.plots for q in QUESTIONS if q.name == question)
    pictures = [tmp_path / "p.png"] if plots else []
    assert main(asked(config, question, "--json", "--csv", tmp_path / "a.csv", *(a for p in pictures for a in ("--plot", p)))) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"], question
    lines = [line for line in (tmp_path / "a.csv").read_text().splitlines() if not line.startswith("# ")]
    rows = list(csv.DictReader(lines))
    assert len(rows) == len(answer["rows"])
    numbers = [key for key, value in answer["rows"][0].items() if isinstance(value, int) and not key.endswith("_ns")]
    assert [[row[key] for key in numbers] for row in rows] == [
        ["" if row[key] is None else str(row[key]) for key in numbers] for row in answer["rows"]
    ]
    for picture in pictures:
        data = picture.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert 600 < width < 2500, question
        assert 300 < height < 4000, question


def test_a_table_has_a_line_for_each_row(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(config, "top", "--limit", 7)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "top conversation by packets, 2024-10-04T00:00:00Z to 2024-10-04T03:00:00Z"
    assert lines[2].split() == ["source", "destination", "packets", "bytes", "share"]
    assert len(lines) == 4 + 7


def test_a_picture_may_be_svg(config: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.svg"
    assert main(asked(config, "matrix", "--plot", path)) == 0
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_csv_goes_to_standard_output(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(config, "access", "--csv", "-")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("# title: who reached $web port 443, 2024-10-04T00:00:00Z")
    assert "client,server,service,flows,first,last,bytes,bytes_back,answered,name" in out


MISTAKES = (
    (("top", "--store", "/nowhere"), "/nowhere: there is no store here"),
    (("top",), "where are the records? Give --store DIRECTORY, or --config with a part 'flows.store'"),
    (("top", "--store", "/", "--of", "bytes,octets"), "--of: 'bytes,octets': expected one or more of bytes, packets, flows, each once"),
    (("top", "--store", "/", "tcp", "prot", "80"), "expression:1:5: unexpected 'prot', expected"),
    (("top", "--store", "/", "ip[8]=1"), "expression:1:1: records do not have the bytes of packets"),
    (("top", "--store", "/", "--last", "7 days"), "--last: '7 days' is not a length of time, expected a number and one of s, m, h, d, w"),
    (("top", "--store", "/", "--from", "noon"), "--from: 'noon' is not a time, expected now, today"),
    (("top", "--store", "/", "--from", "2026-01-02", "--to", "2026-01-01"), "it begins: 2026-01-02T00:00:00Z to 2026-01-01T00:00:00Z"),
    (("top", "--store", "/", "--last", "1h", "--from", "today"), "--last and --from both say where to begin"),
    (("top", "--store", "/", "--plot", "a.gif"), "--plot: 'a.gif': expected a name that ends in .png or .svg"),
    (("top", "--store", "/", "--csv", "/nowhere/a.csv"), "/nowhere/a.csv: No such file or directory"),
    (("matrix", "--store", "/", "--by", "subnet/40"), "--by: 'subnet/40': expected sets, sites or subnet/LENGTH"),
    (("matrix", "--store", "/"), "by sets: no set with addresses is known"),
    (("locality", "--store", "/"), "by sites: none are known"),
    (("utilisation", "--store", "/", "--capacity", "span0=fast"), "--capacity: 'span0=fast': expected NAME=RATE"),
    (("forecast", "--store", "/", "uplink"), "'uplink' is neither 'store' nor known in that time, which has: nothing"),
    (("access", "--store", "/", "10.0.0.1", "--port", "443 or udp"), "--port: '443 or udp': expected one address, net"),
    (("access", "--store", "/", "10.0.0.1", "--parquet", "/nowhere/a.parquet"), "/nowhere/a.parquet: "),
    (("forecast", "--store", "/", "uplink", "--ahead", "9999w"), "--ahead: at most 730 days"),
    (("access", "--store", "/", "example.com"), "expression:1:9: unknown name 'example.com'"),
)  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_a_mistake_is_told_in_words(words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flows", *words]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--threads", "-3"), ("--limit", "9" * 30), ("--days", "0")])
def test_a_number_out_of_its_range_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["flows", "new", "--store", "/", option, value])
    assert f"{option}: '{value}' is not a whole number from 1 to" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "question"), [("duckdb", "top"), ("matplotlib", "top"), ("statsmodels", "forecast")])
def test_what_is_not_installed_is_named(
    module: str, question: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(asked(config, question, "--plot", tmp_path / "p.png")) == 1
    assert "pip install 'tapmesh[flows]'" in capsys.readouterr().err


def test_figures_for_people() -> None:
    assert [rate(r) for r in (0, 999, 1500, 2.5e9)] == ["0 bit/s", "999 bit/s", "1.5 kbit/s", "2.5 Gbit/s"]
    assert [duration(s) for s in (0, 5e-6, 0.0015, 61, 3600 * 5, 86400 * 9)] == ["0 s", "5 us", "1.5 ms", "61 s", "5 h", "9 d"]
