"""The stage host: holds every kernel warm and forks workers on the supervisor's word.

A worker that is forked shares the host's memory (1-3 MB of its own instead of 65) and is ready in milliseconds. So there are no threads and
no ZeroMQ contexts here, and garbage is frozen before the first fork.

The socket ``host.sock`` in the pipeline's directory (SOCK_SEQPACKET, one msgpack map a message) has one client at a time, the supervisor:

| request | answer |
|---|---|
| {do: start, lane, kind, worker} | {ok: true, pid} or {ok: false, reason} |
| {do: list} | {ok: true, ready: bool, workers: [{lane, kind, worker, pid}]} |
| {do: quit, force: bool} | {ok: true}, then it exits; refused while workers live, unless forced: then they are killed |

Without being asked it says {event: progress, text}, {event: ready} and {event: exited, lane, kind, worker, pid, status}. It survives the
supervisor: the next one connects and asks for the list.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import Any

import msgpack

from broker.core import layout, log
from broker.core.errors import TapmeshError
from broker.core.messages import MessageError, check, unpack_map
from broker.core.shm import open_pipeline, pipeline_directory
from broker.privileges import sandbox
from stages.warm import warm
from stages.worker import run_worker

MESSAGE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class _Worker:
    lane: int
    kind: str
    worker: int

    def as_map(self, pid: int) -> dict[str, Any]:
        return {"lane": self.lane, "kind": self.kind, "worker": self.worker, "pid": pid}


class Host:
    """`serve` is the process; everything else happens in it."""

    def __init__(self, pipeline: str) -> None:
        self.name = pipeline
        self.log = log.get(pipeline=pipeline, stage="host")
        self.workers: dict[int, _Worker] = {}  # by pid
        self.ready = False
        self._client: socket.socket | None = None
        self._quit = False

    def serve(self) -> int:
        """Until told to quit, or until the pipeline's directory is gone and no worker is left. Returns the exit status."""
        path = pipeline_directory(self.name) / "host.sock"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # those meant for the supervisor's terminal or group
        woken, waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        waker.setblocking(False)
        woken.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        listener.listen(1)
        self._own = (woken, waker, listener)
        self._accept(listener, timeout_ms=10_000)
        warm(lambda line: self._say({"event": "progress", "text": line}), self._kinds())
        if reason := sandbox.enter("host"):
            self.log.warning("sandbox_missing", reason=reason)
        gc.collect()
        gc.disable()
        gc.freeze()
        self.ready = True
        self._say({"event": "ready"})
        self.log.info("host_ready", pid=os.getpid())
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        while not self._quit:
            watched = self._client or listener
            poller.register(watched, select.POLLIN)
            events = dict(poller.poll(1000))
            poller.unregister(watched)
            self._reap(woken)
            if watched.fileno() in events:
                if watched is listener:
                    self._accept(listener, timeout_ms=0)
                else:
                    self._hear()
            if not self.workers and not path.exists():
                break  # somebody has removed the pipeline: there is nobody left to serve
        return 0

    def _kinds(self) -> tuple[str, ...]:
        """Of the workers that can be asked for: kernels of other stages would only take memory."""
        lanes = open_pipeline(self.name).lanes
        return tuple(kind for kind in layout.STAGES if any(lane.geometry.count(kind) for lane in lanes))

    def _accept(self, listener: socket.socket, timeout_ms: int) -> None:
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        if poller.poll(timeout_ms):
            self._client, _ = listener.accept()
            if self.ready:
                self._say({"event": "ready"})

    def _say(self, message: dict[str, Any]) -> None:
        """To the supervisor if there is one; a dead one misses nothing that `list` does not tell the next."""
        if self._client is not None:
            try:
                self._client.send(msgpack.packb(message))
            except OSError:
                self._hang_up()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _hear(self) -> None:
        assert self._client is not None
        try:
            message = self._client.recv(MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._hang_up()
            return
        try:
            answer = self._answer(unpack_map(message, do=str))
        except MessageError as error:
            answer = {"ok": False, "reason": f"not understood: {error}"}
        if answer is not None:
            self._say(answer)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "start":
                check(request, lane=int, kind=str, worker=int)
                worker = _Worker(request["lane"], request["kind"], request["worker"])
                if worker.kind not in layout.STAGES:
                    return {"ok": False, "reason": f"there is no stage {worker.kind!r:.80}"}
                if worker in self.workers.values():
                    return {"ok": False, "reason": f"{worker.kind} worker {worker.worker} of lane {worker.lane} is running already"}
                return {"ok": True, "pid": self._fork(worker)}
            case "list":
                return {"ok": True, "ready": self.ready, "workers": [w.as_map(pid) for pid, w in self.workers.items()]}
            case "quit":
                if self.workers and not request.get("force"):
                    return {"ok": False, "reason": f"{len(self.workers)} workers are running"}
                for pid in self.workers:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._quit = True
                return {"ok": True}
            case other:
                return {"ok": False, "reason": f"unknown request {other!r:.80}"}

    def _fork(self, worker: _Worker) -> int:
        pid = os.fork()
        if pid:
            self.workers[pid] = worker
            return pid
        status = 70  # sysexits EX_SOFTWARE: what a bug leaves behind
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for own in self._own:
                own.close()
            self._hang_up()
            status = self._work(worker)
        finally:
            os._exit(status)

    def _work(self, worker: _Worker) -> int:
        import traceback

        logger = log.get(pipeline=self.name, lane=worker.lane, stage=worker.kind, worker=worker.worker)
        try:
            return run_worker(open_pipeline(self.name), worker.lane, worker.kind, worker.worker)
        except TapmeshError as error:
            logger.error("worker_refused", reason=str(error))
            return 78
        except BaseException:  # the process boundary: nothing above could log it
            logger.error("worker_crashed", traceback=traceback.format_exc())
            return 70

    def _reap(self, woken: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while woken.recv(4096):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self.workers.pop(pid, None)
            if worker is not None:
                self._say({"event": "exited", **worker.as_map(pid), "status": os.waitstatus_to_exitcode(status)})
