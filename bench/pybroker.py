"""``python -m bench.pybroker dpkt|scapy INTERFACE REMOTE RULES``: what one would write in an hour, as a peer.

Receive, parse, look for a rule, put GRE before it, send on a raw socket. RULES is JSON: ``[[host, port], ...]``, and 10.0.0.0/8 passes.
Prints `ready`.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

Rules = set[tuple[bytes, int]]
_SO_RCVBUFFORCE = 33
_GRE = bytes.fromhex("00006558")


def raw_socket(remote: str) -> socket.socket:
    out = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_GRE)
    out.connect((remote, 0))
    out.shutdown(socket.SHUT_RD)
    return out


def run_dpkt(interface: str, remote: str, rules: Rules) -> None:
    import dpkt

    out = raw_socket(remote)
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
    tap.bind((interface, 0))
    print("ready", flush=True)
    while True:
        frame = tap.recv(65_536)
        packet: Any = dpkt.ethernet.Ethernet(frame).data
        if not isinstance(packet, dpkt.ip.IP):
            continue
        passed = packet.src[0] == 10 or packet.dst[0] == 10
        if not passed and isinstance(packet.data, dpkt.tcp.TCP | dpkt.udp.UDP):
            ports = (packet.data.sport, packet.data.dport)
            passed = any((address, port) in rules for address in (packet.src, packet.dst) for port in ports)
        if passed:
            out.send(_GRE + frame)


def run_scapy(interface: str, remote: str, rules: Rules) -> None:
    from scapy.config import conf
    from scapy.layers.inet import IP, TCP, UDP
    from scapy.layers.l2 import GRE
    from scapy.packet import Raw
    from scapy.sendrecv import sniff

    out = raw_socket(remote)

    def handle(frame: Any) -> None:
        if IP not in frame:
            return
        packet = frame[IP]
        addresses = (packet.src, packet.dst)
        passed = any(address.startswith("10.") for address in addresses)
        if not passed and (TCP in packet or UDP in packet):
            ports = (packet.sport, packet.dport)
            passed = any((socket.inet_aton(address), port) in rules for address in addresses for port in ports)
        if passed:
            out.send(bytes(GRE(proto=0x6558) / Raw(bytes(frame))))

    conf.bufsize = 64 << 20
    sniff(iface=interface, prn=handle, store=False, started_callback=lambda: print("ready", flush=True))


if __name__ == "__main__":
    kind, interface, remote, text = sys.argv[1:]
    rules = {(socket.inet_aton(host), int(port)) for host, port in json.loads(text)}
    {"dpkt": run_dpkt, "scapy": run_scapy}[kind](interface, remote, rules)
