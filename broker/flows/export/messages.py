"""What goes to a collector in one piece, and how rows of records are cut into such pieces. No format here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from broker.core.flow_ring import Rows
from broker.core.values import Sample


class Message(NamedTuple):
    """Delivered whole or not at all. `data` may be written: numbers and times are put in when it leaves."""

    data: memoryview
    records: int = 0  # FLOW rows of which it holds the first part
    packets: int = 0
    bytes: int = 0
    step: int = 0  # by how much it moves the sequence number on


class Lost(NamedTuple):
    """What never became a record that an export could have sent, since the pipeline was started."""

    ignored_packets: int = 0  # in no flow: not IP, cut, skipped
    records: int = 0  # dropped before they came to the exports
    packets: int = 0
    bytes: int = 0


@dataclass
class ExportContext:
    """What records do not say themselves, the same for all exports of a node. A reload changes it: who needs it looks each time."""

    node: str
    run_ns: int  # wall clock: when the pipeline was started
    inputs: dict[int, str] = field(default_factory=dict)  # slot -> name
    sample: Sample | None = None
    drop: tuple[str, ...] = ()  # of `flow_model.ATTRIBUTES`: what is empty in the records
    lost: Callable[[], Lost] = field(default=Lost)


class Encoder(Protocol):
    """One format. The sequence number is that of RFC 7011, 3.1, or what comes nearest in the format."""

    per_session: bool  # the sequence begins at 0 with each connection

    def encode(self, rows: Rows, most_bytes: int, now_ns: int) -> tuple[list[Message], Rows]:
        """Messages of at most `most_bytes`, and the FLOW rows that the format has no words for."""

    def greeting(self, most_bytes: int, now_ns: int) -> list[Message]:
        """What a collector must know to read anything else; over UDP from time to time again."""

    def report(self, row: np.void, most_bytes: int, now_ns: int) -> list[Message]:
        """From time to time: what is what, and what has been sent and what not, by the EXPORT row."""

    def stamp(self, data: memoryview, sequence: int, now_ns: int) -> None:
        """Number a message that leaves now."""


Counts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


def cut(records: Rows, counts: Counts, header: Callable[[int], bytes], most_bytes: int, step: int | None = None) -> list[Message]:
    """Messages of as many records as fit.

    | name | dtype[shape] | meaning |
    |---|---|---|
    | records | packed, big-endian [n] | as they are sent |
    | counts | int64[n] each | FLOW rows that begin in a record (0 or 1), its packets, its bytes |

    `header`: what stands before so many records; of one length. `step`: of each message; None: the number of its records.
    """
    n, size, header_bytes = len(records), records.dtype.itemsize, len(header(0))
    most = (most_bytes - header_bytes) // size
    raw = records.view(np.uint8).reshape(n, size)
    made: list[Message] = []
    for first, last, each in ((0, n // most * most, most), (n // most * most, n, n % most)):
        if first == last:
            continue
        buffer = np.empty(((last - first) // each, header_bytes + each * size), np.uint8)
        buffer[:, :header_bytes] = np.frombuffer(header(each), np.uint8)
        buffer[:, header_bytes:] = raw[first:last].reshape(len(buffer), each * size)
        sums = [of[first:last].reshape(-1, each).sum(axis=1).tolist() for of in counts]
        whole, length = buffer.reshape(-1).data, buffer.shape[1]
        steps = [each if step is None else step] * len(buffer)
        pieces = (whole[at : at + length] for at in range(0, len(whole), length))
        made.extend(map(Message, pieces, *sums, steps))
    return made


Part = tuple[bytes, int]
"""A set, and by how much it moves the sequence number on."""


def joined(parts: Iterable[Part], header: Callable[[int, int], bytes], most_bytes: int) -> list[Message]:
    """Sets in as few messages as hold them. `header`: of a message whose sets are so long and hold so many records; of one length."""
    made: list[Message] = []
    body, step = b"", 0
    header_bytes = len(header(0, 0))

    def end() -> None:
        made.append(Message(memoryview(bytearray(header(len(body), step) + body)), step=step))

    for content, n in parts:
        if body and header_bytes + len(body) + len(content) > most_bytes:
            end()
            body, step = b"", 0
        body, step = body + content, step + n
    if body:
        end()
    return made


def total(rows: Rows) -> tuple[int, int, int]:
    """Records, packets, bytes of FLOW rows."""
    return len(rows), int(rows["packets"].sum()), int(rows["bytes"].sum())
