"""A stage changes its own columns of a block and no other byte: what makes doing a block again harmless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.config import parse_config
from broker.config.lanes import geometry, lanes
from broker.config.policy import compile_policy
from broker.core import layout
from broker.core.batch import Batch, heap_batch
from broker.core.generations import read_generation, write_generation
from broker.core.metrics import N_COUNTERS
from broker.core.stage import Context, Stage
from broker.demo.generate import generate
from stages.registry import create

CONFIG = """
node: single-writer
inputs:
  file: {{kind: pcap, file: {capture}}}
tools:
  ids: {{tunnel: {{kind: gre-udp, remote: 127.0.0.1, port: 9, key: 7, sequence: true}}}}
  all: {{kind: pcap, file: {out}, mask: payload, strip: vlan, super_frames: segment}}
maps:
  - {{name: web, rules: [{{pass: "tcp port 443 or udp"}}], to: [ids, all]}}
  - {{name: rest, rules: [{{drop: arp}}, {{pass: "ip or ip6"}}], to: [all]}}
"""


def allowed(batch: Batch, kind: str) -> np.ndarray:
    """True for each byte of the block that `kind` may change, by the table in the layout."""
    may = np.zeros(batch.memory.size, bool)
    fields, *parts = layout.WRITERS[kind]
    assert layout.BLOCK.fields is not None
    for field in fields.split():
        dtype, offset = layout.BLOCK.fields[field][:2]
        may[offset : offset + dtype.itemsize] = True
    base = batch.block_at
    spans = {
        "packets": (batch.packets_at, batch.packets.nbytes),
        "verdicts": (batch.verdicts_at, batch.verdicts.nbytes),
        "frames": (batch.frames_at, batch.frames.nbytes),
        "headers": (batch.headers_at, batch.headers.nbytes + layout.SLACK),
        "data": (batch.data_at, batch.data.nbytes + layout.SLACK),
        "shaped": (batch.data_at + batch.shaped_from, batch.window_bytes - batch.shaped_from + layout.SLACK),
    }
    for part in parts:
        at, size = spans[part]
        may[at - base : at - base + size] = True
    return may


@pytest.mark.parametrize("noise", [0, 0xA5])
def test_each_stage_changes_only_its_own_columns(tmp_path: Path, noise: int) -> None:
    """Whatever the block held before (`noise`), and with every stage done twice, as after a crash: the second time changes nothing."""
    capture = tmp_path / "in.pcap"
    generate(capture)
    config = parse_config(CONFIG.format(capture=capture, out=tmp_path / "out.pcap"), "test.yaml")
    write_generation(tmp_path, 1, config, compile_policy(config))
    generation = read_generation(tmp_path, 1)
    (lane,) = lanes(config)
    sizes = geometry(config, lane)
    batch = heap_batch(sizes)
    batch.memory[:] = noise
    batch.block["generation"] = 1
    shared = np.zeros(layout.TOOLS + 1, np.int64)
    tickets = np.zeros(2 * sizes.n_blocks, layout.TICKET)
    made: list[tuple[str, Stage]] = []
    keep = []
    for kind in layout.PATH:
        counters, live = np.zeros(N_COUNTERS, np.int64), np.zeros(N_COUNTERS, np.int64)
        keep += [counters, live]
        at = int(shared.ctypes.data)
        stage = create(kind)
        context = Context(
            tmp_path, lane, 0, 1, sizes, 1, counters, int(counters.ctypes.data), live, int(live.ctypes.data),
            tool_sequence_at=at, tickets_at=int(tickets.ctypes.data), progress_at=at + 8 * layout.TOOLS,
        )  # fmt: skip
        stage.open(context)
        stage.load(generation)
        made.append((kind, stage))
    for kind, stage in made:
        before = batch.memory.copy()
        assert stage.step(batch) > 0
        changed = batch.memory != before
        assert kind == "send" or changed.any()
        forbidden = np.flatnonzero(changed & ~allowed(batch, kind))
        assert not forbidden.size, (kind, forbidden[:10])
        if kind in ("filter", "encapsulate"):
            once = batch.memory.copy()
            stage.step(batch)
            assert np.array_equal(batch.memory, once), f"{kind} done again writes something else"
    for _, stage in made:
        stage.close()
