"""The judge as a process: msgpack maps on standard input, one answer on standard output for each; it ends with its input.

| request | answer |
|---|---|
| {do: load, directory, number} | {ok} generation `number` of the directory is policy `number` |
| {do: judge, policy, packets: [PACKET]} | {ok, outcomes: [OUTCOME]}, each packet on its own: no fragment follows another |
| {do: explain, policy, packet: PACKET or file, input, number; beyond} | {ok, packet, outcome, maps, frames, dropped}, see `_explain` |
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np

from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.errors import TapmeshError
from broker.core.layout import Geometry
from stages.judge.changes import Changes
from stages.judge.frames import frames, one_packet_batch
from stages.judge.parsed import fields
from stages.judge.play import blocks, packet_of
from stages.judge.policy import Judging, Outcome
from stages.judge.trace import decision, sees, try_rules
from stages.warm import warm
from stages.wire.key import KEY

MAX_REQUEST_BYTES = 1 << 28
PROGRESS_PACKETS = 1 << 17


def serve() -> int:
    """Until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for who asks us; that one's end is ours
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nobody else's words among the answers
    judge = Judge(answers)
    warm(judge.progress, ("filter", "encapsulate"))
    gc.disable()  # a pass over a policy of thousands of rules takes longer than an answer, and finds nothing
    judge.say({"event": "ready"})
    with open(0, "rb", buffering=0, closefd=False) as questions:
        for request in msgpack.Unpacker(questions, max_buffer_size=MAX_REQUEST_BYTES):
            try:
                answer = judge.answer(request)
            except (TapmeshError, ValueError) as error:
                answer = {"ok": False, "reason": str(error)}
            try:
                judge.say(answer)
            except BrokenPipeError:
                break
    return 0


class Judge:
    """Policies by number, and at most one comparison of two of them."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._policies: dict[int, Judging] = {}
        self._directory = Path()
        self._changes: Changes | None = None
        self._one = one_packet_batch()

    def say(self, message: dict[str, Any]) -> None:
        self._answers.write(msgpack.packb(message))
        self._answers.flush()

    def progress(self, text: str) -> None:
        self.say({"event": "progress", "text": text})

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """TapmeshError, ValueError: in words why not."""
        match request["do"]:
            case "load":
                self._directory = Path(request["directory"])
                self._policies[request["number"]] = Judging(self._directory, request["number"])
                return {"ok": True}
            case "judge":
                judging = self._policies[request["policy"]]
                return {"ok": True, "outcomes": [_plain(judging, self._judge(judging, packet), packet[2]) for packet in request["packets"]]}
            case "explain":
                return {"ok": True, **self._explain(self._policies[request["policy"]], request)}
            case "compare":
                self._changes = Changes(self._policies[request["old"]], self._policies[request["new"]])
                return {"ok": True}
        changes = self._changes
        assert changes is not None
        match request["do"]:
            case "add":
                changes.add(_block(request["rows"], request["data"]), 0)
            case "play":
                self._play(changes, request["file"], request["input"])
            case "report":
                return {"ok": True, **changes.report(request["top"])}
        return {"ok": True}

    def _judge(self, judging: Judging, packet: Sequence[Any]) -> Outcome:
        _fill(self._one, *packet)
        judging.forget_fragments()
        judging.begin_block()
        return judging.outcome(judging.judge(self._one, 0))

    def _explain(self, judging: Judging, request: dict[str, Any]) -> dict[str, Any]:
        """The packet; its outcome; its frames, or why there is none; of each map [[rule, answer, [TEST row << 2 | answer of each]]]."""
        if "file" in request:
            found = packet_of(self._directory, request["file"], request["input"], request["number"], judging)
            row = found.packets[int(found.block["n_packets"][0]) - 1]
            at = int(row["data_at"])
            packet: Sequence[Any] = [
                found.data[at : at + int(row["caplen"])].tobytes(),
                int(row["wirelen"]),
                int(row["input"]),
                int(row["ts_ns"]),
            ]
        else:
            packet = request["packet"]
            judging.forget_fragments()
        _fill(self._one, *packet)
        judging.begin_block()
        outcome = judging.outcome(judging.judge(self._one, 0))
        data, wirelen, slot, ts_ns = packet
        parsed = fields(np.frombuffer(judging.row_bytes(), KEY)[0], data)
        maps = []
        for m, said in enumerate(outcome.decisions):
            seen = sees(judging, m, slot)
            tried = list(try_rules(judging, m, self._one.packets_at, beyond=request["beyond"])) if seen else []
            if decision(judging, m, tried) != said:
                raise TapmeshError(
                    f"map {judging.generation.config.maps[m].name!r}: tried in order its rules come to {decision(judging, m, tried)}, "
                    f"but the filter says {said}: this is a fault of tapmesh, please report it with the packet {data.hex()}"
                )
            maps.append([[t.rule, t.answer, [row << 2 | said for row, said in t.asked]] for t in tried])
        about = {"data": data, "wirelen": wirelen, "input": slot, "ts_ns": ts_ns, "fields": parsed}
        framed, dropped = frames(self._one, judging.generation)
        return {"packet": about, "outcome": _plain(judging, outcome, slot), "maps": maps, "frames": framed, "dropped": dropped}

    def _play(self, changes: Changes, file: str, input_slot: int) -> None:
        told = 0
        for batch, first in blocks(self._directory, file, input_slot):
            changes.add(batch, first)
            if changes.packets - told >= PROGRESS_PACKETS:
                told = changes.packets
                self.progress(f"{told:,} packets judged by both policies")


def _plain(judging: Judging, outcome: Outcome, input_slot: int) -> list[Any]:
    decisions = [said if sees(judging, m, input_slot) else ("input", -1) for m, said in enumerate(outcome.decisions)]
    return [outcome.tools, outcome.cause, decisions]


def _fill(batch: Batch, data: bytes, wirelen: int, input_slot: int, ts_ns: int) -> None:
    if len(data) > layout.MAX_FRAME_BYTES:
        raise ValueError(f"a packet of {len(data):,} bytes, at most {layout.MAX_FRAME_BYTES:,}")
    batch.data[: len(data)] = np.frombuffer(data, np.uint8)
    batch.packets[0] = (ts_ns, 0, len(data), wirelen, input_slot, 0)
    batch.block["n_packets"] = 1


def _block(rows: bytes, data: bytes) -> Batch:
    """ValueError: a row lies outside the data."""
    packets = np.frombuffer(rows, layout.PACKET)
    if bool((packets["data_at"].astype(np.int64) + packets["caplen"] > len(data)).any()):
        raise ValueError("a packet lies outside its block")
    batch = heap_batch(Geometry(max_packets=max(1, len(packets)), max_frames=1, header_bytes=1, data_bytes=max(1, len(data))))
    batch.packets[: len(packets)] = packets
    batch.data[: len(data)] = np.frombuffer(data, np.uint8)
    batch.block["n_packets"] = len(packets)
    return batch
