"""What the supervisor knows of processes that it did not start itself."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from broker.core import layout, log
from broker.core.shm import Pipeline
from broker.supervisor.crew import Crew
from broker.supervisor.plan import Start, WorkerId
from broker.supervisor.processes import belongs
from tests.waiting import until

FILTER = WorkerId(0, "filter", 0)


@contextlib.contextmanager
def worker(name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like one of a pipeline and does nothing."""
    words = ["stages", "filter", "--pipeline", name]
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", *words], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refuse(_: WorkerId) -> int:
    pytest.fail("a second one was started")


def test_a_worker_that_runs_and_was_not_known_is_watched_instead_of_started(pipeline: Pipeline) -> None:
    """It had been forked when the supervisor before died, and had not said yet who it is."""
    crew = Crew(pipeline, log.get())
    assert crew.adopt() == 0
    with worker(pipeline.name) as process:
        row = pipeline.lanes[0].workers[1]
        row["pid"], row["state"] = process.pid, layout.STATE_RUNNING
        until(lambda: belongs(process.pid, pipeline.name), "its command line")
        crew.apply([Start(FILTER)], refuse)
        assert crew.note(1)[FILTER].up
        crew.close()


def test_the_end_of_a_worker_whose_host_is_gone_is_not_waited_for(pipeline: Pipeline) -> None:
    crew = Crew(pipeline, log.get())
    with worker(pipeline.name) as process:
        pipeline.lanes[0].workers[1]["pid"] = process.pid
        until(lambda: belongs(process.pid, pipeline.name), "its command line")
        assert crew.adopt() == 1  # its parent is this test, no host
        process.kill()
        until(lambda: not crew.processes()[0].alive(), "its end")
        crew.note(1)
        assert crew.processes() == []
        assert crew.books()[FILTER].failures == 1
    crew.close()
