"""What the judge answers: `stages/judge/process.py` has the requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from stages.wire.key import KEY

PROGRESS_PACKETS = 1 << 17


class Judge:
    """Policies by number, and at most one comparison of two of them."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        self._say = say
        self._policies: dict[int, Judging] = {}
        self._directory = Path()
        self._changes: Changes | None = None
        self._one = one_packet_batch()

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
                self._say({"event": "progress", "text": f"{told:,} packets judged by both policies"})


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
