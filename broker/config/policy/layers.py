"""A layer as one number, for kernels: its steps, three bits each, the outermost lowest. 0 is the frame itself."""

from __future__ import annotations

from broker.config.policy.tree import MAX_STEPS, Layer

STEP_BITS = 3
STEP_MASK = (1 << STEP_BITS) - 1


def pack_layer(layer: Layer) -> int:
    assert len(layer) <= MAX_STEPS
    return sum(step << STEP_BITS * i for i, step in enumerate(layer))
