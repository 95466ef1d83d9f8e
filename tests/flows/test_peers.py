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


@tools.needs("softflowd", "nfcapd", "nfdump")
def test_softflowd_has_one_record_for_each_direction_of_a_flow(tmp_path: Path) -> None:
    """Reading a file it ends none before the end of the file, so that there are as many as there are pairs of ends."""
    some = [one for one in merged.records(sample(5)) if peers.makes_sense(one)]
    expected, _ = peers.Softflowd(some, list(reference.see(some))).explained()
    found = tools.softflowd(merged.write(tmp_path / "merged.pcap", some), tmp_path / "tool")
    assert found.flows == Counter(dict.fromkeys(expected.packets, 1))


@tools.needs("nfpcapd", "nfdump")
def test_nfpcapd_has_as_many_flows_where_timeouts_have_no_say(tmp_path: Path) -> None:
    """It looks for those that are over now and then only, ends TCP by its own rules, and has a flow for each question to a name server:
    of all else what is over within the time of silence is one flow for both."""
    some = [one for one in merged.records(sample(15)) if peers.makes_sense(one)]
    brief = Counter[tools.Key]()
    for record in reference.meter_packets(reference.see(some)):
        ports = (record["source_port"], record["destination_port"])
        ends = (record["source"], record["destination"])
        if record["protocol"] == 17 and 53 not in ports and not record["fragments"]:
            for way, n in enumerate(record["packets"]):
                turn = 1 if way == 0 else -1
                brief[(*ends[::turn], *ports[::turn], 17)] += 1 if n else 0
    found = tools.nfpcapd(merged.write(tmp_path / "merged.pcap", some), tmp_path / "tool")
    once = {key for key, n in brief.items() if n == 1 and found.packets[key]}
    assert len(once) > 150
    more = {key: found.flows[key] for key in once if found.flows[key] != 1}
    assert more == {}


@pytest.mark.corpus
@pytest.mark.parametrize(("model", "run"), CASES)
def test_on_the_whole_corpus_all_count_the_same(model: type[peers.Tool], run: Run, tmp_path: Path) -> None:
    """`pytest -m corpus -s` shows how many packets each reason is about."""
    reasons = compare(merged.records(one for one in captures() if one.is_ethernet), model, run, tmp_path)
    assert set(reasons) <= set(peers.REASONS)
    for reason, n in reasons.most_common():
        print(f"{n:8} {peers.REASONS[reason]}")  # noqa: T201
