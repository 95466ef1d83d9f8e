"""The judge: a process of the data path that says what a policy does with packets, and why; started, asked and ended from here.

It has kernels and needs 100 MB, so it lives no longer than the question.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from broker.config.policy_tests import Decision
from broker.core.errors import TapmeshError
from broker.core.generations import write_generation
from broker.core.model import Config

PATIENCE_S = 120.0
"""Without a word from it for so long, it is taken for stuck."""

_ANSWER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Packet:
    """`input`: slot."""

    data: bytes
    wirelen: int
    input: int = 0
    ts_ns: int = 0


class Judge:
    """A context manager. TapmeshError in words for whatever goes wrong, the death of the process too."""

    def __init__(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """`progress` gets a line now and then where an answer takes long."""
        self._progress = progress
        self._maps: dict[int, list[str]] = {}

    def __enter__(self) -> Judge:
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tapmesh-judge-")))
            self._words = stack.enter_context(tempfile.TemporaryFile())
            command = [sys.executable, "-I", "-m", "stages", "judge"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._words, bufsize=0)
            stack.callback(self._end)
            self._unpacker = msgpack.Unpacker(max_buffer_size=_ANSWER_BYTES)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()  # it has nothing to finish
        self._process.wait()
        self._process.stdout.close()

    def load(self, config: Config, image: bytes, number: int = 1) -> None:
        """`config` as policy `number`; `image` is compiled from it."""
        write_generation(self._directory, number, config, image)
        self._maps[number] = [m.name for m in config.maps]
        self._ask(do="load", directory=str(self._directory), number=number)

    def judge(self, packets: Sequence[Packet], policy: int = 1) -> list[Decision]:
        """Each packet on its own."""
        plain = [[p.data, p.wirelen, p.input, p.ts_ns] for p in packets]
        return [self._decision(one, policy) for one in self._ask(do="judge", policy=policy, packets=plain)["outcomes"]]

    def _decision(self, outcome: list[Any], policy: int) -> Decision:
        tools, cause, maps = outcome
        named = zip(self._maps[policy], maps, strict=True)
        return Decision(tuple(tools), cause, tuple((name, answer, rule) for name, (answer, rule) in named))

    def explain(self, packet: Packet, *, beyond: bool = False, policy: int = 1) -> dict[str, Any]:
        """`beyond`: rules behind the one that decides too. As stages/judge/process.py says, `decision` added."""
        plain = [packet.data, packet.wirelen, packet.input, packet.ts_ns]
        return self._explained(self._ask(do="explain", policy=policy, packet=plain, beyond=beyond), policy)

    def explain_captured(self, file: str, number: int, input_slot: int, *, beyond: bool = False, policy: int = 1) -> dict[str, Any]:
        """Packet `number` of a capture file, counted from 1."""
        answer = self._ask(do="explain", policy=policy, file=file, input=input_slot, number=number, beyond=beyond)
        return self._explained(answer, policy)

    def _explained(self, answer: dict[str, Any], policy: int) -> dict[str, Any]:
        return {**answer, "decision": self._decision(answer["outcome"], policy)}

    def compare(self, old: int = 1, new: int = 2) -> None:
        """Begin to look for packets whose fate the policies `old` and `new` do not agree on."""
        self._ask(do="compare", old=old, new=new)

    def add(self, rows: bytes, data: bytes) -> None:
        """Packets to compare by: PACKET rows, and the data that they lie in."""
        self._ask(do="add", rows=rows, data=data)

    def play(self, file: str, input_slot: int) -> None:
        """All packets of a capture file, to compare by."""
        self._ask(do="play", file=file, input=input_slot)

    def report(self, top: int) -> dict[str, Any]:
        """What the comparison has found. Amounts are `packets` and `bytes`.

        | packets, changed, changed_bytes | all that were judged; those of another fate, and their bytes |
        | maps | {map, before, after} and amounts: `pass`, `drop`, `none`, `undetermined` |
        | tools | {tool, change: gained or lost} and amounts |
        | causes | {before, after, packets} where the cause differs |
        | talkers, talkers_forgotten | the `top` conversations that changed; how many were too many to be remembered |
        | examples | {packet, maps, before, after}: the first ones, by their number in the file |
        """
        answer = self._ask(do="report", top=top)
        return {name: value for name, value in answer.items() if name != "ok"}

    @property
    def source_errors(self) -> list[str]:
        """What was wrong with capture files that could be played in part."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / "source-error").read_text(errors="replace").splitlines()
        return []

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgpack.packb(request))
        except BrokenPipeError:
            raise self._dead() from None
        while True:
            answer: dict[str, Any] = self._receive()
            if event := answer.get("event"):
                if event == "progress":
                    self._progress(answer["text"])
            elif answer["ok"]:
                return answer
            else:
                raise TapmeshError(answer["reason"])

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while True:
            for message in self._unpacker:
                return dict(message)
            if not select.select([fd], [], [], PATIENCE_S)[0]:
                raise TapmeshError(f"the judge has said nothing for {PATIENCE_S:.0f} s: it is stuck")
            content = os.read(fd, 1 << 20)
            if not content:
                raise self._dead()
            self._unpacker.feed(content)

    def _dead(self) -> TapmeshError:
        status = self._process.wait()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
        self._words.seek(0)
        said = self._words.read().decode(errors="replace").strip().splitlines()
        return TapmeshError(f"the judge {how}" + (f": {said[-1]}" if said else ""))
