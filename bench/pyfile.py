"""``python -m bench.pyfile dpkt|scapy CAPTURE OUT RULES``: what `bench.pybroker` does, from file to file.

RULES as there. Prints one JSON line: packets, cpu_ns of the loop, without the start of Python and its imports.
"""

from __future__ import annotations

import json
import sys
import time

from bench.pybroker import GRE, Rules, dpkt_judge, parse_rules, scapy_judge

_SOURCE, _REMOTE = "192.0.2.1", "192.0.2.9"
_RAW_IP = 101


def run_dpkt(capture: str, out: str, rules: Rules) -> tuple[int, int]:
    import dpkt

    passes, n = dpkt_judge(rules), 0
    source, remote = (bytes(map(int, address.split("."))) for address in (_SOURCE, _REMOTE))
    with open(capture, "rb") as taken, open(out, "wb") as given:
        writer = dpkt.pcap.Writer(given, linktype=_RAW_IP, nano=True)
        began = time.process_time_ns()
        for at, frame in dpkt.pcap.Reader(taken):
            n += 1
            if passes(frame):
                outer = dpkt.ip.IP(src=source, dst=remote, p=47, ttl=64, id=n & 0xFFFF, data=GRE + frame)
                outer.len = len(outer)
                writer.writepkt(bytes(outer), float(at))
        return n, time.process_time_ns() - began


def run_scapy(capture: str, out: str, rules: Rules) -> tuple[int, int]:
    from scapy.layers.inet import IP
    from scapy.layers.l2 import GRE as HEADER
    from scapy.packet import Raw
    from scapy.utils import PcapReader, PcapWriter

    passes, n = scapy_judge(rules), 0
    with PcapReader(capture) as taken, PcapWriter(out, linktype=_RAW_IP, nano=True) as given:
        began = time.process_time_ns()
        for frame in taken:
            n += 1
            if passes(frame):
                given.write(IP(src=_SOURCE, dst=_REMOTE, id=n & 0xFFFF) / HEADER(proto=0x6558) / Raw(bytes(frame)))
        return n, time.process_time_ns() - began


if __name__ == "__main__":
    kind, capture, out, text = sys.argv[1:]
    packets, cpu_ns = {"dpkt": run_dpkt, "scapy": run_scapy}[kind](capture, out, parse_rules(text))
    print(json.dumps({"packets": packets, "cpu_ns": cpu_ns}))
