"""A capture file through the capture stage, a block at a time, as a replay of it would see it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from broker.core.batch import Batch, heap_batch
from broker.core.errors import TapmeshError
from broker.core.model import Input, Lane
from stages.capture.idle import await_source
from stages.capture.stage import Capture
from stages.judge.policy import GEOMETRY, PACKETS, Alone, Judging


class Play:
    """`step` fills `batch`; `seen` packets of the file have been looked at so far, those that capture drops among them."""

    def __init__(self, directory: Path, file: str, input_slot: int) -> None:
        """SourceError: the file cannot be read; `directory` gets the report of what is found wrong later."""
        self._alone = Alone(directory, Lane(0, (Input("capture", "pcap", slot=input_slot, files=(file,)),)))
        self.batch: Batch = heap_batch(GEOMETRY)
        self.seen = 0
        self._capture = Capture()
        self._capture.open(self._alone.context)

    def step(self, packets: int = PACKETS) -> int:
        """At most so many packets into the batch; returns how many were looked at, 0 at the end."""
        self.batch.max_packets = packets
        self.batch.block["n_packets"] = 0
        while (looked := self._capture.step(self.batch)) <= 0 and not self._capture.finished:
            await_source(self._capture)
        self.seen += max(0, looked)
        return max(0, looked)

    def close(self) -> None:
        self._capture.close()


def blocks(directory: Path, file: str, input_slot: int) -> Iterator[tuple[Batch, int]]:
    """Each block, and the number in the file of its first packet; 0: packets among them were dropped, so that nobody knows."""
    with contextlib.closing(Play(directory, file, input_slot)) as play:
        while looked := play.step():
            whole = looked == int(play.batch.block["n_packets"][0])
            yield play.batch, play.seen - looked + 1 if whole else 0


def packet_of(directory: Path, file: str, input_slot: int, number: int, judging: Judging) -> Batch:
    """A batch whose last packet is packet `number` of the file, counted from 1 as Wireshark does, what is no Ethernet among them; all
    before it have been judged, for a later fragment depends on its first. TapmeshError in words when there is no such packet."""
    for most in (PACKETS, 1):
        judging.forget_fragments()
        with contextlib.closing(Play(directory, file, input_slot)) as play:
            while play.seen < number:
                if not play.step(most if number - play.seen > most else 1):
                    raise TapmeshError(f"{file}: there is no packet {number:,}; the last one is {play.seen:,}")
                if play.seen == number and int(play.batch.block["n_packets"][0]):
                    return play.batch
                judging.step(play.batch)
        # Packets that are dropped do not count for `most`: so many in a row can hide the one that is wanted.
    raise TapmeshError(f"{file}: packet {number:,} cannot be captured: it is no Ethernet, or longer than a block")
