"""Our own words mean what tshark sees, packet for packet of real captures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import libpcap
from tests.corpus import captures, needs_corpus
from tests.stages.filter import shark
from tests.stages.filter.judging import Judge, frame, one_map_each

WANTED = ("gre", "erspan", "vxlan", "geneve", "gtp", "mpls", "ipip", "6in", "qinq", "vlan", "ip6-", "frag", "tunnel")
FEW = 60  # packets of a capture


def captured() -> list[bytes]:
    chosen = [c for c in captures() if c.is_ethernet and any(word in c.features for word in WANTED)]
    records = [record for c in chosen for record in libpcap.read_ethernet(c.path, FEW)]
    return [record.data for record in records if len(record.data) == record.wirelen and len(record.data) >= 14]


@needs_corpus
@libpcap.needs_libpcap
@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_our_own_words_mean_what_tshark_sees(tmp_path: Path) -> None:
    frames = captured()
    assert len(frames) > 3000
    rows = shark.rows(frames, tmp_path)
    texts = tuple(shark.WORDS)
    verdicts = Judge(one_map_each(texts, undetermined="libpcap")).verdicts([frame(data) for data in frames])
    found, hits = [], dict.fromkeys(texts, 0)
    for data, row, verdict in zip(frames, rows, verdicts, strict=True):
        if not shark.is_sound(row):
            continue
        for i, text in enumerate(texts):
            wanted = shark.WORDS[text](row)
            hits[text] += wanted
            if wanted != bool(verdict >> i & 1):
                found.append(f"{text!r}: tshark says {wanted} of {data[:100].hex()} ({len(data)}): {row.columns['frame.protocols'][:100]}")
    assert found == []
    assert [text for text in texts if hits[text] < 2] == []
