"""One worker in this process: attach, make the stage, run its loop. The same whether the host forked it or it was started by itself."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

from broker.config.lanes import cpu_of, lanes
from broker.core import layout, log
from broker.core.errors import EXIT_CONFIG, EXIT_DAMAGED, EXIT_RUNNING, DamagedError, PipelineError, TapmeshError, WorkerRunningError
from broker.core.generations import read_generation
from broker.core.model import Config
from broker.core.runner import Runner
from broker.core.shm import Pipeline, open_pipeline, pipeline_directory
from broker.privileges import asking, capabilities, sandbox
from stages.registry import create

_PR_SET_NAME = 15  # linux/prctl.h


def await_pipeline(name: str, wait_s: float) -> Pipeline:
    """Attach as soon as the pipeline is there with its first generation; PipelineError in words after `wait_s`."""
    deadline = time.monotonic() + wait_s
    while True:
        if (pipeline_directory(name) / "control").exists():
            pipeline = open_pipeline(name)
            if int(pipeline.header[0]["generation"]) > 0:
                return pipeline
        if time.monotonic() > deadline:
            return open_pipeline(name)
        time.sleep(0.05)


def _stay_on(cpu: int, log: Any) -> None:
    """Before anything is touched or started: memory comes from the node of the CPU then, and threads stay on it too."""
    try:
        os.sched_setaffinity(0, {cpu})
    except OSError as error:
        log.warning("cpu_refused", cpu=cpu, reason=f"{error.strerror}: there is no such CPU for us, and the worker runs anywhere")


def _confine(pipeline: Pipeline, config: Config, kind: str, log: Any) -> None:
    """No capability and few system calls. Without an opener a worker keeps what it needs to open sockets itself."""
    has_opener = asking.use(pipeline.directory)
    capabilities.keep(() if has_opener else (capabilities.NET_RAW, capabilities.NET_ADMIN))
    tidies = kind == "send" and any(tool.rotation is not None for tool in config.tools)
    role = "worker" + ("" if has_opener else "-raw") + ("-tidy" if tidies else "")
    if reason := sandbox.enter(role):
        log.warning("sandbox_missing", reason=reason)


def run_worker(pipeline: Pipeline, lane: int, kind: str, worker: int) -> int:
    """Run until drained. Returns the exit status: 0, EXIT_CONFIG or EXIT_DAMAGED when starting it again would be of no use,
    EXIT_RUNNING when another process is that worker."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"tm-{kind[:7]}-{lane}.{worker}".encode(), 0, 0, 0)
    from stages import atomics  # a kernel may be imported once all are compiled: `warm`

    runner = None
    try:
        config = read_generation(pipeline.directory, int(pipeline.header[0]["generation"]), rules=False).config
        plan = lanes(config)
        if not 0 <= lane < len(plan):
            raise PipelineError(f"pipeline {pipeline.name!r} has lanes 0 to {len(plan) - 1}, not {lane}")
        n_workers = pipeline.lanes[lane].geometry.count(kind)
        if (cpu := cpu_of(config, lane, kind, worker, n_workers)) is not None:
            _stay_on(cpu, log.get(pipeline=pipeline.name, lane=lane, stage=kind, worker=worker))
        _confine(pipeline, config, kind, log.get(pipeline=pipeline.name, lane=lane, stage=kind, worker=worker))
        runner = Runner(pipeline, plan[lane], create(kind), worker, atomics)
        runner.run()
    except TapmeshError as error:
        log.get(pipeline=pipeline.name, lane=lane, stage=kind, worker=worker).error("worker_refused", reason=str(error))
        if isinstance(error, WorkerRunningError):  # the row is that one's
            return EXIT_RUNNING
        status = EXIT_DAMAGED if isinstance(error, DamagedError) else EXIT_CONFIG
        if runner is not None:
            runner.row["error"] = status
            runner.row["state"] = layout.STATE_STOPPED
        return status
    return 0
