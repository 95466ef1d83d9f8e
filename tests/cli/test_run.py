"""The broker as it runs: one of a name, kept alive, reloaded, drained, taken over."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from broker.core.shm import pipeline_directory
from tests.cli.tapmesh import Broker, Feed, nothing_left, numbered, running, tapmesh, unique_name, write_config
from tests.packets import pcap, read_pcap
from tests.waiting import until

N = 20_000


def frames_in(path: Path) -> list[bytes]:
    return [frame for _, frame in read_pcap(path.read_bytes())[1]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(numbered(N)))
    return path


def under_way(broker: Broker, blocks: int = 2) -> None:
    broker.wait_up()
    until(lambda: broker.cursor("send") >= blocks, f"{blocks} blocks to be sent")


def test_it_ends_by_itself_when_its_files_have_been_played(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap")
    with running(config, tmp_path) as broker:
        assert broker.process.wait(60) == 0, broker.stderr
        assert broker.ledger()["balanced"]
        assert nothing_left(broker.name)
    assert frames_in(tmp_path / "out.pcap") == numbered(N)


def test_sigterm_delivers_everything_captured_and_leaves_nothing(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=10_000)
    with running(config, tmp_path) as broker:
        under_way(broker)
        started = time.monotonic()
        assert broker.stop() == 0, broker.stderr
        assert time.monotonic() - started < 5
        closed = broker.ledger()
        assert (closed["balanced"], closed["in_flight"]) == (True, 0)
        captured = closed["ledger"]["inputs"]["span"]["captured_packets"]
        assert nothing_left(broker.name)
    assert 0 < captured < N
    assert frames_in(tmp_path / "out.pcap") == numbered(N)[:captured]


def test_workers_stay_on_the_cpus_they_are_given_and_run_anywhere_when_one_is_not_there(tmp_path: Path, source: Path):
    allowed = os.sched_getaffinity(0)
    cpus = f"cpus: {{filter: {min(allowed)}, send: 4000}}"
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=1000, stages=cpus)
    with running(config, tmp_path) as broker:
        pids = broker.wait_up().pids()
        assert os.sched_getaffinity(pids["filter", 0]) == {min(allowed)}
        assert os.sched_getaffinity(pids["send", 0]) == os.sched_getaffinity(pids["capture", 0]) == allowed
        assert [event["cpu"] for event in broker.events("cpu_refused")] == [4000]
        assert broker.stop() == 0


def test_a_second_broker_of_the_name_is_refused_with_the_pid_of_the_first(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=100)
    with running(config, tmp_path) as broker:
        broker.wait_up()
        before = broker.pids()
        done = tapmesh("run", "--config", config, "--name", broker.name)
        assert done.returncode == 1
        assert f"a broker named '{broker.name}' is running already (pid {broker.process.pid})" in done.stderr
        assert broker.pids() == before
        assert broker.stop() == 0


def test_a_wrong_file_is_refused_with_all_its_mistakes_and_status_78(tmp_path: Path):
    config = write_config(tmp_path / "c.yaml", tmp_path / "in.pcap", to=tmp_path / "out.pcap", expression="prt 53", more="nonsense: 1\n")
    name = unique_name()
    done = tapmesh("run", "--config", config, "--name", name)
    assert done.returncode == 78
    assert re.search(rf"{config}:8:\d+: maps\[0\].rules\[0\]", done.stderr)
    assert f"{config}:11:1: unknown key 'nonsense'" in done.stderr
    assert nothing_left(name)


def test_sighup_takes_a_good_file_and_refuses_a_bad_one_and_one_that_needs_a_restart(tmp_path: Path, source: Path):
    path = tmp_path / "c.yaml"
    write_config(path, source, to=tmp_path / "out.pcap", pace=2000)
    with running(path, tmp_path) as broker:
        under_way(broker, 1)
        pids = broker.pids()
        generation = broker.pipeline().header[0]

        write_config(path, source, to=tmp_path / "out.pcap", pace=2000, expression="udp port wrong")
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: broker.events("reload_refused"), "the bad file to be refused")
        (refused,) = broker.events("reload_refused")
        assert re.fullmatch(rf"{path}:8:\d+", refused["where"])
        assert generation["generation"] == 1

        write_config(path, source, to=tmp_path / "out.pcap", pace=2000, stages="filter: 2")
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: len(broker.events("reload_refused")) == 2, "the other rings to be refused")
        assert "needs a restart: stages: restart: filter 1 -> 2" in broker.events("reload_refused")[1]["reason"]
        assert generation["generation"] == 1

        write_config(path, source, to=tmp_path / "out.pcap", pace=2000, expression="udp port 1000")
        broker.process.send_signal(signal.SIGHUP)
        until(lambda: int(broker.row("send")["generation"]) == 2, "send to handle blocks by the new generation")
        directory = broker.pipeline().directory
        until(lambda: not (directory / "generation-1").exists(), "the old generation to be forgotten")
        assert (directory / "generation-2").exists()
        assert broker.pids() == pids
        assert broker.stop() == 0, broker.stderr


def test_under_reloads_each_packet_is_judged_by_exactly_one_generation(tmp_path: Path, source: Path):
    """Odd generations deliver to `a`, even ones to `b`: together they have every packet once, in order."""
    path = tmp_path / "c.yaml"

    def write(tool: str) -> None:
        path.write_text(
            f"""node: test
inputs: {{span: {{kind: pcap, file: {source}, pace: 10000}}}}
tools: {{a: {{kind: pcap, file: {tmp_path}/a.pcap}}, b: {{kind: pcap, file: {tmp_path}/b.pcap}}}}
maps: [{{name: one, rules: [pass: "udp"], to: [{tool}]}}]
stages: {{capture: 1, filter: 2, encapsulate: 2, send: 2}}
"""
        )

    write("a")
    with running(path, tmp_path) as broker:
        under_way(broker, 1)
        header = broker.pipeline().header[0]
        for number in range(2, 10):
            write("ab"[number % 2 == 0])
            broker.process.send_signal(signal.SIGHUP)
            until(lambda number=number: int(header["generation"]) == number, f"generation {number}")
            until(lambda number=number: int(broker.row("capture")["generation"]) == number, f"capture to stamp {number}")
        assert broker.process.wait(60) == 0, broker.stderr
        ledger = broker.ledger()["ledger"]
    a, b = frames_in(tmp_path / "a.pcap"), frames_in(tmp_path / "b.pcap")
    assert a == sorted(a, key=number_of)
    assert b == sorted(b, key=number_of)
    assert sorted(a + b, key=number_of) == numbered(N)
    assert len(b) > 0
    assert ledger["balanced"]


def number_of(frame: bytes) -> int:
    return int.from_bytes(frame[42:46], "big")


def test_after_kill_9_of_the_supervisor_the_traffic_goes_on_and_the_next_takes_over(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=2000)
    with running(config, tmp_path) as broker:
        under_way(broker, 1)
        pids, at = broker.pids(), broker.cursor("send")
        broker.process.kill()
        broker.process.wait()
        until(lambda: broker.cursor("send") > at + 2, "traffic to go on without a supervisor")
        write_config(config, source, to=tmp_path / "out.pcap", pace=2000, expression="udp port 1000")
        with running(config, tmp_path, broker.name) as second:
            until(lambda: second.events("reloaded"), "the file to be applied as a reload")
            assert second.events("pipeline_adopted")[0]["workers"] == 4
            assert second.events("host_adopted")
            assert second.wait_up().pids() == pids
            # What is adopted is looked after: its workers come back too.
            second.wait_again("filter", second.kill("filter"))
            assert second.stop() == 0, second.stderr
            assert second.ledger()["balanced"]
            assert nothing_left(broker.name)
    got = frames_in(tmp_path / "out.pcap")
    assert got == numbered(N)[: len(got)]


def test_the_next_drains_what_runs_when_its_file_asks_for_other_rings(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "old.pcap", pace=5000)
    with running(config, tmp_path) as broker:
        under_way(broker, 1)
        broker.process.kill()
        broker.process.wait()
        write_config(config, source, to=tmp_path / "new.pcap", stages="filter: 2")
        with running(config, tmp_path, broker.name) as second:
            assert second.process.wait(60) == 0, second.stderr
            assert second.events("topology_changed")
            first, last = (event["ledger"] for event in second.events("ledger_closed"))
        assert first["balanced"]
        assert first["tools"]["recorder"]["delivered_frames"] == len(frames_in(tmp_path / "old.pcap"))
        assert last["tools"]["recorder"]["delivered_frames"] == len(frames_in(tmp_path / "new.pcap")) == N
        assert nothing_left(broker.name)


def test_left_overs_without_a_process_are_removed(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap")
    name = unique_name()
    directory = pipeline_directory(name)
    directory.mkdir(mode=0o700)
    (directory / "lane-0").write_bytes(b"half made")
    with running(config, tmp_path, name) as broker:
        assert broker.process.wait(60) == 0, broker.stderr
        assert broker.events("left_overs_removed")
        assert nothing_left(name)


def test_after_kill_9_of_the_host_workers_go_on_and_a_new_host_serves(tmp_path: Path, source: Path):
    config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", pace=5000)
    with running(config, tmp_path) as broker:
        under_way(broker, 1)
        pids = broker.pids()
        (host,) = broker.events("host_started")
        os.kill(host["pid"], signal.SIGKILL)
        until(lambda: len(broker.events("host_started")) == 2, "another host")
        assert broker.pids() == pids
        for kind in ("send", "capture"):  # orphans of the first host
            broker.wait_again(kind, broker.kill(kind))
        assert broker.stop() == 0, broker.stderr
        assert broker.ledger()["balanced"]
        assert nothing_left(broker.name)
    got = frames_in(tmp_path / "out.pcap")
    assert got == numbered(N)[: len(got)]


def test_a_worker_that_stands_still_is_killed_and_replaced_but_not_when_everything_was_paused(tmp_path: Path):
    feed = Feed(tmp_path / "feed")
    feed.write(pcap(numbered(10)))
    config = write_config(tmp_path / "c.yaml", feed.path, to=tmp_path / "out.pcap")
    with running(config, tmp_path) as broker:
        under_way(broker, 1)
        everybody = [*broker.pids().values(), broker.process.pid]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: time.monotonic() - stopped > 2.5, "a pause longer than the patience")
        pids = broker.pids()
        for pid in reversed(everybody):  # the supervisor first: nobody has beaten yet when it looks
            os.kill(pid, signal.SIGCONT)
        until(lambda: broker.events("supervisor_paused"), "the supervisor to notice its pause")
        old = broker.kill("filter", number=signal.SIGSTOP)
        broker.wait_again("filter", old)
        assert "no heartbeat for" in broker.events("worker_killed")[0]["reason"]
        assert [e["worker"] for e in broker.events("worker_killed")] == ["filter[0.0]"]
        assert {k: v for k, v in broker.pids().items() if k[0] != "filter"} == {k: v for k, v in pids.items() if k[0] != "filter"}
        feed.end()
        assert broker.process.wait(60) == 0, broker.stderr
    assert len(frames_in(tmp_path / "out.pcap")) == 10


def test_a_send_that_is_killed_repeats_at_most_what_it_says_and_loses_nothing(tmp_path: Path, source: Path):
    """On a network there is no taking back: what was handed over before the kill may go out again, never more than one block."""
    config = tmp_path / "c.yaml"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        receiver.bind(("127.0.0.1", 0))
        port = receiver.getsockname()[1]
        got: Counter[int] = Counter()

        def receive() -> None:
            while datagram := receiver.recv(65536):  # an empty one ends it
                got[number_of(datagram[4:])] += 1  # GRE without options: 4 bytes

        config.write_text(
            f"""node: test
inputs: {{span: {{kind: pcap, file: {source}, pace: 10000}}}}
tools: {{ids: {{tunnel: {{kind: gre-udp, remote: 127.0.0.1, port: {port}}}}}}}
maps: [{{name: one, rules: [pass: "udp"], to: [ids]}}]
"""
        )
        thread = threading.Thread(target=receive)
        thread.start()
        try:
            with running(config, tmp_path) as broker:
                under_way(broker)
                broker.wait_again("send", broker.kill("send"))
                assert broker.process.wait(60) == 0, broker.stderr
                tool = broker.ledger()["ledger"]["tools"]["ids"]
        finally:
            receiver.sendto(b"", receiver.getsockname())
            thread.join()
    assert sorted(got) == list(range(N))
    assert tool["delivered_frames"] == N
    repeated = sum(got.values()) - N
    assert repeated <= tool["repeated_frames_at_most"] <= 2048


def test_a_worker_that_cannot_work_is_not_started_again_and_health_says_so(tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: tunnel, listen: vxlan, from: [192.0.2.9], address: 192.0.2.1}}}}
tools: {{recorder: {{kind: pcap, file: {tmp_path}/out.pcap}}}}
maps: [{{name: one, rules: [pass: "udp"], to: [recorder]}}]
http: 127.0.0.1:{port}
"""
    )
    with running(config, tmp_path) as broker:
        until(lambda: broker.events("worker_given_up"), "capture to be given up")
        status, text = get(port, "/healthz")
        assert status == 503
        assert "capture[0.0] is down for good: exit status 78" in text
        assert get(port, "/readyz")[0] == 503
        assert len(broker.events("worker_given_up")) == 1
        assert broker.stop() == 1
        told = broker.stderr.splitlines()[-2:]
        assert told[0].startswith("vxlan on 192.0.2.1 port 4789: ")
        assert told[1] == "capture[0.0]: exit status 78: it cannot work as it is configured"
        assert nothing_left(broker.name)


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_port_that_is_taken_is_told_before_anything_runs(tmp_path: Path, source: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write_config(tmp_path / "c.yaml", source, to=tmp_path / "out.pcap", more=f"http: 127.0.0.1:{port}\n")
        name = unique_name()
        done = tapmesh("run", "--config", config, "--name", name)
    assert done.returncode == 1
    assert f"http: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert nothing_left(name)


def test_the_embedded_example_runs_to_its_end(tmp_path: Path):
    done = tapmesh("run", "--demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "= received: balanced" in done.stdout
    assert "missing 0, not understood 0" in done.stdout
