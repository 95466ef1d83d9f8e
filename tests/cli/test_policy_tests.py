"""A policy that fails a test of its own is not put in force: not by check, not at the start, not by a reload."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.cli.tapmesh import nothing_left, numbered, running, tapmesh, unique_name, write_config
from tests.packets import pcap
from tests.waiting import until

TESTS = """tests:
  - {packet: {udp.dst: 53}, delivers: recorder, by: one}
  - {name: nothing else, packet: {tcp.dst: 80}, delivers: []}
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(numbered(20_000)))
    return path


def test_check_runs_the_tests_and_says_which_fail_and_why(tmp_path: Path, source: Path) -> None:
    good = write_config(tmp_path / "good.yaml", source, to=tmp_path / "out.pcap", more=TESTS)
    done = tapmesh("check", good, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    bad = write_config(tmp_path / "bad.yaml", source, to=tmp_path / "out.pcap", expression="tcp", more=TESTS)
    done = tapmesh("check", bad)
    assert (done.returncode, done.stdout) == (1, "")
    first, second = done.stderr.splitlines()
    assert re.match(rf"{bad}:12:\d+: tests\[0\]: delivers \[\], expected \[recorder\]; passed by \[\], expected \[one\]", first)
    assert re.match(
        rf"{bad}:13:\d+: tests\[1\]: 'nothing else': delivers \[recorder\], expected \[\]; map 'one' passed it by rule 1", second
    )


def test_a_broker_does_not_start_with_a_policy_that_fails_its_tests(tmp_path: Path, source: Path) -> None:
    bad = write_config(tmp_path / "bad.yaml", source, to=tmp_path / "out.pcap", expression="tcp", more=TESTS)
    name = unique_name()
    done = tapmesh("run", "--config", bad, "--name", name)
    assert done.returncode == 78
    assert "tests[0]: delivers [], expected [recorder]" in done.stderr
    assert nothing_left(name)


def test_a_reload_of_a_policy_that_fails_its_tests_changes_nothing(tmp_path: Path, source: Path) -> None:
    path = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=1000, more=TESTS)
    with running(path, tmp_path) as broker:
        broker.wait_up()
        generation = broker.pipeline().header[0]
        write_config(path, source, to=tmp_path / "out.pcap", pace=1000, expression="tcp", more=TESTS)
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: len(broker.events("reload_refused")) == 2, "both failures to be logged")
        refused = broker.events("reload_refused")
        assert [one["part"] for one in refused] == ["tests[0]", "tests[1]"]
        assert all(re.fullmatch(rf"{path}:1[23]:\d+", one["where"]) for one in refused)
        assert "passed by [], expected [one]" in refused[0]["reason"]
        assert generation["generation"] == 1
        write_config(path, source, to=tmp_path / "out.pcap", pace=1000, expression="udp or arp", more=TESTS)
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: int(generation["generation"]) == 2, "a policy that passes to be put in force")
        assert broker.stop() == 0, broker.stderr
