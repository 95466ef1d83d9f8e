"""Runs: against a slow twin that knows nothing of slots and tables, whatever the lengths and flows of a block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.core import layout
from stages import memory
from stages.send import kernels
from stages.send.runs import MOST_BYTES, MOST_FRAMES, SOCKETS, Runs
from tests.stages.delivery import allow_arrays

MOST_ROWS = 300
SKIP = 28


@dataclass(frozen=True)
class Frame:
    share: int
    length: int  # of the datagram


class Block:
    """FRAME rows, and the memory that groups them; used for one block after another."""

    def __init__(self) -> None:
        self.frames = np.zeros(MOST_ROWS, layout.FRAME)
        self.rows = np.arange(MOST_ROWS, dtype=np.uint32)
        self.job = np.zeros(1, kernels.JOB)
        self.fds = np.arange(100, 100 + SOCKETS)
        self.runs = Runs(MOST_ROWS)

    def group(self, frames: list[Frame], n_sockets: int, longest: int) -> list[tuple[int, int, list[int]]]:
        """(socket, segment_len, frames by number) of each run."""
        for number, frame in enumerate(frames):
            self.frames[number] = (0, 0, SKIP + 8, 0, 0, frame.length - 8, 0, frame.share)
        self.job["rows_at"], self.job["n_rows"], self.job["skip"] = self.rows.ctypes.data, len(frames), SKIP
        self.job["frames_at"] = self.frames.ctypes.data
        allow_arrays(self.frames, self.rows, self.job, self.fds, *self.runs.arrays)
        self.runs.group(self.job, int(self.job.ctypes.data), int(self.fds.ctypes.data), n_sockets, longest)
        found, at = [], 0
        while at < len(frames):
            run = self.runs.runs[len(found)]
            found.append((int(run["fd"]) - 100, int(run["segment_len"]), self.runs.order[at : int(run["end"])].tolist()))
            assert int(run["end"]) > at
            at = int(run["end"])
        memory.forbid_all()
        return found


FRAMES = st.lists(
    st.builds(Frame, st.integers(0, 12).map(lambda n: n * 0x9E37_79B1 & 0xFFFF_FFFF), st.sampled_from([60, 61, 572, 1500, 9000, 60_000])),
    min_size=1,
    max_size=MOST_ROWS,
)


@settings(deadline=None, max_examples=200)
@given(
    blocks=st.lists(FRAMES, min_size=1, max_size=3),
    n_sockets=st.sampled_from([1, 2, SOCKETS]),
    longest=st.sampled_from([0, 600, MOST_BYTES]),
)
def test_every_frame_is_in_one_run_and_no_flow_is_turned_round(blocks: list[list[Frame]], n_sockets: int, longest: int) -> None:
    block = Block()
    for frames in blocks:
        runs = block.group(frames, n_sockets, longest)
        sent = [number for _, _, numbers in runs for number in numbers]
        assert sorted(sent) == list(range(len(frames)))
        for share in {frame.share for frame in frames}:
            flow = [number for number in sent if frames[number].share == share]
            assert flow == sorted(flow)
            assert len({s for s, _, numbers in runs for number in numbers if frames[number].share == share}) == 1
        assert [s for s, _, _ in runs] == sorted(s for s, _, _ in runs)
        for s, segment_len, numbers in runs:
            assert {frames[number].length for number in numbers} == {segment_len}
            assert s < n_sockets
            if len(numbers) > 1:
                assert segment_len <= longest
                assert len(numbers) <= MOST_FRAMES
                assert segment_len * len(numbers) <= MOST_BYTES


def fewest_calls(frames: list[Frame]) -> int:
    """The same rule said slowly, for one socket and flows that share no slot: a frame joins the last run of its length unless its flow is
    in a later one."""
    runs: list[list[int]] = []
    for number, frame in enumerate(frames):
        mine = [r for r, run in enumerate(runs) if frames[run[0]].length == frame.length]
        later = [r for r, run in enumerate(runs) if any(frames[n].share == frame.share for n in run)]
        if mine and len(runs[mine[-1]]) < MOST_FRAMES and mine[-1] >= max(later, default=0):
            runs[mine[-1]].append(number)
        else:
            runs.append([number])
    return len(runs)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.builds(Frame, st.integers(0, 12).map(lambda n: n << 2), st.sampled_from([60, 61, 600, 900])), min_size=1, max_size=MOST_ROWS
    )
)
def test_runs_are_as_long_as_the_rule_allows(frames: list[Frame]) -> None:
    assert len(Block().group(frames, 1, MOST_BYTES)) == fewest_calls(frames)


@pytest.mark.parametrize(
    ("lengths", "shares", "want"),
    [
        ([60, 1500] * 4, [16 * n for n in range(8)], [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ([60, 1500] * 2, [0] * 4, [[0], [1], [2], [3]]),  # one flow: nothing overtakes
        ([60, 60, 1500, 1500, 60], [0] * 5, [[0, 1], [2, 3], [4]]),
        ([60, 1500, 60, 1500], [0, 0, 16, 16], [[0, 2], [1, 3]]),  # both flows: short, then long
        ([60] * 65, [0] * 65, [list(range(64)), [64]]),
    ],
)
def test_what_may_overtake_and_what_may_not(lengths: list[int], shares: list[int], want: list[list[int]]) -> None:
    frames = [Frame(share, length) for share, length in zip(shares, lengths, strict=True)]
    assert [numbers for _, _, numbers in Block().group(frames, 1, MOST_BYTES)] == want
