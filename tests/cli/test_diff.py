"""``tapmesh diff``: which packets would have another fate, by map, tool and conversation; of a capture, and of a running pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.tapmesh import numbered, running, tapmesh
from tests.packets import arp, ethernet, pcap, tcp_frame
from tests.waiting import until

CONFIG = """
inputs: {{span: {{kind: pcap, file: {directory}/in.pcap, pace: {pace}}}}}
tools:
  {tools}
maps:
  - name: web
    rules: {web}
    to: [ids]
{more}
"""
WEB = tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80)
WEB2 = tcp_frame("10.0.0.3", 4000, "10.0.0.2", 80)
SSH = tcp_frame("10.0.0.1", 4000, "10.0.0.2", 22)
ARP = ethernet(arp(1, ("02:00:00:00:00:01", "10.0.0.1"), ("02:00:00:00:00:02", "10.0.0.2")), type=0x806)
N, PACE = 100_000, 1_000  # more than a minute's worth: it is to run for as long as it is looked at
TRAFFIC = [SSH, WEB, WEB, ARP, WEB2, SSH]


def write(path: Path, web: str, *, more: str = "", tools: tuple[str, ...] = ("ids", "store"), pace: object = "max") -> Path:
    listed = "\n  ".join(f"{tool}: {{kind: pcap, file: {path.parent}/{tool}.pcap}}" for tool in tools)
    path.write_text(CONFIG.format(directory=path.parent, web=web, more=more, tools=listed, pace=pace))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "in.pcap").write_bytes(pcap(TRAFFIC))
    return write(tmp_path / "old.yaml", '[{drop: "tcp port 22"}, {pass: tcp}]')


def diff(*arguments: object, status: int) -> dict[str, Any]:
    done = tapmesh("diff", *arguments, "--json")
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_packets_that_change_are_counted_by_map_tool_and_conversation(old: Path, tmp_path: Path) -> None:
    """In the new policy ssh passes, web does not, and arp goes to a tool that only it has; tools and maps stand in another order."""
    more = "  - {name: others, rules: [{pass: arp}], to: extra}"
    new = write(tmp_path / "new.yaml", '[{pass: "tcp port 22"}]', more=more, tools=("extra", "store", "ids"))
    found = diff(old, new, "--capture", tmp_path / "in.pcap", "--top", 2, status=1)
    p = found["packets"]
    assert (p["file"], p["packets"], p["changed"], p["changed_bytes"]) == (str(tmp_path / "in.pcap"), 6, 6, sum(map(len, TRAFFIC)))
    assert {(m["map"], m["before"], m["after"]): (m["packets"], m["bytes"]) for m in p["maps"]} == {
        ("web", "drop", "pass"): (2, 2 * len(SSH)),
        ("web", "pass", "none"): (3, 3 * len(WEB)),
        ("others", "none", "pass"): (1, len(ARP)),
    }
    assert {(t["tool"], t["change"]): t["packets"] for t in p["tools"]} == {
        ("ids", "gained"): 2,
        ("ids", "lost"): 3,
        ("extra", "gained"): 1,
    }
    assert {(c["before"], c["after"]): c["packets"] for c in p["causes"]} == {
        ("rule", "forwarded"): 2,
        ("forwarded", "filtered"): 3,
        ("filtered", "forwarded"): 1,
    }
    assert [(t["source"], t["destination_port"], t["packets"]) for t in p["talkers"]] == [("10.0.0.1", 22, 2), ("10.0.0.1", 80, 2)]
    assert [example["packet"] for example in p["examples"]] == [1, 2, 3, 4, 5, 6]
    assert {(r["map"], r["change"], r["action"], r["expression"]) for r in found["rules"]} == {
        ("web", "removed", "drop", "tcp port 22"),
        ("web", "removed", "pass", "tcp"),
        ("web", "added", "pass", "tcp port 22"),
    }


def test_the_text_says_the_same_to_people(old: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.yaml", '[{drop: "tcp port 22"}, {drop: "host 10.0.0.3"}, {pass: tcp}]')
    done = tapmesh("diff", old, new, "--capture", tmp_path / "in.pcap")
    assert done.returncode == 1
    assert (
        done.stdout
        == f"""\
maps: reload: web: rules 2 -> 3
rules of map web:
  + rule 2  drop: host 10.0.0.3

{tmp_path}/in.pcap: 6 packets, 1 of them (17 %, 54 B) change their fate

  map  before  after  packets  bytes
  ---  ------  -----  -------  -----
  web  pass    drop         1   54 B

  tool  change  packets  bytes
  ----  ------  -------  -----
  ids   lost          1   54 B

  fate before  after  packets
  -----------  -----  -------
  forwarded    rule         1

  source         destination  protocol  packets  bytes
  -------------  -----------  --------  -------  -----
  10.0.0.3:4000  10.0.0.2:80  tcp             1   54 B

the first are packets 5; why: tapmesh explain --config {new} --capture {tmp_path}/in.pcap --packet 5
"""
    )


def test_policies_that_say_the_same_in_other_words_change_nothing(old: Path, tmp_path: Path) -> None:
    new = write(tmp_path / "new.yaml", '[{drop: "tcp src port 22 or tcp dst port 22"}, {pass: "ip proto 6"}]')
    found = diff(old, new, "--capture", tmp_path / "in.pcap", status=0)
    assert (found["packets"]["packets"], found["packets"]["changed"], found["packets"]["talkers"]) == (6, 0, [])
    assert found["configuration"][0]["part"] == "maps"


def test_without_packets_the_configurations_are_compared(old: Path, tmp_path: Path) -> None:
    done = tapmesh("diff", old, old)
    assert (done.returncode, done.stdout) == (0, "the configurations say the same\n")
    new = write(tmp_path / "new.yaml", '[{pass: tcp}, {drop: "tcp port 22"}]')
    found = diff(old, new, status=1)
    assert found["packets"] is None
    ((what, before, after),) = [(r["change"], r["before"], r["after"]) for r in found["rules"]]
    assert (what, {before, after}) == ("moved", {0, 1})


def test_trouble_has_a_status_of_its_own(old: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("maps: 1\n")
    (tmp_path / "bad.pcap").write_bytes(pcap(TRAFFIC)[:-3])
    for arguments, words in (
        ([tmp_path / "bad.yaml"], "bad.yaml:1:"),
        ([old, "--capture", tmp_path / "absent.pcap"], "absent.pcap: cannot be opened"),
        ([old, "--capture", tmp_path / "bad.pcap"], "ends in the middle of a record"),
        ([old, "--live", "--name", "absent"], "no pipeline 'absent' is running"),
        ([old, "--capture", tmp_path / "in.pcap", "--input", "nobody"], "there is no input 'nobody'"),
    ):
        done = tapmesh("diff", old, *arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
        assert words in done.stderr, done.stderr


def test_a_running_pipeline_is_sampled_and_not_disturbed(tmp_path: Path) -> None:
    """Its tools and inputs have the slots that they were given at its start; the files compared list them in another order."""
    (tmp_path / "in.pcap").write_bytes(pcap(numbered(N)))
    config = write(tmp_path / "c.yaml", "[{pass: udp}]", pace=PACE)
    old = write(tmp_path / "old.yaml", "[{pass: udp}]", tools=("store", "ids"), pace=PACE)
    new = write(tmp_path / "new.yaml", '[{pass: "udp and not src port 4001"}]', tools=("store", "ids"), pace=PACE)
    with running(config, tmp_path) as broker:
        broker.wait_up()
        until(lambda: broker.cursor("send") >= 1, "a block to be sent")
        p = diff(old, new, "--live", "--name", broker.name, "--seconds", "1", status=1)["packets"]
        assert broker.stop() == 0, broker.stderr
        assert broker.ledger()["balanced"]
    assert p["pipeline"] == broker.name
    assert 0 < p["packets"] <= N
    assert p["changed"] == sum(m["packets"] for m in p["maps"]) == p["tools"][0]["packets"]
    assert 0 < p["changed"] < p["packets"] / 25  # one of 50 flows
    (talker,) = p["talkers"]
    assert (talker["source"], talker["source_port"], talker["packets"]) == ("10.0.0.1", 4001, p["changed"])
    assert (p["tools"][0]["tool"], p["tools"][0]["change"]) == ("ids", "lost")
