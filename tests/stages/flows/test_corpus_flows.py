"""Every record of real captures, beside those of a slow meter that was written apart."""

from __future__ import annotations

import pytest

from tests.corpus import Capture, captures, needs_corpus, sample
from tests.stages.flows.corpus_flows import differences

MOST_PACKETS = 5000
KNOWN = {
    "libpcap/filter/AH-IPcomp-IPv4.pcap": "an IP packet behind an authentication header is inside a tunnel here",
    "suricata-verify/bug-1450-04/tls_DER-incomplete-header.pcap": "the clock jumps by 21 years in a handshake",
    "tcpdump-4.99.1/ip6_frag_asan.pcap": "a fragment header that is cut off: what it would have named is not known",
    "tcpdump-4.99.1/smb_data_print-segv.pcapng": "times beyond the year 2262",
    "tcpdump/ipv4_invalid_total_length_2.pcap": "ports behind the end that the IP header gives are ports here, as for libpcap",
}


def _compared(chosen: list[Capture], layer: str) -> int:
    told: dict[str, list[str]] = {}
    n = 0
    for capture in chosen:
        if capture.is_ethernet and capture.packets <= MOST_PACKETS and capture.name not in KNOWN:
            n += 1
            if found := differences(capture.path, layer=layer):
                told[capture.name] = found[:3]
    assert not told, f"{len(told)} of {n} captures: {told}"
    return n


@needs_corpus
@pytest.mark.parametrize("layer", ["outer", "inner"])
def test_a_sample_of_the_corpus(layer: str) -> None:
    assert _compared(sample(6), layer) > 80


@needs_corpus
@pytest.mark.corpus
@pytest.mark.parametrize("layer", ["outer", "inner"])
def test_the_whole_corpus(layer: str) -> None:
    assert _compared(list(captures()), layer) > 2000
