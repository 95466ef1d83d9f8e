"""Run by test_mutated.py, apart, because it may die: frames of mutations.py through the filter, each between forbidden pages.

    python -m tests.stages.filter.hostile WHAT [FRAMES SEED]

| what | prints |
|---|---|
| judged | where index and memo, every rule in order, and the twin for many frames (of what is not in tunnels) disagree |
| tunnels | where the filter and the slow twin disagree about what is in tunnels; and where both twins do about a few frames |
| lie | the signals that end the process when one byte more is claimed of a frame than it has |
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np

from broker.core.layout import Geometry
from broker.core.model import Config, Input, Map, Rule, Tool
from tests import packets as p
from tests.stages.filter import mutations
from tests.stages.filter.bulk_twin import BulkTwin
from tests.stages.filter.guarded import Guarded
from tests.stages.filter.judging import Frame, Judge
from tests.stages.filter.mutations import Frames
from tests.stages.filter.test_maps import CAUSES
from tests.stages.filter.twin import Twin
from tests.stages.wire.reference import Answer, Reference

RULES = r"""
not ip and not arp and ether proto 0x8847 | pppoes and tcp | mpls 5 and not ip
tcp dst port {80, 443, 8000-8100} and net {10.0.0.0/8, 192.168.0.0/16} | not (host 10.0.0.1 or port 53) and ip | icmp[0] = 8
tcp[tcpflags] & tcp-syn != 0 | ah or esp | udp src port 53 or tcp port 22 | vlan 10 and not port 80 | not tcp and not udp and ip6
tcp flags syn/syn,ack | arp src net 10 | inner (tcp port {80, 443}) | inner vxlan vni {7, 100, 5001} (not ip) | not inner (udp) and ip
inner gre key 7 | inner (inner (ip6)) | ip[6:2] & 0x1fff != 0 and ip[8] < 65 | tcp[2:2] = tcp[0:2] or udp[4:2] = len - 34 | ip[2:2] > len
ether[12:2] - ether[0:2] > 0xfff0 | src net 10.0.0.0/31 and dst net {10.0.0.2, 10.1.0.0/16, 224.0.0.0/4}
not src net 10.0.0.0/8 and not ip6 | ip6 net fe80::/10 and icmp6 | fragment later and not port 53 | fragment first or tcp port 80
udp and fragment {first, later} | tcp port 443 and fragment | ip6 ext {hopopts, routing} | ip6 ext fragment and not tcp
l4 {tcp, 132} and ip6 | payload begins "GET " | l4[2:2] < 1024 and not ip | mpls and ip | vlan and vlan and ip | geneve and not ip
pppoes 1 or ip6 | not vlan and iso | vlan {1-10, 4095} and ip6 | vlan depth >= 2 | pcp 5 or dscp ef | not ttl > 5 and not vlan
ether host {02:00:00:00:00:0a} and not multicast | less 60 and not broadcast | greater 200 or not ip6 protochain 6
protochain 58 or ip proto 51 | sctp port 80 or (not sctp and port 0) | ip multicast or ip6 multicast | net 10.0.0.1 mask 255.0.0.255
not ether src 02:00:00:00:00:00/02:00:00:00:00:00 | src and dst port 53 | not (tcp and (src port 80 or not dst port 22)) and ip
port 80 and not vlan and not (net 10 or net 192.168) | icmp or igmp or icmp6
inner (src net 10.0.0.0/8 and not port 53) or inner mpls label 5 | inner (fragment or tcp flags syn) | inner (vlan 10 or ether multicast)
inner gtp teid 7 or inner geneve vni 7 or inner erspan id 7 | llc or stp | pppoes and not ip6
not icmp6 and not ip6 | not icmp and ip6 | not ip6 proto 17 and not net 10 | not (icmp[0] = 8) and not vlan
"""
TEXTS = tuple(text.strip() for line in RULES.strip().splitlines() for text in line.split(" | "))
INNER = tuple(text for text in TEXTS if "inner" in text)
OUTER = tuple(text for text in TEXTS if text not in INNER)
MODES = ("deliver", "drop", "libpcap")
INPUTS = (0, 1, 63)


def policy(texts: tuple[str, ...], n_maps: int, *, first_mode: int = 0) -> Config:
    """Each text is a rule of one map; a tool for each map."""
    maps = []
    for n in range(n_maps):
        rules = tuple(Rule("drop" if i % 3 == 1 else "pass", text) for i, text in enumerate(texts[n::n_maps]))
        inputs = ("i0", "i63") if n % 5 == 4 else ()
        maps.append(Map(f"m{n}", rules, (f"t{n}",), inputs, MODES[(n + first_mode) % 3], n))  # type: ignore[arg-type]
    tools = tuple(Tool(f"t{n}", n, file="-") for n in range(n_maps + 1))
    return Config("node", tuple(Input(f"i{slot}", "pcap", slot) for slot in INPUTS), tools, tuple(maps), {}, (f"t{n_maps}",))


GEOMETRY = Geometry(max_packets=mutations.BLOCK, max_frames=mutations.BLOCK)
FIELDS = ("verdict", "cause", "flow")
CAUSE_NAMES = np.array([CAUSES.get(cause, "") for cause in range(max(CAUSES) + 1)])


def step(judge: Judge, memory: Guarded, number: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    memory.batch.seq = number
    assert judge.stage.step(memory.batch) == mutations.BLOCK
    return np.stack([memory.batch.verdicts[name].astype(np.int64) for name in FIELDS])


def said(frames: Frames, i: int, *answers: object) -> str:
    about = f"{frames.bytes_of(i).hex()} ({frames.lengths[i]} of {frames.wirelens[i]}, input {frames.inputs[i]})"
    return f"{about}: {' | '.join(map(str, answers))}"


def judged(n_frames: int, seed: int) -> dict[str, object]:
    """By index and memo and by every rule in order, both at the end of pages; at their beginning against the twin, without tunnels."""
    config, outer, memory = policy(TEXTS, 20, first_mode=seed), policy(OUTER, 20, first_mode=seed), Guarded()
    fast, beside = Judge(config, geometry=GEOMETRY), Judge(outer, geometry=GEOMETRY)
    exact, twin = Judge(config, memo=False, index=False, geometry=GEOMETRY), BulkTwin(outer)
    differences: list[str] = []
    contradictions: list[str] = []
    outcomes: Counter[int] = Counter()
    n_promised = 0
    for number, frames in enumerate(mutations.blocks(seed, n_frames)):
        memory.put(frames, at_end=True)
        found = step(fast, memory, number), step(exact, memory, number)
        differences += [said(frames, i, found[0][:, i], found[1][:, i]) for i in np.nonzero((found[0] != found[1]).any(0))[0]]
        outcomes.update(found[0][0].tolist())
        memory.put(frames, at_end=False)
        verdicts, causes, _ = step(beside, memory, number)
        wanted = twin.judge(frames)
        wrong = (verdicts.view(np.uint64) != wanted.verdicts) | (CAUSE_NAMES[causes] != wanted.causes)
        contradictions += [
            said(frames, i, verdicts[i], CAUSES[int(causes[i])], wanted.verdicts[i], wanted.causes[i])
            for i in np.nonzero(wrong & wanted.promised)[0]
        ]
        n_promised += int(wanted.promised.sum())
        if len(differences) + len(contradictions) > 50:
            break
    texts = [rule.expression for m in config.maps for rule in m.rules]
    decided = {text for text, (packets, _, _) in zip(texts, fast.rules(), strict=True) if packets}
    return {
        "differences": differences,
        "counters agree": fast.counters.tolist() == exact.counters.tolist() and fast.rules() == exact.rules(),
        "contradictions": contradictions,
        "promised": n_promised,
        "never decided": sorted(set(TEXTS) - decided),
        "verdicts": len(outcomes),
        "fragments": {name: fast.count(f"fragments_{name}_packets") for name in ("followed", "unknown", "tiny", "overlapping", "atomic")},
        "runs": [int(judge.stage.state.header["n_runs"][0]) for judge in (fast, exact)],
    }


# ---- the slow twin, which knows tunnels


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


def tunnels(n_frames: int, seed: int) -> dict[str, object]:
    config, memory, reference = policy(INNER, 7, first_mode=seed), Guarded(), Dated()
    judge, slow = Judge(config, geometry=GEOMETRY), Twin(config, reference=reference)
    contradictions: list[str] = []
    n_promised = 0
    for number, frames in enumerate(mutations.blocks(seed, n_frames)):
        memory.put(frames, at_end=False)
        verdicts, causes, _ = step(judge, memory, number)
        for i, (wanted, why, promised) in enumerate(twin_judges(slow, reference, frames)):
            n_promised += promised
            if promised and (wanted, why) != (int(verdicts[i]), CAUSES[int(causes[i])]):
                contradictions.append(said(frames, i, verdicts[i], causes[i], wanted, why))
        if len(contradictions) > 50:
            break
    return {"contradictions": contradictions, "promised": n_promised, "twins": twins(seed)}


def twin_judges(slow: Twin, reference: Dated, frames: Frames) -> Iterator[tuple[int, str, bool]]:
    """Verdict, cause, and whether the filter promises to say the same."""
    reference.datagrams.clear()  # time has passed
    for i in range(len(frames)):
        reference.now_ns = int(frames.times_ns[i])
        tools, why = slow.judge(Frame(frames.bytes_of(i), int(frames.wirelens[i]), int(frames.inputs[i])))
        yield sum(1 << tool for tool in tools), why, reference.promises()


def twins(seed: int) -> list[str]:
    """Where both disagree, of a few frames."""
    config, reference, frames = policy(OUTER, 20, first_mode=seed), Dated(), mutations.block(seed, 0).first(1500)
    slow, found = Twin(config, reference=reference), BulkTwin(config).judge(frames)
    contradictions: list[str] = []
    for i, wanted in enumerate(twin_judges(slow, reference, frames)):
        one = int(found.verdicts[i]), str(found.causes[i]), bool(found.promised[i])
        if one != wanted:
            contradictions.append(said(frames, i, one, wanted))
    return contradictions


# ---- what a read too far does


def lie() -> dict[str, object]:
    """A frame of which the rows claim one byte that is behind it: the process that looks at it ends."""
    config, memory = policy(("tcp dst port 80 and tcp flags syn",), 1), Guarded()
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
    json.dump({"judged": judged, "tunnels": tunnels, "lie": lie}[what](*map(int, numbers)), sys.stdout)
