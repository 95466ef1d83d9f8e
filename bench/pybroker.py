"""``python -m bench.pybroker dpkt|scapy INTERFACE REMOTE RULES``: what one would write in an hour, as a peer.

Receive, parse, look for a rule, put GRE before it, send on a raw socket. RULES is JSON: ``[[host, port], ...]``, and 10.0.0.0/8 passes.
Prints `ready`. `bench.pyfile` does the same from file to file.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from typing import Any

Rules = set[tuple[bytes, int]]
_SO_RCVBUFFORCE = 33
GRE = bytes.fromhex("00006558")


def parse_rules(text: str) -> Rules:
    return {(socket.inet_aton(host), int(port)) for host, port in json.loads(text)}


def dpkt_judge(rules: Rules) -> Callable[[bytes], bool]:
    """Says of a frame whether it passes."""
    import dpkt

    def passes(frame: bytes) -> bool:
        packet: Any = dpkt.ethernet.Ethernet(frame).data
        if not isinstance(packet, dpkt.ip.IP):
            return False
        if packet.src[0] == 10 or packet.dst[0] == 10:
            return True
        if not isinstance(packet.data, dpkt.tcp.TCP | dpkt.udp.UDP):
            return False
        ports = (packet.data.sport, packet.data.dport)
        return any((address, port) in rules for address in (packet.src, packet.dst) for port in ports)

    return passes


def scapy_judge(rules: Rules) -> Callable[[Any], bool]:
    """Says of a parsed frame whether it passes."""
    from scapy.layers.inet import IP, TCP, UDP

    def passes(frame: Any) -> bool:
        if IP not in frame:
            return False
        packet = frame[IP]
        addresses = (packet.src, packet.dst)
        if any(address.startswith("10.") for address in addresses):
            return True
        if TCP not in packet and UDP not in packet:
            return False
        return any((socket.inet_aton(address), port) in rules for address in addresses for port in (packet.sport, packet.dport))

    return passes


def raw_socket(remote: str) -> socket.socket:
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
    out.connect((remote, 0))
    out.shutdown(socket.SHUT_RD)
    return out


def run_dpkt(interface: str, remote: str, rules: Rules) -> None:
    passes = dpkt_judge(rules)
    out = raw_socket(remote)
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    tap.bind((interface, 0))
    print("ready", flush=True)
    while True:
        frame = tap.recv(65_536)
        if passes(frame):
            out.send(GRE + frame)


def run_scapy(interface: str, remote: str, rules: Rules) -> None:
    from scapy.config import conf
    from scapy.layers.l2 import GRE as HEADER
    from scapy.packet import Raw
    from scapy.sendrecv import sniff

    passes = scapy_judge(rules)
    out = raw_socket(remote)

    def handle(frame: Any) -> None:
        if passes(frame):
            out.send(bytes(HEADER(proto=0x6558) / Raw(bytes(frame))))

    conf.bufsize = 64 << 20
    sniff(iface=interface, prn=handle, store=False, started_callback=lambda: print("ready", flush=True))


if __name__ == "__main__":
    kind, interface, remote, text = sys.argv[1:]
    {"dpkt": run_dpkt, "scapy": run_scapy}[kind](interface, remote, parse_rules(text))
