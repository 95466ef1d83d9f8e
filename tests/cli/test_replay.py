"""Replay: the same processes with files at both ends; deterministic, and honest about what it could not read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from broker.config import load_config
from broker.core.layout import PATH
from tests.cli.tapmesh import nothing_left, numbered, replaying, tapmesh, write_config
from tests.packets import pcap, read_pcap, tcp_frame, udp_frame
from tests.stages.filter.judging import Frame
from tests.stages.filter.twin import Twin
from tests.waiting import until

MIXED = [udp_frame("10.0.0.1", 1, "10.0.0.2", 53), tcp_frame("10.0.0.1", 2, "10.0.0.2", 80), udp_frame("10.0.0.3", 3, "10.0.0.2", 53)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(numbered(20_000)))
    return path


def test_what_comes_in_goes_out_frame_by_frame_and_two_replays_are_equal(tmp_path: Path, source: Path):
    """Also with several workers of each stage: block order and sharing are fixed, whoever is faster."""
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {source}}}}}
tools:
  all: {{kind: pcap, file: unused.pcap}}
  gre: {{tunnel: {{kind: gre, remote: 192.0.2.9, key: 7, sequence: true, checksum: true}}}}
maps: [{{name: one, rules: [pass: "udp"], to: [all, gre]}}]
stages: {{capture: 1, filter: 2, encapsulate: 2, send: 2}}
"""
    )
    outs = []
    for n in (1, 2):
        out = tmp_path / f"out{n}"
        done = tapmesh("replay", source, "--config", config, "--out", out)
        assert (done.returncode, done.stderr) == (0, "")
        outs.append(out)
    assert read_pcap((outs[0] / "all.pcap").read_bytes()) == read_pcap(source.read_bytes())
    linktype, packets = read_pcap((outs[0] / "gre.pcap").read_bytes())
    assert (linktype, len(packets)) == (101, 20_000)
    for name in ("all.pcap", "gre.pcap", "ledger.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
    ledger, run = (json.loads((outs[0] / name).read_text()) for name in ("ledger.json", "run.json"))
    assert ledger["balanced"]
    assert ledger["tools"]["all"]["delivered_frames"] == 20_000
    assert run["packets"] == 20_000
    assert set(run["stages"]) == set(PATH)
    assert 0 < run["cpu_s"] < 60
    assert 0 < run["start_up_s"] < run["wall_s"]


@pytest.mark.parametrize("kind", PATH)
def test_a_stage_killed_in_mid_replay_comes_back_and_nothing_is_lost(tmp_path: Path, source: Path, kind: str):
    """From a file and into a file even the edges are exact: capture resumes at its position, send cuts its file back to it."""
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "x.pcap")
    out = tmp_path / "out"
    with replaying([source, "--config", config, "--out", out, "--pace", 15_000], tmp_path) as broker:
        until(lambda: broker.pipeline() and broker.cursor("send") >= 3, "the replay to be under way")
        broker.wait_again(kind, broker.kill(kind))
        assert broker.process.wait(60) == 0, broker.stderr
        name = broker.name
    ledger, run = (json.loads((out / file).read_text()) for file in ("ledger.json", "run.json"))
    assert run["restarts"] == 1
    assert ledger["balanced"]
    assert ledger["tools"]["recorder"]["wanted_frames"] == 20_000
    assert ledger["tools"]["recorder"]["repeated_frames_at_most"] <= 2048
    assert read_pcap((out / "recorder.pcap").read_bytes()) == read_pcap(source.read_bytes())
    assert nothing_left(name)


def test_rules_count_every_packet_once_whatever_becomes_of_the_filter_workers(tmp_path: Path):
    """Both are killed, again and again: their counts, and all else in the ledger, are those of a run without a kill, and of the twin."""
    frames = [tcp_frame("10.0.0.1", 4000 + i % 30, "10.0.0.2", (22, 80, 443, 8080)[i % 4], bytes(i % 99)) for i in range(15_000)]
    frames[::7] = [frame[:36] for frame in frames[::7]]  # no port to be seen
    (tmp_path / "in.pcap").write_bytes(pcap(frames))
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {tmp_path}/in.pcap}}}}
tools: {{a: {{kind: pcap, file: unused.pcap}}}}
maps:
  - {{name: one, rules: [drop: "tcp port 22", pass: "tcp port 80 or 443", pass: "src port 4001", drop: "udp"], to: [a]}}
  - {{name: two, rules: [pass: "len < 80", pass: "tcp dst port 8080", pass: "tcp dst port 8080"], to: [a], undetermined: drop}}
stages: {{capture: 1, filter: 2, encapsulate: 1, send: 1}}
"""
    )
    with replaying([tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "killed", "--pace", 6000], tmp_path) as broker:
        for n in range(5):
            until(lambda n=n: broker.pipeline() and broker.cursor("filter", n % 2) >= 3 * n + 1, "the replay to be under way")
            broker.wait_again("filter", broker.kill("filter", n % 2), n % 2)
        assert broker.process.wait(60) == 0, broker.stderr
    assert tapmesh("replay", tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "calm").returncode == 0
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["restarts"] == 5
    ledger = (tmp_path / "killed" / "ledger.json").read_text()
    assert ledger == (tmp_path / "calm" / "ledger.json").read_text()
    twin = Twin(load_config(config))
    for frame in frames:
        twin.judge(Frame(frame, len(frame)))
    for name, found in json.loads(ledger)["maps"].items():
        counted = [(rule["packets"], rule["bytes"], rule["undetermined_packets"]) for rule in found["rules"]]
        assert counted == twin.rule_counts(name)
        passed = [rule["packets"] for rule in found["rules"] if rule["action"] == "pass"]
        assert (sum(passed), sum(c[2] for c in counted)) == (found["passed_packets"], found["undetermined_packets"])
    assert min(c for counts in twin.rule_counts("one")[:3] for c in counts[:2]) > 0
    assert sum(c[2] for c in twin.rule_counts("one")) > 1000


def test_a_selection_is_what_tcpdump_would_write(tmp_path: Path):
    (tmp_path / "in.pcap").write_bytes(pcap(MIXED))
    done = tapmesh("replay", tmp_path / "in.pcap", "-w", tmp_path / "out.pcap", "udp", "port", "53")
    assert (done.returncode, done.stderr) == (0, "")
    assert [frame for _, frame in read_pcap((tmp_path / "out.pcap").read_bytes())[1]] == [MIXED[0], MIXED[2]]


def test_without_an_expression_everything_is_selected_in_the_order_of_the_files(tmp_path: Path):
    for n, frame in enumerate(MIXED):
        (tmp_path / f"{n}.pcap").write_bytes(pcap([frame]))
    order = (2, 0, 1)
    done = tapmesh("replay", *(tmp_path / f"{n}.pcap" for n in order), "-w", tmp_path / "out.pcap", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["tools"]["out"]["delivered_frames"] == 3
    assert [frame for _, frame in read_pcap((tmp_path / "out.pcap").read_bytes())[1]] == [MIXED[n] for n in order]


def test_files_are_played_as_the_inputs_they_are_given_for(tmp_path: Path):
    config = tmp_path / "c.yaml"
    config.write_text(
        """node: test
inputs:
  left: {kind: afpacket, interface: eth7}
  right: {kind: afpacket, interface: eth8}
tools: {a: {kind: pcap, file: a.pcap}, b: {kind: pcap, file: b.pcap}}
maps:
  - {name: l, inputs: [left], rules: [pass: "ip"], to: [a]}
  - {name: r, inputs: [right], rules: [pass: "ip"], to: [b]}
"""
    )
    for n, frame in enumerate(MIXED):
        (tmp_path / f"{n}.pcap").write_bytes(pcap([frame]))
    files = [tmp_path / "0.pcap", f"right={tmp_path / '1.pcap'}", f"left={tmp_path / '2.pcap'}"]
    done = tapmesh("replay", *files, "--config", config, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    got = {tool: [f for _, f in read_pcap((tmp_path / "out" / f"{tool}.pcap").read_bytes())[1]] for tool in "ab"}
    assert got == {"a": [MIXED[0], MIXED[2]], "b": [MIXED[1]]}


def test_standard_input_is_a_file_too(tmp_path: Path):
    with (tmp_path / "in.pcap").open("w+b") as file:
        file.write(pcap(MIXED))
        file.seek(0)
        done = tapmesh("replay", "-", "-w", tmp_path / "out.pcap", "tcp", stdin=file)
    assert (done.returncode, done.stderr) == (0, "")
    assert [frame for _, frame in read_pcap((tmp_path / "out.pcap").read_bytes())[1]] == [MIXED[1]]


def test_a_file_that_ends_in_the_middle_is_told_with_its_offset_and_what_came_before_is_delivered(tmp_path: Path):
    whole = pcap(MIXED)
    (tmp_path / "cut.pcap").write_bytes(whole[:-5])
    done = tapmesh("replay", tmp_path / "cut.pcap", "-w", tmp_path / "out.pcap")
    assert done.returncode == 1
    at = 24 + sum(16 + len(frame) for frame in MIXED[:2])
    assert done.stderr.splitlines()[-1].startswith(f"{tmp_path / 'cut.pcap'}: byte {at}: ")
    assert len(read_pcap((tmp_path / "out.pcap").read_bytes())[1]) == 2


def test_a_file_that_is_no_capture_is_refused_and_nothing_is_left_behind(tmp_path: Path):
    (tmp_path / "no.pcap").write_bytes(b"this is not a capture file at all")
    with replaying([tmp_path / "no.pcap", "-w", tmp_path / "out.pcap"], tmp_path) as broker:
        assert broker.process.wait(60) == 1
        assert f"{tmp_path / 'no.pcap'}: byte 0: is neither pcap nor pcapng" in broker.stderr
        assert nothing_left(broker.name)


def test_ctrl_c_ends_a_replay_early_with_its_books_closed_and_nothing_left(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "x.pcap")
    with replaying([source, "--config", config, "--out", tmp_path / "out", "--pace", 1000], tmp_path) as broker:
        until(lambda: broker.pipeline() and broker.cursor("send") >= 1, "the replay to be under way")
        assert broker.stop(signal.SIGINT) == 130
        assert "stopped by SIGINT before the end" in broker.stderr
        ledger = json.loads((tmp_path / "out" / "ledger.json").read_text())
        assert ledger["balanced"]
        delivered = ledger["tools"]["recorder"]["delivered_frames"]
        assert 0 < delivered < 20_000
        assert len(read_pcap((tmp_path / "out" / "recorder.pcap").read_bytes())[1]) == delivered
        assert nothing_left(broker.name)


def test_what_a_killed_replay_has_left_is_removed_by_the_next(tmp_path: Path, source: Path):
    with replaying([source, "-w", tmp_path / "a.pcap", "--pace", 100], tmp_path) as broker:
        until(lambda: broker.pipeline() and broker.up(), "the replay to be up")
        broker.process.kill()
        broker.process.wait()
        assert not nothing_left(broker.name)
        done = tapmesh("replay", source, "-w", tmp_path / "b.pcap")
        assert done.returncode == 0
        assert nothing_left(broker.name)


@pytest.mark.parametrize("stage", PATH)
def test_one_stage_alone_dumps_what_it_wrote(tmp_path: Path, stage: str):
    (tmp_path / "in.pcap").write_bytes(pcap(MIXED))
    config = write_config(tmp_path / "c.yaml", tmp_path / "in.pcap", to=tmp_path / "x.pcap", expression="tcp")
    dump = tmp_path / "dump"
    done = tapmesh("replay", tmp_path / "in.pcap", "--config", config, "--out", tmp_path, "--only", stage, "--dump", dump)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in dump.read_text().splitlines()]
    match stage:
        case "capture":
            assert [bytes.fromhex(line["data"]) for line in lines] == MIXED
        case "filter":
            assert [line["tools"] for line in lines] == [[], ["recorder"], []]
        case "encapsulate":
            assert [(line["packet"], line["tool"], line["data_len"]) for line in lines] == [(1, "recorder", len(MIXED[1]))]
        case _:
            assert lines[-1]["totals"]["recorder"]["delivered_frames"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["f"], "replay: --config CONFIG with --out DIR, or -w OUT ['EXPRESSION'] is needed"),
        (["f", "-w", "o", "--out", "d"], "replay: either -w OUT, or --config CONFIG with --out DIR"),
        (["f", "-w", "o", "udp", "prt", "53"], "expression:1:5: "),
        (["f", "--config", "missing.yaml", "--out", "d"], "missing.yaml:1:1: cannot be read: No such file or directory"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_words(tmp_path: Path, arguments: list[str], message: str):
    done = tapmesh("replay", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_whose_reader_has_gone_is_no_traceback(tmp_path: Path):
    (tmp_path / "in.pcap").write_bytes(pcap(MIXED))
    reading, writing = os.pipe()
    os.close(reading)
    config = write_config(tmp_path / "c.yaml", tmp_path / "in.pcap", to=tmp_path / "x.pcap")
    done = tapmesh_to(writing, "check", config)
    os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def tapmesh_to(stdout: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    from tests.cli.tapmesh import COMMAND

    return subprocess.run([*COMMAND, *map(str, arguments)], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("how", ["the same name", "a symbolic link", "a hard link"])
def test_a_capture_is_never_its_own_output(tmp_path: Path, source: Path, how: str):
    out, before = source, source.read_bytes()
    if how != "the same name":
        out = tmp_path / "other.pcap"
        out.symlink_to(source) if "symbolic" in how else out.hardlink_to(source)
    result = tapmesh("replay", source, "-w", out)
    assert result.returncode != 0
    assert f"{out} would be overwritten, but input" in result.stderr
    assert source.read_bytes() == before


def test_an_output_that_cannot_be_written_is_no_success(tmp_path: Path, source: Path):
    out = tmp_path / "missing" / "out.pcap"
    result = tapmesh("replay", source, "-w", out)
    assert result.returncode == 1
    assert "tool 'out': 20,000 of 20,000 frames could not be written" in result.stderr
    assert str(out) in result.stderr


@pytest.mark.parametrize("pace", ["abc", "0", "-1", "0x"])
def test_a_pace_that_is_none_is_refused_before_anything_runs(tmp_path: Path, source: Path, pace: str):
    result = tapmesh("replay", source, "-w", tmp_path / "out.pcap", f"--pace={pace}")
    assert result.returncode == 2
    assert "expected max, recorded, a factor such as 2x" in result.stderr
    assert not (tmp_path / "out.pcap").exists()


def test_a_ledger_for_which_the_disk_has_no_room_is_told_in_words(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "unused.pcap")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.json").symlink_to("/dev/full")
    done = tapmesh("replay", source, "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(f"{tmp_path}/out/ledger.json: No space left on device")
