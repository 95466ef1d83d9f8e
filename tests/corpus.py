"""The shared corpus of real captures: where it is, what its index says, and how a test skips in words where it is absent."""

from __future__ import annotations

import csv
import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("TAPMESH_SHARED", Path(__file__).resolve().parents[2] / "shared"))
CORPUS = SHARED / "corpus"
SUITES = SHARED / "suites"


@dataclass(frozen=True)
class Capture:
    """One row of INDEX.tsv. `linktypes` maps a name to its number of packets; `notes` are the oddities."""

    path: Path
    name: str
    packets: int
    format: str
    linktypes: dict[str, int]
    max_len: int
    features: str
    notes: frozenset[str]

    @property
    def is_ethernet(self) -> bool:
        return set(self.linktypes) == {"EN10MB"}


@functools.cache
def captures() -> tuple[Capture, ...]:
    """All captures of the corpus, in the order of its index; empty where it is absent."""
    index = CORPUS / "INDEX.tsv"
    if not index.exists():
        return ()
    found = []
    with index.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            pairs = (part.rpartition(":") for part in row["linktype"].split(",") if ":" in part)
            found.append(
                Capture(
                    path=CORPUS / row["path"],
                    name=row["path"],
                    packets=int(row["packets"]) if row["packets"].isdigit() else 0,
                    format=row["format"],
                    linktypes={name: int(n) for name, _, n in pairs},
                    max_len=int(row["max_len"]) if row["max_len"].isdigit() else 0,
                    features=row["features"],
                    notes=frozenset(row["notes"].split(",")) - {"-"},
                )
            )
    return tuple(found)


def sample(share: int, *, of: int = 100, ethernet: bool = True) -> list[Capture]:
    """`share` of every `of` captures, chosen by the hash of their name: the same ones everywhere, whoever adds captures."""
    return [
        c
        for c in captures()
        if (c.is_ethernet or not ethernet) and int.from_bytes(hashlib.sha256(c.name.encode()).digest()[:4], "big") % of < share
    ]


needs_corpus = pytest.mark.skipif(not (CORPUS / "INDEX.tsv").exists(), reason=f"the shared corpus is not at {CORPUS}")
