"""nfpcapd, softflowd, pmacctd and the slow meter on the same packets: packets and bytes of every pair of ends are the same.

What they do differently stands in words in `peers.REASONS`, and `peers` says for each packet what that makes of it: the totals after
that are equal, key by key. The captures stand in one file, because pmacctd takes two seconds to start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.corpus import captures, needs_corpus, sample
from tests.flows import merged, peers, reference, tools
from tests.libpcap import Record

CASES = [
    pytest.param(peers.Nfpcapd, tools.nfpcapd, id="nfpcapd", marks=tools.needs("nfpcapd", "nfdump")),
    pytest.param(peers.Softflowd, tools.softflowd, id="softflowd", marks=tools.needs("softflowd", "nfcapd", "nfdump")),
    pytest.param(peers.Pmacctd, tools.pmacctd, id="pmacctd", marks=tools.needs("pmacctd")),
]
Run = Callable[[Path, Path], tools.Counted]

TEARDROP = ("164.1.123.163", "164.1.123.61")
"""Fragments that overlap, again and again: what nfpcapd makes of them depends on how long it remembers which."""

pytestmark = needs_corpus


def compare(records: list[Record], model: type[peers.Tool], run: Run, scratch: Path) -> Counter[str]:
    """The reasons that were needed."""
    some = [one for one in records if peers.makes_sense(one)]
    assert len(some) > len(records) * 0.97
    packets = list(reference.see(some))
    expected, reasons = model(some, packets).explained()
    found = run(merged.write(scratch / "merged.pcap", some), scratch / "tool")
    wrong = {
        key: [(one.packets[key], one.bytes[key]) for one in (expected, found)]
        for key in {*expected.packets, *found.packets}
        if (expected.packets[key], expected.bytes[key]) != (found.packets[key], found.bytes[key]) and key[:2] != TEARDROP
    }
    assert wrong == {}
    assert sum(found.packets.values()) > 0.9 * sum(one.packet is not None for one in packets)
    return reasons


@pytest.mark.parametrize(("model", "run"), CASES)
def test_on_some_captures_all_count_the_same(model: type[peers.Tool], run: Run, tmp_path: Path) -> None:
    reasons = compare(merged.records(sample(5)), model, run, tmp_path)
    assert set(reasons) <= set(peers.REASONS)


@pytest.mark.corpus
@pytest.mark.parametrize(("model", "run"), CASES)
def test_on_the_whole_corpus_all_count_the_same(model: type[peers.Tool], run: Run, tmp_path: Path) -> None:
    """`pytest -m corpus -s` shows how many packets each reason is about."""
    reasons = compare(merged.records(one for one in captures() if one.is_ethernet), model, run, tmp_path)
    assert set(reasons) <= set(peers.REASONS)
    for reason, n in reasons.most_common():
        print(f"{n:8} {peers.REASONS[reason]}")  # noqa: T201
