"""What people and programs are shown of a running pipeline: status, top, /metrics, and a ledger that was broken on purpose."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.core.metrics import index
from tests.cli.tapmesh import Broker, Feed, numbered, replaying, running, tapmesh, write_config
from tests.packets import pcap
from tests.waiting import until

N = 500


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path / "feed")
    yield made
    made.end()


def delivered(broker: Broker) -> int:
    lane = broker.pipeline().lanes[0]
    row = lane.geometry.row("send", 0)
    return int(lane.committed[row, int(lane.workers[row]["cursor"]) & 1, index("send", "delivered_frames")])


def break_ledger(broker: Broker, by: int = 3) -> None:
    """Change what send has committed. It is idle: it will not write it again."""
    lane = broker.pipeline().lanes[0]
    lane.committed[lane.geometry.row("send", 0), :, index("send", "delivered_frames")] += by


def test_status_top_and_metrics_say_what_is_and_that_the_ledger_was_broken(tmp_path: Path, feed: Feed):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = write_config(tmp_path / "c.yaml", feed.path, to=tmp_path / "out.pcap", more=f"http: 127.0.0.1:{port}\n")

    def page(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def gauge(name: str) -> float:
        return next(s.value for f in text_string_to_metric_families(page("/metrics")) for s in f.samples if s.name == name)

    feed.write(pcap(numbered(N)))
    with running(config, tmp_path) as broker:
        broker.wait_up()
        until(lambda: delivered(broker) == N, "everything to be delivered")
        until(lambda: broker.events("pipeline_up"), "the supervisor to have seen all of them")
        assert page("/healthz") == page("/readyz") == "ok\n"
        assert gauge("tapmesh_ledger_balanced") == 1
        assert gauge("tapmesh_send_delivered_frames_total") == N

        status = tapmesh("status", "--name", broker.name)
        assert status.returncode == 0, status.stdout
        for expected in ("capture[0.0]", "running", f"{N} packets", "recorder", "= received: balanced"):
            assert expected in status.stdout
        found = json.loads(tapmesh("status", "--name", broker.name, "--json").stdout)
        assert found["healthy"]
        assert found["ledger"]["tools"]["recorder"]["delivered_frames"] == N
        assert [w["pid"] for w in found["workers"]] == list(broker.pids().values())
        (rule,) = found["ledger"]["maps"]["one"]["rules"]
        assert rule == {"action": "pass", "expression": "udp", "packets": N, "bytes": rule["bytes"], "undetermined_packets": 0}
        assert gauge("tapmesh_rule_packets_total") == N
        assert gauge("tapmesh_rule_bytes_total") == rule["bytes"] == sum(map(len, numbered(N)))
        rules = tapmesh("status", "--name", broker.name, "--rules")
        assert rules.returncode == 0
        assert rules.stdout.splitlines()[-1].split() == ["one", "1", f"{N}", "73.0", "kB", "100", "%", "0", "pass", "udp"]

        top = tapmesh("top", "--name", broker.name, "--once", "--interval", 0.2)
        assert top.returncode == 0
        assert "balanced" in top.stdout.splitlines()[0]
        assert "frames/s" in top.stdout
        assert_top_in_a_terminal(broker.name)

        break_ledger(broker)
        words = "tool recorder: 3 frames too many between wanted and delivered or dropped"
        status = tapmesh("status", "--name", broker.name)
        assert status.returncode == 1
        assert words in status.stdout
        assert "NOT BALANCED" in status.stdout
        assert "NOT BALANCED" in tapmesh("top", "--name", broker.name, "--once", "--interval", 0.1).stdout
        assert gauge("tapmesh_ledger_balanced") == 0
        assert gauge("tapmesh_ledger_tool_off_by") == -3
        feed.end()
        assert broker.process.wait(60) == 1
        assert broker.ledger()["faults"] == [words]


def assert_top_in_a_terminal(name: str) -> None:
    """Live until `q`; then the terminal is as it was."""
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    before = termios.tcgetattr(terminal)
    command = [sys.executable, "-I", "-m", "broker.cli.main", "top", "--name", name, "--interval", "0.1"]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    shown = b""
    while shown.count(b"tapmesh top - ") < 3:  # three frames
        shown += os.read(main, 65536)
    assert shown.startswith(b"\x1b[?1049h")
    os.write(main, b"q")
    while not shown.endswith(b"\x1b[?1049l"):
        shown += os.read(main, 65536)
    assert process.wait(30) == 0
    assert termios.tcgetattr(terminal) == before
    os.close(main)
    os.close(terminal)


def test_a_rule_goes_on_counting_over_reloads_and_supervisors(tmp_path: Path, feed: Feed):
    config, all_of_it = tmp_path / "c.yaml", pcap(numbered(3 * N, port=2000))
    each = (len(all_of_it) - 24) // 3

    def write(*rules: str) -> None:
        config.write_text(
            f"""node: test
inputs: {{span: {{kind: pcap, file: {feed.path}}}}}
tools: {{recorder: {{kind: pcap, file: {tmp_path}/out.pcap}}}}
maps: [{{name: one, rules: [{", ".join(f'pass: "{rule}"' for rule in rules)}], to: [recorder]}}]
stages: {{filter: 2}}
"""
        )

    def counted(name: str) -> dict[str, int]:
        found = json.loads(tapmesh("status", "--name", name, "--json").stdout)["ledger"]["maps"]["one"]
        assert found["passed_packets"] == sum(rule["packets"] for rule in found["rules"])
        return {rule["expression"]: rule["packets"] for rule in found["rules"]}

    write("tcp", "udp")
    feed.write(all_of_it[: 24 + each])
    with running(config, tmp_path) as broker:
        broker.wait_up()
        until(lambda: delivered(broker) == N, "the first part to be delivered")
        write("udp port 1", "udp")
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: broker.events("reloaded"), "the reload")
        assert counted(broker.name) == {"udp port 1": 0, "udp": N}
        feed.write(all_of_it[24 + each : 24 + 2 * each])
        until(lambda: delivered(broker) == 2 * N, "the second part to be delivered")
        assert counted(broker.name) == {"udp port 1": 0, "udp": 2 * N}
        broker.process.kill()
        broker.process.wait()
        write("udp", "tcp")
        with running(config, tmp_path, broker.name) as second:
            until(lambda: second.events("reloaded"), "the file to be applied by the next supervisor")
            feed.write(all_of_it[24 + 2 * each :])
            until(lambda: delivered(second) == 3 * N, "the last part to be delivered")
            until(lambda: not (second.pipeline().directory / "generation-1").exists(), "the first generation to be forgotten")
            assert (second.pipeline().directory / "rules-carried").exists()
            assert counted(second.name) == {"udp": 3 * N, "tcp": 0}
            assert second.stop() == 0, second.stderr


def test_a_replay_whose_ledger_was_broken_ends_with_status_1(tmp_path: Path, feed: Feed):
    config = write_config(tmp_path / "c.yaml", feed.path, to=tmp_path / "x.pcap")
    feed.write(pcap(numbered(N)))
    with replaying([feed.path, "--config", config, "--out", tmp_path / "out"], tmp_path) as broker:
        broker.wait_up()
        until(lambda: delivered(broker) == N, "everything to be delivered")
        break_ledger(broker, -1)
        feed.end()
        assert broker.process.wait(60) == 1
        assert "tool recorder: 1 frames missing between wanted and delivered or dropped" in broker.stderr
    assert not json.loads((tmp_path / "out" / "ledger.json").read_text())["balanced"]


@pytest.mark.parametrize("command", ["status", "top"])
def test_a_pipeline_that_does_not_run_is_told(command: str):
    done = tapmesh(command, "--name", "nobody")
    assert done.returncode == 1
    assert "no pipeline 'nobody' is running" in done.stderr


def test_check_prints_what_the_file_means_or_all_its_mistakes(tmp_path: Path):
    config = write_config(tmp_path / "c.yaml", tmp_path / "in.pcap", to=tmp_path / "out.pcap")
    done = tapmesh("check", config)
    assert (done.returncode, done.stderr) == (0, f"{config}: ok\n")
    again = tmp_path / "again.yaml"
    again.write_text(done.stdout)
    assert tapmesh("check", again).stdout == done.stdout  # what it prints means itself
    write_config(config, tmp_path / "in.pcap", to=tmp_path / "out.pcap", expression="port -1", more="http: here\n")
    done = tapmesh("check", config)
    assert done.returncode == 1
    assert [line.split(":")[1] for line in done.stderr.splitlines()] == ["8", "11"]


def test_check_warns_of_what_is_hardly_meant_and_refuses_it_when_it_is_to_be_strict(tmp_path: Path):
    config = write_config(tmp_path / "c.yaml", tmp_path / "in.pcap", to=tmp_path / "out.pcap", more="sets: {old: [10.0.0.1]}\n")
    line = len(config.read_text().splitlines())
    warning = f"{config}:{line}:8: sets.old: warning: no rule uses set 'old'\n"
    done = tapmesh("check", config)
    assert (done.returncode, done.stderr) == (0, f"{warning}{config}: ok\n")
    done = tapmesh("check", "--quiet", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", warning)
    done = tapmesh("check", "--strict", config)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", warning)
