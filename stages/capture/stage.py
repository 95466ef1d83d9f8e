"""Capture: the first stage. Fills a block with packets, one PACKET row each.

Files are read straight into the block: its data is a piece of the file, record headers and all, and the rows point into it, at any
alignment. From an interface packets are copied: the only user-space copy of their bytes.

| | |
|---|---|
| reads | capture files (pcap, pcapng; `-` is standard input), a live interface (AF_PACKET) or sockets at the end of tunnels, by the \
kind of the lane's first input |
| writes | BLOCK n_packets, data_used; packets; data |
| options | `Input`: files, pace; interface, promiscuous, ring_bytes, latency_ms, capture_own, dedicated, prefilter, shed; listen, \
senders, address, port, key, vni, buffer_bytes |
| counts | captured_*, filtered_in_kernel_packets, tags_restored, cut_packets, dropped_*; seen_packets; the position source_* |

Received packets of an input are captured_packets, filtered_in_kernel_packets and everything dropped_*. What a crash costs: nothing
for files and, where an opener keeps its socket, for an interface (`afpacket`); for a tunnel input the block that was not published.
"""

from __future__ import annotations

from typing import ClassVar

from broker.core.batch import Batch
from broker.core.stage import Context, Generation
from stages.capture.afpacket import Interface
from stages.capture.endpoint import Endpoint
from stages.capture.errors import SourceError, report
from stages.capture.files import Files

_SOURCES: dict[str, type[Files | Interface | Endpoint]] = {"pcap": Files, "afpacket": Interface, "tunnel": Endpoint}


class Capture:
    """Picks the source by the lane; all sources have the same methods."""

    KIND: ClassVar[str] = "capture"

    def open(self, context: Context) -> None:
        """SourceError in words when there is nothing to capture from."""
        self._source: Files | Interface | Endpoint = _SOURCES[context.lane.inputs[0].kind](context)
        try:
            self._source.open()
        except SourceError as error:
            report(context.directory, error)
            raise

    def load(self, generation: Generation) -> None:
        """Capture takes what comes, whatever the policy says; but an interface has to know our own packets."""
        self._source.load(generation)

    def step(self, batch: Batch) -> int:
        return self._source.step(batch)

    @property
    def finished(self) -> bool:
        return self._source.finished

    @property
    def wait_fd(self) -> int:
        return self._source.wait_fd

    @property
    def due_ns(self) -> int:
        return self._source.due_ns

    def stop(self) -> None:
        self._source.stop()

    def close(self) -> None:
        self._source.close()
