"""What of a reload is done beside the supervisor's loop."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import cast

import pytest
import structlog

from broker.config.lanes import SEGMENT_FRAMES
from broker.core.layout import Geometry
from broker.core.model import Config, Input, Map, Rule
from broker.core.shm import Pipeline
from broker.supervisor.companions import Companions
from broker.supervisor.crew import Crew
from broker.supervisor.generation import InForce
from broker.supervisor.plan import Phase
from broker.supervisor.probes import Prober
from broker.supervisor.session import Options, Session


@pytest.fixture
def geometry() -> Geometry:
    """Frames enough for a configuration without tools."""
    return Geometry(n_blocks=4, max_packets=16, max_frames=SEGMENT_FRAMES, header_bytes=2048, data_bytes=4096)


def config(expression: str) -> Config:
    return Config("n", (Input("in", "pcap"),), (), (Map("m", (Rule("pass", expression),), ()),))


def test_the_loop_goes_on_while_a_policy_is_compiled_and_nothing_changes_before(pipeline: Pipeline) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    compiled_by: list[int] = []

    def compile_policy(_: Config) -> bytes:
        compiled_by.append(threading.get_ident())
        if len(compiled_by) == 2:
            compiling.set()
            assert go_on.wait(10)
        return b"image"

    force = InForce(pipeline, compile_policy, structlog.get_logger())
    force.put(force.prepare(config("tcp")))
    before, files = force.number, sorted(pipeline.directory.iterdir())
    session = object.__new__(Session)
    session.force, session.log, session.phase, session._loading = force, structlog.get_logger(), Phase.RUN, None
    session.prober = Prober(pipeline.tool_state, session.log)
    session.companions = Companions(pipeline.name, session.log)
    session.crew = Crew(pipeline, session.log)
    session.options = cast("Options", SimpleNamespace(load=lambda: config("udp")))
    session.reload()
    assert compiling.wait(10)
    loading = session._loading
    assert loading is not None
    assert not loading.wait(0)
    assert (force.number, sorted(pipeline.directory.iterdir())) == (before, files)
    go_on.set()
    assert loading.wait(10)
    assert threading.get_ident() not in compiled_by[1:]
    session._reload(loading)
    assert (force.number, len(compiled_by)) == (before + 1, 2)
