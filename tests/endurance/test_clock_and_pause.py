"""A machine with one CPU, whose clock jumps by years and back, and which is stopped as a whole for a while: nothing dies of it, nothing is
lost uncounted, and all is well a second later."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.supervisor.processes import find
from tests.cli.tapmesh import Broker, numbered, running
from tests.endurance.sizes import size
from tests.flows.store.clickhouse_server import free_port
from tests.packets import gre
from tests.waiting import until

SOON_S = 1.0
YEAR_NS = 365 * 86_400 * 10**9
MODULES = ("stages", "broker.flows", "broker.privileges.opener")

SHIFTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static const long long *by;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    int fd = open(getenv("SHIFTED_BY"), O_RDONLY);
    real = dlsym(RTLD_NEXT, "clock_gettime");
    by = mmap(0, sizeof *by, PROT_READ, MAP_SHARED, fd, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        now->tv_sec += *by / 1000000000;
    return result;
}

time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now)
        *now = found.tv_sec;
    return found.tv_sec;
}

int gettimeofday(struct timeval *now, void *zone)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
"""
CONFIG = """
http: 127.0.0.1:{http}
inputs:
  remote: {{kind: tunnel, listen: gre-udp, address: 127.0.0.1, port: {port}, from: 127.0.0.1}}
tools:
  recorder: {{kind: pcap, directory: {directory}/rec, rotate_s: 1}}
maps:
  - {{name: all, rules: [pass: udp], to: recorder}}
flows:
  idle_s: 1
  exports: {{lines: {{kind: json, file: {directory}/flows.json}}}}
  store: {{kind: parquet, directory: {directory}/store, flush_s: 1}}
"""


@dataclass
class Machine:
    broker: Broker
    ports: dict[str, int]
    shift: mmap.mmap
    sent: int = 0

    def set_clock(self, by_ns: int) -> None:
        self.shift[:8] = struct.pack("<q", by_ns)

    def send(self, n: int = 20) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for frame in numbered(n):
                sender.sendto(gre(frame), ("127.0.0.1", self.ports["port"]))
        self.sent += n

    def healthy(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def is_through(self) -> bool:
        at = self.broker.cursor("capture")
        return all(self.broker.cursor(kind) == at for kind in ("filter", "encapsulate", "send", "flows"))

    def pids(self) -> list[int]:
        return [self.broker.process.pid, *(pid for module in MODULES for pid in find(self.broker.name, module))]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """All processes on one CPU, and with a clock that the test sets."""
    if shutil.which("gcc") is None:
        if os.environ.get("CI"):
            pytest.fail("gcc is not installed")
        pytest.skip("gcc is not installed: the clock cannot be set for the processes alone")
    pytest.importorskip("duckdb")
    library = tmp_path / "shifted.so"
    (tmp_path / "shifted.c").write_text(SHIFTED)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, tmp_path / "shifted.c", "-ldl"], check=True)
    by = tmp_path / "by"
    by.write_bytes(bytes(mmap.PAGESIZE))
    ports = {"http": free_port(), "port": free_port()}
    (tmp_path / "rec").mkdir()
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.format(directory=tmp_path, **ports))
    allowed = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack, by.open("r+b") as file:
        shift = stack.enter_context(mmap.mmap(file.fileno(), 0))
        stack.callback(os.sched_setaffinity, 0, allowed)
        os.sched_setaffinity(0, {min(allowed)})
        with monkeypatch.context() as set_for_it:
            set_for_it.setenv("LD_PRELOAD", str(library))
            set_for_it.setenv("SHIFTED_BY", str(by))
            broker = stack.enter_context(running(config, tmp_path))
        os.sched_setaffinity(0, allowed)
        yield Machine(broker.wait_up(), ports, shift)


def test_a_machine_with_one_cpu_a_clock_that_jumps_and_a_pause(machine: Machine, tmp_path: Path) -> None:
    broker = machine.broker
    assert {tuple(os.sched_getaffinity(pid)) for pid in machine.pids()} == {(min(os.sched_getaffinity(0)),)}
    until(machine.healthy, "to be healthy", 10)
    workers = broker.pids()

    for by_ns in (0, 30 * YEAR_NS, -40 * YEAR_NS, 0):
        machine.set_clock(by_ns)
        for _ in range(3):
            before = broker.cursor("capture")
            machine.send()
            until(lambda before=before: broker.cursor("capture") > before and machine.is_through(), "a block", SOON_S)  # type: ignore[misc]
        until(machine.healthy, f"to be healthy with a clock that is off by {by_ns} ns", SOON_S)

    stopped = machine.pids()
    stopped_s = size("paused_s", 3, 10)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    machine.send()
    end = time.monotonic() + stopped_s
    until(lambda: time.monotonic() > end, "the pause to be over")
    before = broker.cursor("capture")
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    until(lambda: broker.cursor("capture") > before and machine.is_through(), "what came meanwhile", SOON_S)
    until(machine.healthy, "to be healthy after a pause", SOON_S)
    assert broker.pids() == workers
    until(lambda: broker.events("supervisor_paused"), "the pause to be told")
    assert broker.stop() == 0

    told = {line["event"] for line in broker.log}
    assert not told & {"worker_died", "worker_killed", "host_died", "companion_died", "companion_killed", "store_refused"}
    ledger = broker.ledger()["ledger"]
    assert (broker.ledger()["balanced"], ledger["lanes"][0]["received_packets"]) == (True, machine.sent)
    assert ledger["tools"]["recorder"]["delivered_frames"] == machine.sent
    years = {int(path.name.removeprefix("recorder-")[:4]) for path in (tmp_path / "rec").iterdir()}
    assert max(years) > time.gmtime().tm_year + 25  # the clock was what the test had set
    flows = [json.loads(line)["flow"] for line in (tmp_path / "flows.json").read_text().splitlines()]
    assert sum(flow["pkts_toserver"] + flow["pkts_toclient"] for flow in flows) == machine.sent
