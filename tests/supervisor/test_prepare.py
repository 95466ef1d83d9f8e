"""The lock of a name, the room in shared memory, what is held of processes, and what health says of inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.core import log
from broker.core.errors import TapmeshError
from broker.core.flow_layout import WHAT_USED, FlowSizes
from broker.core.flow_model import Flows
from broker.core.flow_ring import FlowMemory, create_flows
from broker.core.layout import SOURCE_ABSENT, SOURCE_DOWN, SOURCE_FAILED, SOURCE_NO_LINK, TOOL_DEAD, TOOLS, Geometry
from broker.core.metrics import index
from broker.core.model import Config, Group, Input, Tool
from broker.core.shm import create_pipeline, pipeline_directory
from broker.supervisor import prepare
from broker.supervisor.lock import AlreadyRunningError, hold, lock_path
from broker.supervisor.processes import Process, attach, belongs, find
from broker.supervisor.troubles import group_troubles, input_troubles
from tests.waiting import until

HOLDER = """
import sys
from broker.supervisor.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_name_is_held_by_one_process_and_free_after_kill_9(name: str):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(AlreadyRunningError, match=rf"running already \(pid {holder.pid}\)"), hold(name):
        pass
    holder.kill()
    holder.communicate()
    assert lock_path(name).exists()
    with hold(name):
        assert lock_path(name).read_text() == f"{os.getpid()}\n"
    assert not lock_path(name).exists()


def test_the_lock_is_another_file_when_its_holder_has_removed_it_meanwhile(name: str, monkeypatch: pytest.MonkeyPatch):
    """Opened just before the holder unlinked it: locking that would lock nothing."""
    real, opened = os.open, []

    def open_and_lose(path, *args, **kwargs):
        fd = real(path, *args, **kwargs)
        if not opened:
            os.unlink(path)
        opened.append(fd)
        return fd

    monkeypatch.setattr(os, "open", open_and_lose)
    with hold(name):
        assert len(opened) == 2
        assert lock_path(name).stat().st_ino == os.fstat(opened[1]).st_ino


def test_too_little_shared_memory_is_told_with_what_to_do(shm: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=16, f_frsize=1024 * 1024))
    config = Config("n", (), (), ())
    prepare.check_room(shm, 8 * 1024 * 1024, 1, config)
    with pytest.raises(TapmeshError) as told:
        prepare.check_room(shm, 9 * 1024 * 1024, 2, config)
    assert str(told.value).startswith(
        f"{shm} has 16 MiB free, the pipeline needs 17 MiB (2 lanes of {config.ring.blocks} blocks, and room for policies)"
    )
    assert f"mount -o remount,size=SIZE {shm}" in str(told.value)


def test_if_flows_take_most_of_it_they_are_what_should_be_smaller(shm: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=16, f_frsize=1024 * 1024))
    config = Config("n", (Input("a", "pcap"),), (), (), flows=Flows(max_flows=1_000_000))
    with pytest.raises(TapmeshError, match=r"1 lane of 16 blocks, 14\d MiB of flows, .*: make flows.max_flows or flows.records smaller"):
        prepare.create("none", config)


def test_flows_that_everybody_has_left_are_told_of_before_they_go(name: str):
    pipeline = create_pipeline(name, [Geometry(n_flows=1)])
    create_flows(pipeline.directory, 0, FlowSizes(64, 16, 64, 1024))
    entries = FlowMemory(pipeline.directory, 0, 1024).entries
    entries["what"][3], entries["packets"][3] = 1 << WHAT_USED, (5, 2)
    with capture_logs() as told:
        assert prepare.look(name, log.get()) is None
    assert [entry["event"] for entry in told] == ["left_overs_removed"]
    assert (told[0]["lost_flows"], told[0]["lost_records"], told[0]["lost_packets"]) == (1, 0, 7)


def test_a_missing_root_of_shared_memory_is_told(tmp_path: Path):
    with pytest.raises(TapmeshError, match="TAPMESH_SHM"):
        prepare.check_room(tmp_path / "missing", 1, 1, Config("n", (), (), ()))


@pytest.fixture
def impostor(name: str):
    """A process whose command line is that of a worker of the pipeline."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", code, "stages", "filter", "--pipeline", name]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_processes_of_a_pipeline_are_known_by_their_command_line(name: str, impostor):
    assert find(name) == {impostor.pid: "filter"}
    assert find(f"{name}0") == {}
    assert not belongs(os.getpid(), name)
    assert attach(os.getpid(), name) is None
    assert attach(0, name) is None
    held = attach(impostor.pid, name)
    assert held is not None
    assert held.alive()
    impostor.kill()
    assert held.wait(10)
    impostor.wait()
    held.send(9)  # reaped: hits nobody
    assert not held.alive()
    assert Process(impostor.pid).alive() is False
    held.close()


def test_clear_ends_the_processes_and_removes_the_memory(name: str, impostor):
    pipeline_directory(name).mkdir()
    prepare.clear(name)
    assert impostor.wait(10) == -9
    assert not pipeline_directory(name).exists()


def test_sweep_takes_only_what_belongs_to_dead_processes(shm: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    until(lambda: not Path(f"/proc/{dead.pid}").exists(), "the process to be gone")
    for name in (f"replay-{dead.pid}", f"replay-{os.getpid()}", "replay-of-mine", "other"):
        pipeline_directory(name).mkdir()
    prepare.sweep("replay-")
    assert sorted(p.name for p in shm.iterdir()) == sorted([f"tapmesh-replay-{os.getpid()}", "tapmesh-replay-of-mine", "tapmesh-other"])


def test_health_names_inputs_of_which_nothing_can_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TAPMESH_SHM", str(tmp_path))
    pipeline = create_pipeline("inputs", [Geometry(), Geometry()])
    inputs = [Input(name, "afpacket", slot, interface=f"{name}0") for slot, name in enumerate(("up", "down", "nolink", "gone"))]
    files = [Input("file", "pcap", 4, files=("/in/a.pcap",)), Input("whole", "pcap", 5, files=("/in/b.pcap",))]
    config = Config("n", (*inputs, *files), (), ())
    assert list(input_troubles(config, pipeline)) == []
    at = index("capture", "source_trouble")
    pipeline.lanes[0].live[0, at + 1], pipeline.lanes[1].live[0, at + 2] = SOURCE_DOWN, SOURCE_NO_LINK
    pipeline.lanes[1].live[0, at + 3], pipeline.lanes[0].live[0, at + 4] = SOURCE_ABSENT, SOURCE_FAILED
    (pipeline.directory / "source-error").write_text("/in/a.pcap: byte 40: too long\n/in/b.pcap: byte 9: of another input\n")
    assert list(input_troubles(config, pipeline)) == [
        "input down: interface down0 is down",
        "input nolink: interface nolink0 has no link",
        "input gone: there is no interface gone0",
        "input file: /in/a.pcap: byte 40: too long",
    ]


def test_health_names_groups_of_which_no_member_is_there():
    tools = tuple(Tool(name, slot) for slot, name in enumerate(("a", "b", "c")))
    groups = (Group("pair", ("a", "b")), Group("other", ("b", "c")))
    state = np.zeros(TOOLS, np.int64)
    assert group_troubles(Config("n", (), tools, (), groups=groups), state) == []
    state[:2] = TOOL_DEAD
    assert group_troubles(Config("n", (), tools, (), groups=groups), state) == ["group pair: all members are dead: a, b"]
