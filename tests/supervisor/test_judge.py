"""The judge as its callers know it: a process that answers, and whose end is told in words."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from broker.config.policy import compile_policy
from broker.core.errors import TapmeshError
from broker.core.layout import PACKET
from broker.core.model import Config, Input, Map, Rule, Tool, Tunnel
from broker.supervisor.judge import Judge, Packet
from tests.packets import TCP, ethernet, ipv4, pcap, tcp, tcp_frame

SSH = tcp_frame("10.0.0.1", 4000, "10.0.0.2", 22)
WEB = tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80)


def config(*rules: Rule) -> Config:
    tools = (Tool("ids", 3, tunnel=Tunnel("gre", "192.0.2.1", "192.0.2.2", key=7)), Tool("store", 0, file="/tmp/store.pcap"))
    maps = (Map("one", rules, ("ids", "store")), Map("two", (Rule("pass", ""),), ("store",), ("b",), slot=1))
    return Config("n", (Input("a", "pcap", 0), Input("b", "pcap", 1)), tools, maps)


DROPS_SSH = config(Rule("drop", "tcp port 22"), Rule("pass", "tcp"))
DROPS_WEB = config(Rule("drop", "tcp port 80"), Rule("pass", "tcp"))


@pytest.fixture(scope="module")
def judge():
    with Judge() as made:
        for number, policy in enumerate((DROPS_SSH, DROPS_WEB), 1):
            made.load(policy, compile_policy(policy), number)
        yield made


def test_it_says_which_tools_get_a_packet_and_which_rule_of_each_map_said_so(judge: Judge) -> None:
    ssh, web, cut, there = judge.judge([Packet(SSH, 60), Packet(WEB, 60), Packet(WEB[:30], 60), Packet(SSH, 60, 1)])
    assert (ssh.delivers, ssh.cause, ssh.maps) == ((), "rule", (("one", "drop", 0), ("two", "input", -1)))
    assert (web.delivers, web.cause, web.maps) == (("store", "ids"), "forwarded", (("one", "pass", 1), ("two", "input", -1)))
    assert (cut.delivers, cut.maps[0]) == (("store", "ids"), ("one", "undetermined", 0))
    assert (there.delivers, there.maps) == (("store",), (("one", "drop", 0), ("two", "pass", 0)))


def test_each_packet_is_judged_as_if_none_had_come_before(judge: Judge) -> None:
    first = ethernet(ipv4("10.0.0.1", "10.0.0.2", TCP, tcp(4000, 22, payload=bytes(12)), more_fragments=True))
    later = ethernet(ipv4("10.0.0.1", "10.0.0.2", TCP, bytes(32), offset=32))
    assert [one.maps[0][1] for one in judge.judge([Packet(first, 66), Packet(later, 66)])] == ["drop", "undetermined"]


def test_two_policies_are_compared_by_packets_of_a_file_and_of_a_block(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "in.pcap").write_bytes(pcap([SSH] * 3 + [WEB] * 2 + [bytes(60)]))
    rows = np.zeros(2, PACKET)
    rows["caplen"] = rows["wirelen"] = len(WEB)
    judge.compare()
    judge.play(str(tmp_path / "in.pcap"), 0)
    judge.add(rows.tobytes(), WEB)
    found = judge.report(1)
    assert (found["packets"], found["changed"]) == (8, 7)
    moved = {(m["map"], m["before"], m["after"]): m["packets"] for m in found["maps"]}
    assert moved == {("one", "drop", "pass"): 3, ("one", "pass", "drop"): 4}
    gained = {(t["tool"], t["change"]): t["packets"] for t in found["tools"]}
    assert gained == {("ids", "gained"): 3, ("ids", "lost"): 4, ("store", "gained"): 3, ("store", "lost"): 4}
    (top,) = found["talkers"]
    assert top == {
        "source": "10.0.0.1", "destination": "10.0.0.2", "protocol": "tcp", "source_port": 4000, "destination_port": 80,
        "packets": 4, "bytes": 4 * len(WEB),
    }  # fmt: skip
    assert [one["packet"] for one in found["examples"]] == [1, 2, 3, 4, 5]
    judge.compare(1, 1)
    judge.play(str(tmp_path / "in.pcap"), 0)
    assert (judge.report(1)["packets"], judge.report(1)["changed"]) == (6, 0)


def test_what_cannot_be_done_is_said_in_words_and_the_next_question_is_answered(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "bad.pcap").write_bytes(b"nonsense")
    with pytest.raises(TapmeshError, match=r"bad\.pcap: byte 0: is neither pcap nor pcapng"):
        judge.explain_captured(str(tmp_path / "bad.pcap"), 1, 0)
    (tmp_path / "in.pcap").write_bytes(pcap([SSH]))
    with pytest.raises(TapmeshError, match=r"there is no packet 2; the last one is 1"):
        judge.explain_captured(str(tmp_path / "in.pcap"), 2, 0)
    judge.compare()
    with pytest.raises(TapmeshError, match="lies outside its block"):
        judge.add(np.ones(1, PACKET).tobytes(), b"")
    assert judge.judge([Packet(SSH, 60)])[0].cause == "rule"


def test_its_death_is_an_error_in_words() -> None:
    with Judge() as judge:
        judge.load(DROPS_SSH, compile_policy(DROPS_SSH))
        os.kill(judge._process.pid, signal.SIGKILL)
        judge._process.wait()
        with pytest.raises(TapmeshError, match="the judge was killed by signal 9"):
            judge.judge([Packet(SSH, 60)])


def test_a_damaged_image_is_refused_and_nothing_is_left_behind() -> None:
    with Judge() as judge:
        directory, pid = judge._directory, judge._process.pid
        with pytest.raises(TapmeshError, match="bytes are no policy image"):
            judge.load(DROPS_SSH, b"nonsense")
    assert not directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
