"""The judge as a process: msgpack maps on standard input, one answer on standard output for each; it ends with its input.

| request | answer |
|---|---|
| {do: load, directory, number} | {ok} generation `number` of the directory is policy `number` |
| {do: judge, policy, packets: [PACKET]} | {ok, outcomes: [OUTCOME]}, each packet on its own: no fragment follows another |
| {do: explain, policy, packet: PACKET or file, input, number; beyond} | {ok, packet, outcome, maps, frames, dropped}, see `judge.py` |
| {do: compare, old, new} | {ok} a comparison begins; then |
| {do: add, rows, data} | {ok} PACKET rows and the data of a block, as bytes |
| {do: play, file, input} | {ok} all of a capture file |
| {do: report, top} | {ok, ...}: `Changes.report` |

PACKET is [data, wirelen, slot of the input, ts_ns]; OUTCOME is [tools, cause, [[answer, rule of the map from 0 or -1] of each map]], the
answer pass, drop, none, undetermined, or input for a map that does not look at the packet's.
What cannot be done is {ok: false, reason}, in words for the operator. Without being asked it says {event: progress, text}.
"""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import msgpack

from broker.core.errors import TapmeshError
from broker.privileges import capabilities, sandbox
from stages.warm import warm

MAX_REQUEST_BYTES = 1 << 28


def serve() -> int:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for who asks us; that one's end is ours
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nobody else's words among the answers
    capabilities.keep(())

    def say(message: dict[str, Any]) -> None:
        answers.write(msgpack.packb(message))
        answers.flush()

    warm(lambda text: say({"event": "progress", "text": text}), ("filter", "encapsulate"))
    from stages.judge.judge import Judge  # has kernels

    judge = Judge(say)
    sandbox.enter("companion")  # who has asked us gets an answer also where there is no seccomp
    gc.disable()  # a pass over a policy of thousands of rules takes longer than an answer, and finds nothing
    say({"event": "ready"})
    with open(0, "rb", buffering=0, closefd=False) as questions:
        for request in msgpack.Unpacker(questions, max_buffer_size=MAX_REQUEST_BYTES):
            try:
                answer = judge.answer(request)
            except (TapmeshError, ValueError) as error:
                answer = {"ok": False, "reason": str(error)}
            try:
                say(answer)
            except BrokenPipeError:
                break
    return 0
