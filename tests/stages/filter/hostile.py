"""Run by test_mutated.py, apart, because it may die: frames of mutations.py through the filter, each between forbidden pages.

python -m tests.stages.filter.hostile paths FRAMES      by index and memo, and every rule in order; prints where they differ
python -m tests.stages.filter.hostile twin FRAMES SEED  by index and memo, and by the slow twin
python -m tests.stages.filter.hostile lie               one byte too many claimed of each cut frame: prints the signals that ended it
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections import Counter

import numpy as np

from broker.core.layout import Geometry
from broker.core.model import Config, Input, Map, Rule, Tool
from tests import packets as p
from tests.stages.filter import mutations
from tests.stages.filter.guarded import Guarded
from tests.stages.filter.judging import Frame, Judge
from tests.stages.filter.mutations import Frames
from tests.stages.filter.test_maps import CAUSES
from tests.stages.filter.twin import Twin
from tests.stages.wire.reference import Answer, Reference

RULES = r"""
tcp dst port {80, 443, 8000-8100} and net {10.0.0.0/8, 192.168.0.0/16} | not (host 10.0.0.1 or port 53) and ip | icmp[0] = 8
tcp[tcpflags] & tcp-syn != 0 | ah or esp
udp src port 53 or tcp port 22 | vlan 10 and not port 80 | not tcp and not udp and ip6 | tcp flags syn/syn,ack | arp src net 10
inner (tcp port {80, 443}) | inner vxlan vni {7, 100, 5001} (not ip) | not inner (udp) and ip | inner gre key 7 | inner (inner (ip6))
ip[6:2] & 0x1fff != 0 and ip[8] < 65 | tcp[2:2] = tcp[0:2] or udp[4:2] = len - 34 | ip[2:2] > len | ether[12:2] - ether[0:2] > 0xfff0
src net 10.0.0.0/31 and dst net {10.0.0.2, 10.1.0.0/16, 224.0.0.0/4} | not src net 10.0.0.0/8 and not ip6 | ip6 net fe80::/10 and icmp6
fragment later and not port 53 | fragment first or tcp port 80 | udp and fragment {first, later} | tcp port 443 and fragment
ip6 ext {hopopts, routing} | ip6 ext fragment and not tcp | l4 {tcp, 132} and ip6 | payload begins "GET " | l4[2:2] < 1024 and not ip
mpls and ip | pppoes and tcp port 80 | vlan and vlan and ip | geneve and not ip | mpls 5 and not ip | pppoes 1 or ip6 | not vlan and iso
vlan {1-10, 4095} and ip6 | vlan depth >= 2 | pcp 5 or dscp ef | not ttl > 5 and not vlan | ether host {02:00:00:00:00:0a} and not multicast
less 60 and not broadcast | greater 200 or not ip6 protochain 6 | protochain 58 or ip proto 51 | sctp port 80 or (not sctp and port 0)
ip multicast or ip6 multicast | net 10.0.0.1 mask 255.0.0.255 | not ether src 02:00:00:00:00:00/02:00:00:00:00:00 | src and dst port 53
not (tcp and (src port 80 or not dst port 22)) and ip | port 80 and not vlan and not (net 10 or net 192.168) | icmp or igmp or icmp6
inner (src net 10.0.0.0/8 and not port 53) or inner mpls label 5 | inner (fragment or tcp flags syn) | inner (vlan 10 or ether multicast)
inner gtp teid 7 or inner geneve vni 7 or inner erspan id 7 | llc or stp | pppoes and not ip6 | not ip and not arp and ether proto 0x8847
"""
TEXTS = tuple(text.strip() for line in RULES.strip().splitlines() for text in line.split(" | "))
MODES = ("deliver", "drop", "libpcap")
INPUTS = (0, 1, 63)


def policy(texts: tuple[str, ...], n_maps: int, *, copies: int, first_mode: int = 0) -> Config:
    """Each text is a rule of a map and, further down, of the maps before it, which have other modes; a tool for each map."""
    maps = []
    for n in range(n_maps):
        mine = [text for copy in range(copies) for text in texts[(n + copy) % n_maps :: n_maps]]
        rules = tuple(Rule("drop" if i % 3 == 1 else "pass", text) for i, text in enumerate(mine))
        inputs = ("i0", "i63") if n % 5 == 4 else ()
        maps.append(Map(f"m{n}", rules, (f"t{n}",), inputs, MODES[(n + first_mode) % 3], n))  # type: ignore[arg-type]
    tools = tuple(Tool(f"t{n}", n, file="-") for n in range(n_maps + 1))
    return Config("node", tuple(Input(f"i{slot}", "pcap", slot) for slot in INPUTS), tools, tuple(maps), {}, (f"t{n_maps}",))


GEOMETRY = Geometry(max_packets=mutations.BLOCK, max_frames=mutations.BLOCK)
FIELDS = ("verdict", "cause", "flow")


def step(judge: Judge, memory: Guarded, number: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    memory.batch.seq = number
    assert judge.stage.step(memory.batch) == mutations.BLOCK
    return np.stack([memory.batch.verdicts[name].astype(np.int64) for name in FIELDS])


def said(frames: Frames, i: int, *answers: object) -> str:
    about = f"{frames.bytes_of(i).hex()} ({frames.lengths[i]} of {frames.wirelens[i]}, input {frames.inputs[i]})"
    return f"{about}: {' | '.join(map(str, answers))}"


def paths(n_frames: int) -> dict[str, object]:
    """By index and memo at the end of pages, in order there too, and by index and memo at the beginning of pages."""
    config, memory = policy(TEXTS, 15, copies=2), Guarded()
    fast, before = (Judge(config, geometry=GEOMETRY) for _ in range(2))
    exact = Judge(config, memo=False, index=False, geometry=GEOMETRY)
    differences: list[str] = []
    outcomes: Counter[int] = Counter()
    for number, frames in enumerate(mutations.blocks(1, n_frames)):
        memory.put(frames, at_end=True)
        found = [step(fast, memory, number), step(exact, memory, number)]
        memory.put(frames, at_end=False)
        found.append(step(before, memory, number))
        wrong = np.nonzero((found[0] != found[1]).any(0) | (found[0] != found[2]).any(0))[0]
        differences += [said(frames, i, *(one[:, i].tolist() for one in found)) for i in wrong[: 20 - len(differences)].tolist()]
        outcomes.update(found[0][0].tolist())
    counters = [judge.counters.tolist() for judge in (fast, exact, before)]
    rules = [judge.rules() for judge in (fast, exact, before)]
    texts = [rule.expression for m in config.maps for rule in m.rules]
    decided = {text for text, (packets, _, _) in zip(texts, rules[0], strict=True) if packets}
    return {
        "differences": differences,
        "counters agree": counters[0] == counters[1] == counters[2] and rules[0] == rules[1] == rules[2],
        "never decided": sorted(set(TEXTS) - decided),
        "verdicts": len(outcomes),
        "fragments": {name: fast.count(f"fragments_{name}_packets") for name in ("followed", "unknown", "tiny", "overlapping", "atomic")},
        "runs": [int(judge.stage.state.header["n_runs"][0]) for judge in (fast, exact, before)],
    }


# ---- the slow twin


class Dated(Reference):
    """At the time of the packet, which the twin does not know."""

    now_ns = 0
    answer: Answer | None = None

    def judge(self, frame: bytes, ts_ns: int, input_slot: int) -> Answer | None:
        self.answer = super().judge(frame, self.now_ns, input_slot)
        return self.answer

    def promises(self) -> bool:
        """False: of a datagram in more pieces than the filter must remember."""
        return self.answer is None or self.answer.datagram is None or not self.answer.datagram.loose


def twin(n_frames: int, seed: int) -> dict[str, object]:
    config, memory, reference = policy(TEXTS, 15, copies=1, first_mode=seed), Guarded(), Dated()
    judge, slow = Judge(config, geometry=GEOMETRY), Twin(config, reference=reference)
    differences: list[str] = []
    n_judged = 0
    for number, frames in enumerate(mutations.blocks(seed, n_frames)):
        memory.put(frames, at_end=True)
        verdicts, causes, _ = step(judge, memory, number)
        reference.datagrams.clear()  # time has passed
        for i in range(len(frames)):
            reference.now_ns = int(frames.times_ns[i])
            tools, why = slow.judge(Frame(frames.bytes_of(i), int(frames.wirelens[i]), int(frames.inputs[i])))
            n_judged += reference.promises()
            if reference.promises() and (sum(1 << tool for tool in tools), why) != (int(verdicts[i]), CAUSES[int(causes[i])]):
                differences.append(said(frames, i, verdicts[i], causes[i], sum(1 << tool for tool in tools), why))
        if len(differences) > 20:
            break
    return {"differences": differences[:20], "judged": n_judged}


# ---- what a read too far does


def lie() -> dict[str, object]:
    """A frame of which the rows claim one byte that is behind it: the process that looks at it ends."""
    config, memory = policy(TEXTS, 15, copies=1), Guarded()
    judge = Judge(config, geometry=GEOMETRY)
    whole = p.tcp_frame("10.0.0.1", 4000, "10.0.0.2", 80)
    ends = {}
    for size in (0, 13, 23, 33, 36, 37, 47):
        one = np.frombuffer(whole[:size].ljust(mutations.WIDTH, b"\0"), np.uint8)[None, :]
        length = np.array([size])
        memory.put(Frames(one, length, length + 100, np.array([0]), np.array([0])), at_end=True)
        for claimed in (0, 1):
            memory.batch.packets["caplen"][0] = size + claimed
            child = os.fork()
            if child == 0:
                judge.stage.step(memory.batch)
                os._exit(0)
            ends[f"{size}+{claimed}"] = -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return ends


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(3600)
    what, *numbers = sys.argv[1:]
    json.dump({"paths": paths, "twin": twin, "lie": lie}[what](*map(int, numbers)), sys.stdout)
