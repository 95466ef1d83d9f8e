"""``tapmesh explain``: the right packet, the rule that decided and the tests that failed, and the bytes that a replay would write."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tapmesh import tapmesh
from tests.packets import TCP, ethernet, ipv4, pcap, read_pcap, tcp, tcp_frame

CONFIG = """
inputs:
  span0: {{kind: pcap, file: {directory}/in.pcap}}
  span1: {{kind: pcap, file: {directory}/other.pcap}}
tools:
  ids: {{tunnel: {{kind: gre, remote: 192.0.2.9, source: 192.0.2.1, key: 7, checksum: true}}}}
  udp: {{tunnel: {{kind: gre-udp, remote: "2001:db8::9", source: "2001:db8::1"}}}}
  recorder: {{kind: pcap, file: {directory}/recorder.pcap}}
sets:
  pos_web: [10.1.0.0/24, 2001:db8:1::/64]
maps:
  - name: pos-db
    rules:
      - drop: "tcp port 22"
      - pass: "src net $pos_web and tcp dst port 5432"
    to: [ids, recorder]
  - {{name: there, inputs: [span1], rules: [{{pass: ""}}], to: udp}}
"""
TO_DATABASE = tcp_frame("10.1.0.5", 40000, "10.2.0.9", 5432, payload=b"select")
FROM_ELSEWHERE = tcp_frame("10.9.0.5", 40000, "10.2.0.9", 5432)
SSH = tcp_frame("10.1.0.5", 40000, "10.2.0.9", 22)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG.format(directory=tmp_path))
    (tmp_path / "in.pcap").write_bytes(pcap([FROM_ELSEWHERE, TO_DATABASE, SSH]))
    return path


def explain(config: Path, *arguments: object) -> dict[str, Any]:
    done = tapmesh("explain", "--config", config, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_packet_of_a_capture_is_explained_for_programs(config: Path, tmp_path: Path) -> None:
    found = explain(config, "--capture", tmp_path / "in.pcap", "--packet", 2)
    assert found["delivers"] == ["ids", "recorder"]
    assert found["verdict"] == {"cause": "forwarded"}
    assert found["decisions"] == [
        {"map": "pos-db", "decision": "pass", "rule": 1},
        {"map": "there", "decision": "input", "rule": None},
    ]
    packet = found["packet"]
    assert (packet["hex"], packet["number"], packet["file"]) == (TO_DATABASE.hex(), 2, str(tmp_path / "in.pcap"))
    assert (packet["ip.src"], packet["ip.dst"], packet["tcp.dstport"]) == ("10.1.0.5", "10.2.0.9", 5432)
    (first, second) = found["maps"][0]["tried"]
    assert (first["rule"], first["answer"], first["expression"], first["line"]) == (0, "false", "tcp port 22", f"{config}:14:16")
    assert first["failed_test"] == "tcp src port 22 or tcp dst port 22"
    assert first["reason"] == "source port is 40000, destination port is 5432"
    assert {test["answer"] for test in first["tests"]} == {"false"}
    assert (second["rule"], second["answer"], second["failed_test"]) == (1, "true", None)
    assert [test["test"] for test in second["tests"]] == ["src 10.1.0.0-10.1.0.255", "tcp dst port 5432"]


def test_the_first_packet_is_number_one_and_the_test_that_failed_is_named(config: Path, tmp_path: Path) -> None:
    found = explain(config, "--capture", tmp_path / "in.pcap", "--packet", 1)
    assert (found["delivers"], found["verdict"], found["frames"]) == ([], {"cause": "filtered"}, [])
    assert found["decisions"][0] == {"map": "pos-db", "decision": "none", "rule": None}
    failed = found["maps"][0]["tried"][1]
    assert (failed["failed_test"], failed["reason"]) == (
        "src 10.1.0.0-10.1.0.255 or ip6 src 2001:db8:1::-2001:db8:1:0:ffff:ffff:ffff:ffff",
        "source is 10.9.0.5, it is ip",
    )


def test_the_outer_bytes_are_those_that_a_replay_writes(config: Path, tmp_path: Path) -> None:
    done = tapmesh("replay", tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    found = explain(config, "--capture", tmp_path / "in.pcap", "--packet", 2)
    frames = {frame["tool"]: frame for frame in found["frames"]}
    for tool in ("ids", "recorder"):
        ((_, written),) = read_pcap((tmp_path / "out" / f"{tool}.pcap").read_bytes())[1]
        assert frames[tool]["outer"] == written.hex()
    assert (frames["recorder"]["header"], frames["recorder"]["data_at"], frames["recorder"]["data_len"]) == ("", 0, len(TO_DATABASE))
    assert frames["ids"]["outer"] == frames["ids"]["header"] + TO_DATABASE.hex()


EVERY_KIND = {
    "nvgre": "vsid: 9", "gre-ip": "key: 5, checksum: true", "erspan1": "df: true", "erspan2": "session: 3", "erspan3": "subheader: true",
    "vxlan": "vni: 4, udp_checksum: true", "geneve": "generation: true", "gre-udp": "sequence: true",
}  # fmt: skip


def test_the_outer_bytes_of_every_tunnel_are_those_that_a_replay_writes(tmp_path: Path) -> None:
    tools = "".join(
        f"  {kind}{version}: {{tunnel: {{kind: {kind}, remote: '{remote}', source: '{source}', {more}}}}}\n"
        for kind, more in EVERY_KIND.items()
        for version, remote, source in ((4, "192.0.2.9", "192.0.2.1"), (6, "2001:db8::9", "2001:db8::1"))
    )
    names = [f"{kind}{version}" for kind in EVERY_KIND for version in (4, 6)]
    config = tmp_path / "c.yaml"
    config.write_text(f"inputs: {{a: {{kind: pcap, file: {tmp_path}/in.pcap}}}}\ntools:\n{tools}collector: [{', '.join(names)}]\n")
    (tmp_path / "in.pcap").write_bytes(pcap([TO_DATABASE]))
    assert tapmesh("replay", tmp_path / "in.pcap", "--config", config, "--out", tmp_path / "out").returncode == 0
    found = explain(config, "--capture", tmp_path / "in.pcap", "--packet", 1)
    frames = {frame["tool"]: frame["outer"] for frame in found["frames"]}
    assert frames == {name: read_pcap((tmp_path / "out" / f"{name}.pcap").read_bytes())[1][0][1].hex() for name in names}
    assert found["dropped"] == {}
    arp = ethernet(bytes(46), type=0x0806)
    assert explain(config, "--hex", arp.hex())["dropped"] == {"gre-ip4": "dropped_not_ip", "gre-ip6": "dropped_not_ip"}
    text = tapmesh("explain", "--config", config, "--hex", arp.hex()).stdout
    assert "  gre-ip4: no frame (dropped_not_ip): no IPv4 or IPv6 packet in the frame" in text


def test_the_input_decides_which_maps_look(config: Path) -> None:
    found = explain(config, "--hex", SSH.hex(" "), "--input", "span1")
    assert [(d["decision"], d["rule"]) for d in found["decisions"]] == [("drop", 0), ("pass", 0)]
    assert found["delivers"] == ["udp"]
    assert found["frames"][0]["header"].startswith("6")


def test_a_packet_is_written_as_fields(config: Path) -> None:
    found = explain(config, "--packet", "input=span1 ip.src=10.1.0.5 ip.dst=10.2.0.9 tcp.srcport=40000 tcp.dst=22")
    assert [(d["map"], d["decision"]) for d in found["decisions"]] == [("pos-db", "drop"), ("there", "pass")]
    cut = explain(config, "--packet", "ip.src=10.1.0.5 tcp.dst=5432 cut=30")
    assert cut["decisions"][0] == {"map": "pos-db", "decision": "undetermined", "rule": 0}
    assert cut["maps"][0]["tried"][0]["reason"] == "only 30 of 54 bytes were captured"


def test_the_text_says_what_a_person_asks(config: Path, tmp_path: Path) -> None:
    done = tapmesh("explain", "--config", config, "--capture", tmp_path / "in.pcap", "--packet", 2)
    assert done.returncode == 0, done.stderr
    ids = bytes.fromhex(explain(config, "--capture", tmp_path / "in.pcap", "--packet", 2)["frames"][0]["header"])
    assert (
        done.stdout
        == f"""\
packet 2 of {tmp_path}/in.pcap: {len(TO_DATABASE)} bytes, input span0, 2023-11-14T22:13:20.001000000Z
  eth 02:00:00:00:00:0a > 02:00:00:00:00:0b; ip 10.1.0.5 > 10.2.0.9; tcp 40000 > 5432 [ack]

map pos-db, to ids, recorder
  rule 1  drop: tcp port 22    {config}:14:16
          no: tcp src port 22 or tcp dst port 22: source port is 40000, destination port is 5432
  rule 2  pass: src net $pos_web and tcp dst port 5432    {config}:15:16
          matches
  passed by rule 2

map there, to udp
  does not look at this input, only at span1

delivered to ids, recorder
  ids: gre to 192.0.2.9, 32 bytes of outer headers, then {len(TO_DATABASE)} bytes
    0000  {ids[:16].hex(" ")}
    0010  {ids[16:].hex(" ")}
  recorder: the bare packet, {len(TO_DATABASE)} bytes, to {tmp_path}/recorder.pcap
"""
    )


def test_all_shows_the_rules_behind_the_one_that_decides(config: Path) -> None:
    done = tapmesh("explain", "--config", config, "--hex", SSH.hex(), "--all")
    assert "rule 2  pass: src net $pos_web and tcp dst port 5432" in done.stdout
    assert "not reached; no: tcp dst port 5432: destination port is 22" in done.stdout
    assert "dropped by rule 1" in done.stdout
    assert "delivered to nobody: a drop rule decided" in done.stdout


def pcapng(frames: list[tuple[int, bytes]]) -> bytes:
    """Interface 0 is Ethernet, 1 is not. (draft-ietf-opsawg-pcapng)"""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)

    blocks = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    blocks += [block(1, struct.pack("<HHI", linktype, 0, 0)) for linktype in (1, 101)]
    blocks += [block(6, struct.pack("<IIIII", interface, 0, 0, len(data), len(data)) + data) for interface, data in frames]
    return b"".join(blocks)


@pytest.mark.parametrize("n_before", [3, 3000])
def test_packets_that_are_no_ethernet_are_counted_as_wireshark_counts_them(config: Path, tmp_path: Path, n_before: int) -> None:
    other = [(1, b"E" + bytes(40))] * n_before
    (tmp_path / "mixed.pcapng").write_bytes(pcapng([(0, SSH), *other, (0, TO_DATABASE), (0, FROM_ELSEWHERE)]))
    found = explain(config, "--capture", tmp_path / "mixed.pcapng", "--packet", n_before + 2)
    assert found["packet"]["hex"] == TO_DATABASE.hex()
    done = tapmesh("explain", "--config", config, "--capture", tmp_path / "mixed.pcapng", "--packet", 3)
    assert done.returncode == 1
    assert "packet 3 cannot be captured" in done.stderr


def test_a_later_fragment_is_explained_with_what_its_first_has_shown(config: Path, tmp_path: Path) -> None:
    ends = "10.1.0.5", "10.2.0.9"
    first = ethernet(ipv4(*ends, TCP, tcp(40000, 5432, payload=bytes(12)), more_fragments=True))
    later = ethernet(ipv4(*ends, TCP, bytes(32), offset=32))
    (tmp_path / "in.pcap").write_bytes(pcap([first, later]))
    followed = explain(config, "--capture", tmp_path / "in.pcap", "--packet", 2)
    assert (followed["packet"]["fragment"], followed["decisions"][0]["rule"]) == ("followed", 1)
    alone = explain(config, "--hex", later.hex())
    assert (alone["packet"]["fragment"], alone["decisions"][0]["decision"]) == ("later", "undetermined")
    assert alone["maps"][0]["tried"][0]["reason"] == "it is a later fragment"


GROUPS = """
inputs: {span0: {kind: pcap, file: x.pcap}}
tools:
  ids: {tunnel: {kind: gre, remote: 192.0.2.1, source: 192.0.2.7}, push_vlan: 9, slice_after: l4}
  rec: {kind: pcap, file: out.pcap, mask: payload}
  few: {kind: pcap, file: few.pcap, sample: {one_in: 1000000}}
groups:
  one: {members: [ids]}
  all: {members: [ids, rec, few], mode: replicate}
maps:
  - {name: web, rules: [{pass: tcp}], to: [one, rec]}
  - {name: dns, rules: [{pass: udp}], to: [all], slice_bytes: 40}
"""


def test_groups_and_shapes_are_told_as_what_leaves(tmp_path: Path) -> None:
    config = tmp_path / "groups.yaml"
    config.write_text(GROUPS)
    web = explain(config, "--packet", "ip.src=10.0.0.1 ip.dst=10.0.0.2 tcp.dst=80 payload=hello")
    assert web["delivers"] == ["rec", "ids"]
    outer = {frame["tool"]: bytes.fromhex(frame["outer"]) for frame in web["frames"]}
    packet = bytes.fromhex(web["packet"]["hex"])
    assert outer["ids"][24:] == packet[:12] + bytes.fromhex("81000009") + packet[12:54]
    assert outer["rec"][:54] + b"hello" == packet[:50] + outer["rec"][50:52] + packet[52:]
    dns = explain(config, "--packet", "ip.src=10.0.0.1 ip.dst=10.0.0.2 udp.dst=53 payload=hellohellohello")
    assert [(frame["tool"], len(frame["outer"]) // 2) for frame in dns["frames"]] == [("ids", 24 + 40), ("rec", 40)]
    assert dns["dropped"] == {"few": "dropped_sampled"}
    done = tapmesh("explain", "--config", config, "--packet", "udp.dst=53")
    assert "few: no frame (dropped_sampled): left out by" in done.stdout


def test_what_is_asked_wrongly_is_said_in_words(config: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["--capture", tmp_path / "in.pcap"], "--capture FILE needs --packet N"),
        (["--capture", tmp_path / "in.pcap", "--packet", "0"], "from 1"),
        (["--capture", tmp_path / "in.pcap", "--packet", "4"], "there is no packet 4; the last one is 3"),
        (["--capture", tmp_path / "absent.pcap", "--packet", "1"], "absent.pcap: cannot be opened: No such file"),
        (["--hex", "0g"], "expected pairs of hexadecimal digits"),
        ([], "is needed"),
        (["--packet", "5"], "packet 5 of which file?"),
        (["--packet", "tcp.prt=1"], "unknown field 'tcp.prt'"),
        (["--hex", "00", "--input", "span9"], "there is no input 'span9'; the configuration has span0, span1"),
    ):
        done = tapmesh("explain", "--config", config, *arguments)
        assert done.returncode == 1
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_of_thousands_of_rules_those_that_came_closest_are_shown(tmp_path: Path) -> None:
    rules = "".join(f'      - pass: "src host 10.{n // 250}.{n % 250}.1 and tcp dst port {n % 60000}"\n' for n in range(2000))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"inputs: {{a: {{kind: pcap, file: {tmp_path}/in.pcap}}}}\ntools: {{t: {{kind: pcap, file: {tmp_path}/t.pcap}}}}\n"
        f"maps:\n  - name: many\n    to: t\n    rules:\n{rules}"
    )
    frame = tcp_frame("10.3.7.1", 1, "10.0.0.2", 80)  # rule 757 + 1 but for its port
    done = tapmesh("explain", "--config", path, "--hex", frame.hex())
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 12
    assert any("rule 758  pass: src host 10.3.7.1 and tcp dst port 757" in line for line in lines)
    assert "          no: tcp dst port 757: destination port is 80" in lines
    assert "  1,999 more rules failed at their first test" in lines
    everything = tapmesh("explain", "--config", path, "--hex", frame.hex(), "--all").stdout
    assert everything.count("  pass: src host") == 2000
