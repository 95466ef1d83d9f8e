"""Other people's flow meters, run on a capture file until they are done: what each has counted, by direction.

Nothing here sleeps: who listens is waited for in /proc, who reads a file ends by itself, each within a deadline.
"""

from __future__ import annotations

import csv
import ipaddress
import shutil
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.waiting import until

DEADLINE_S = 60.0
Key = tuple[str, str, int, int, int]
"""Source, destination, their ports, protocol."""


@dataclass
class Counted:
    """`flows`: records that the tool made, one for each direction of a flow."""

    packets: Counter[Key] = field(default_factory=Counter)
    bytes: Counter[Key] = field(default_factory=Counter)
    flows: Counter[Key] = field(default_factory=Counter)

    def add(self, key: Key, packets: int, n_bytes: int, flows: int = 1) -> None:
        self.packets[key] += packets
        self.bytes[key] += n_bytes
        self.flows[key] += flows


def needs(*programs: str) -> pytest.MarkDecorator:
    absent = [program for program in programs if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)} (Debian packages nfdump, pmacct, softflowd)")


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def nfpcapd(capture: Path, scratch: Path, *, active_s: int = 60, idle_s: int = 15) -> Counted:
    """nfpcapd of nfdump: reads the file, writes its own, which nfdump reads."""
    scratch.mkdir()
    run("nfpcapd", "-r", capture, "-w", scratch, "-S", "0", "-e", f"{active_s},{idle_s}")
    return nfdump(scratch)


def softflowd(capture: Path, scratch: Path, *options: str) -> Counted:
    """softflowd, its IPFIX received by nfcapd."""
    scratch.mkdir()
    with nfcapd(scratch) as port:
        run(
            "softflowd", "-r", capture, "-n", f"127.0.0.1:{port}", "-v", "10", "-6", "-d",
            "-c", "none",  # with a control socket softflowd 1.1 waits for somebody to connect before it reads a file
            "-p", scratch / "softflowd.pid", *options,
        )  # fmt: skip
    return nfdump(scratch)


@contextmanager
def nfcapd(directory: Path) -> Iterator[int]:
    """A collector that writes into `directory`; its UDP port. At the end all that was sent to it is written."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    words = ["nfcapd", "-w", str(directory), "-p", str(port), "-b", "127.0.0.1", "-S", "0", "-B", str(1 << 22)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            until(lambda: _queue(port) is not None or process.poll() is not None, "nfcapd listens")
            assert process.poll() is None, process.stderr and process.stderr.read()
            yield port
            until(lambda: (_queue(port) or (0, 0))[0] == 0, "nfcapd has read what was sent to it")
            assert _queue(port) == (0, 0), "nfcapd was too slow"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)


def _queue(port: int) -> tuple[int, int] | None:
    """(bytes that wait, datagrams dropped) of the UDP socket at `port`; None: nobody listens."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        words = line.split()
        if int(words[1].rpartition(":")[2], 16) == port:
            return int(words[4].partition(":")[2], 16), int(words[-1])
    return None


def nfdump(directory: Path) -> Counted:
    """What is in the files that nfcapd or nfpcapd wrote."""
    found = Counted()
    text = run("nfdump", "-R", directory, "-q", "-N", "-6", "-o", "fmt:%sa;%da;%sp;%dp;%pr;%pkt;%byt;%opkt;%obyt")
    for line in text.splitlines():
        source, destination, source_port, destination_port, protocol, packets, n_bytes, back, bytes_back = (
            w.strip() for w in line.split(";")
        )
        source, destination = (str(ipaddress.ip_address(at)) for at in (source, destination))  # in one spelling
        type_, dot, code = destination_port.partition(".")
        has_source = int(protocol) in (6, 17)  # what nfpcapd has there for others is noise
        ports = int(source_port) if has_source else 0, int(type_) << 8 | int(code) if dot else int(type_)
        found.add((source, destination, *ports, int(protocol)), int(packets), int(n_bytes))
        if int(back):
            found.add((destination, source, *ports[::-1], int(protocol)), int(back), int(bytes_back))
    return found


def pmacctd(capture: Path, scratch: Path) -> Counted:
    """pmacctd with its print plugin; it has no flows, only keys."""
    scratch.mkdir()
    config, out = scratch / "pmacctd.conf", scratch / "out.csv"
    config.write_text(
        f"daemonize: false\npcap_savefile: {capture}\nplugins: print\naggregate: src_host, dst_host, src_port, dst_port, proto\n"
        f"print_num_protos: true\nprint_output: csv\nprint_output_file: {out}\nprint_refresh_time: 3600\nprint_cache_entries: 100003\n"
        "pcap_savefile_delay: 0\nplugin_pipe_size: 67108864\nplugin_buffer_size: 1048576\n"
    )
    run("pmacctd", "-f", config)
    until(out.exists, "pmacctd has written its table")
    found = Counted()
    with out.open(newline="") as file:
        for row in csv.DictReader(file):
            ends = (str(ipaddress.ip_address(row[column])) for column in ("SRC_IP", "DST_IP"))
            key = (*ends, int(row["SRC_PORT"]), int(row["DST_PORT"]), int(row["PROTOCOL"]))
            found.add(key, int(row["PACKETS"]), int(row["BYTES"]))
    return found
