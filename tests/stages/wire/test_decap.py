"""Decapsulation of packets built by hand; tshark says that they are what they are meant to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from broker.core.senders import KINDS
from stages.wire import decap
from tests import packets as p
from tests.stages.wire import decapsulating
from tests.stages.wire.decapsulating import run
from tests.stages.wire.tunnels import CASES, CHECKSUM, MALFORMED, PORTS, PROTOCOL, WRONG, Case, erspan3

ROOT = Path(__file__).resolve().parents[3]
_ANSWERS = {MALFORMED: decap.MALFORMED, PROTOCOL: decap.PROTOCOL, CHECKSUM: decap.CHECKSUM}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_frame_inside_is_found_with_what_its_tunnel_says(case: Case) -> None:
    answer, found, frame = run(case.listen, case.data)
    assert (answer, frame) == (decap.TAKEN, case.inside)
    assert KINDS[found["kind"]] == case.tunnel
    assert (found["sequence"] if found["sequence"] >= 0 else None) == case.sequence
    number = found["session"] if found["session"] >= 0 else found["key"]
    assert (number if number >= 0 else None) == case.session


@pytest.mark.parametrize(("listen", "data", "why"), WRONG)
def test_what_a_receiver_must_not_take_is_refused_with_the_reason(listen: str, data: bytes, why: str) -> None:
    assert run(listen, data)[0] == _ANSWERS[why]


@pytest.mark.parametrize(("granularity", "unit_ns"), [(0, 100_000), (1, 100), (2, -1), (3, -1)])
def test_the_time_of_erspan_iii_is_given_in_its_unit(granularity: int, unit_ns: int) -> None:
    _, found, _ = run("gre", erspan3(CASES[0].inside, 1, 1, 0xDEADBEEF, granularity=granularity))
    assert found["stamp"] == (0xDEADBEEF if unit_ns > 0 else decap.NONE)
    assert unit_ns < 0 or found["stamp_ns"] == unit_ns


def test_tshark_finds_the_same_inside(tmp_path: Path) -> None:
    """The addresses of the innermost packet, and keys, sessions and sequence numbers as text."""
    tshark = shutil.which("tshark")
    if tshark is None:
        pytest.skip("tshark is not installed")

    def outer(case: Case) -> bytes:
        ends = ("192.0.2.1", "192.0.2.2")
        port = PORTS.get(case.listen)
        return p.ip_frame(*ends, p.GRE, case.data) if port is None else p.udp_frame(ends[0], 50_000, ends[1], port, case.data)

    path = tmp_path / "outer.pcap"
    path.write_bytes(p.pcap([outer(case) for case in CASES]))
    fields = ("ip.src", "ipv6.src", "gre.key", "gre.sequence_number", "erspan.spanid", "vxlan.vni", "geneve.vni", "_ws.malformed")
    words = [
        tshark,
        "-n",
        "-r",
        path,
        "-d",
        "udp.port==4754,gre",
        "-T",
        "fields",
        "-E",
        "separator=|",
        *(w for f in fields for w in ("-e", f)),
    ]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(CASES)
    for case, line in zip(CASES, lines, strict=True):
        if case.name == "ERSPAN III, IP":
            continue  # tshark 4.0 does not look into it
        ip, ip6, key, sequence, *sessions, broken = line.split("|")
        is_ip6 = case.inside[12:14] == b"\x86\xdd"
        assert (ip6 if is_ip6 else ip.split(",")[-1]) == ("2001:db8::5" if is_ip6 else "10.1.0.5"), (case.name, line)
        assert not broken, (case.name, line)
        assert (int(sequence) if sequence else None) == case.sequence, (case.name, line)
        said = {int(text, 0) for text in (key, *sessions) if text}
        assert case.session is None or case.session in said, (case.name, line)


def test_damaged_packets_are_answered_without_a_look_beyond_them_and_alike_when_compiled() -> None:
    def lines(**environment: str) -> list[str]:
        words = [sys.executable, "-m", "tests.stages.wire.decapsulating"]
        done = subprocess.run(words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    plain = lines(NUMBA_DISABLE_JIT="1")
    assert plain == lines()
    assert len(plain) == len(decapsulating.damaged(1))
    assert {line[0] for line in plain} == {"0", "1", "2", "3"}
