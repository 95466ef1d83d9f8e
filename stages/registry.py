"""The stages by name. The supervisor knows them by these names only; to add one, add a row here and to `broker.core.layout.STAGES`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from broker.core.stage import Stage

_CLASSES = {
    "capture": ("stages.capture.stage", "Capture"),
    "filter": ("stages.filter.stage", "Filter"),
    "encapsulate": ("stages.encapsulate.stage", "Encapsulate"),
    "send": ("stages.send.stage", "Send"),
    "flows": ("stages.flows.stage", "Flows"),
}

KINDS = tuple(_CLASSES)


def create(kind: str) -> Stage:
    module, name = _CLASSES[kind]
    stage: Stage = getattr(importlib.import_module(module), name)()
    return stage


def import_stages(kinds: Iterable[str] = KINDS) -> None:
    for kind in kinds:
        importlib.import_module(_CLASSES[kind][0])
