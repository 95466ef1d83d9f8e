"""Metering as a whole, beside others: what it takes from the packet path, and softflowd and nfpcapd on the same packets.

| case | what |
|---|---|
| packet path | `tapmesh replay` with 100 rules and a tunnel, without and with flows: packets per second of wall time, turn by turn |
| file | all flows of a capture, exported by IPFIX to nobody: packets per CPU second of all processes, start-up apart |
| live | on veth at one rate: CPU time per packet of all processes, and the share of packets that were in no record that nfcapd received |

Ours captures, filters and meters in processes of their own; softflowd and nfpcapd do all in one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench import brokers, programs, workload
from bench.brokers import missing, pinned
from bench.replay import N_RULES, TOOL
from bench.report import Row
from bench.wires import Wires, wires

_PORT = 9995
_FLOWS = f"flows: {{max_flows: 200_000, exports: {{to: {{kind: ipfix, to: 'udp://127.0.0.1:{_PORT}'}}}}}}\n"
_LIVE_RATE = 200_000.0
_SOFTFLOWD = ("softflowd", "-n", f"127.0.0.1:{_PORT}", "-v", "10", "-d", "-m", str(200_000))


def measure(quick: bool) -> Iterator[Row]:
    n, turns = (20_000, 1) if quick else (1_000_000, 3)
    for size in ("imix",) if quick else ("imix", "64"):
        with programs.scratch() as directory:
            capture = directory / "in.pcap"
            workload.write_capture(capture, size, n)
            yield _path(size, capture, n, turns, directory)
            yield from _file(size, capture, n, turns, directory)
    if os.geteuid() == 0 and not missing(commands=("ip", "tc", "taskset", "nfcapd", "nfdump")):
        yield from _live("imix", 0.25 if quick else 5.0, 1 if quick else 3)


def _replay(config: Path, capture: Path, directory: Path) -> dict[str, object]:
    out = directory / "out"
    programs.run([*programs.TAPMESH, "replay", str(capture), "--config", str(config), "--out", str(out)])
    run: dict[str, object] = json.loads((out / "run.json").read_text())
    run["ledger"] = json.loads((out / "ledger.json").read_text())
    shutil.rmtree(out)
    return run


def _path(size: str, capture: Path, n: int, turns: int, directory: Path) -> Row:
    plain, metered = directory / "plain.yaml", directory / "metered.yaml"
    plain.write_text(programs.config_text(capture, TOOL, workload.terms(N_RULES)))
    metered.write_text(plain.read_text() + _FLOWS)
    rates: dict[Path, list[float]] = {plain: [], metered: []}
    for _ in range(turns):
        for config, found in rates.items():
            programs.touch_memory(directory, capture.stat().st_size)
            found.append(float(str(_replay(config, capture, directory)["packets_per_s"])))
    without, with_flows = (statistics.median(found) for found in rates.values())
    ratios = {"without flows": with_flows / without}
    return Row("meters", f"{size}, packet path with flows", with_flows, "packets/s", ratios, {"packets": n})


def _file(size: str, capture: Path, n: int, turns: int, directory: Path) -> Iterator[Row]:
    config, empty = directory / "flows.yaml", directory / "empty.pcap"
    config.write_text(f'node: bench\ninputs: {{m: {{kind: pcap, files: ["{capture}"]}}}}\n' + _FLOWS)
    workload.write_capture(empty, size, 0)
    ours, stage = [], []
    for _ in range(turns):
        run = _replay(config, capture, directory)
        stages = run["stages"]
        assert isinstance(stages, dict)
        ours.append(n / float(str(run["cpu_s"])))
        stage.append(n / float(stages["flows"]["cpu_s"]))
    ratios, peers = {}, {}
    for name, command in (
        ("softflowd", [*_SOFTFLOWD, "-c", "none", "-p", str(directory / "pid"), "-r"]),
        ("nfpcapd", ["nfpcapd", "-w", str(directory / "nf"), "-S", "0", "-r"]),
    ):
        if absent := missing(commands=(command[0],)):
            print(f"bench meters: {name} is not measured: {absent}", file=sys.stderr)
            continue
        (directory / "nf").mkdir(exist_ok=True)
        costs = [(programs.run([*command, str(capture)]).cpu_s, programs.run([*command, str(empty)]).cpu_s) for _ in range(turns)]
        rates = [n / max(whole - start, 1e-9) for whole, start in costs]
        peers[name] = statistics.median(rates)
        ratios[name] = statistics.median(ours) / peers[name]
    yield Row("meters", f"{size}, file, all processes", statistics.median(ours), "packets per CPU second", ratios, {"packets": n})
    alone = {name: statistics.median(stage) / rate for name, rate in peers.items()}
    yield Row("meters", f"{size}, file, flows stage alone", statistics.median(stage), "packets per CPU second", alone, {"packets": n})


def _live(size: str, seconds: float, turns: int) -> Iterator[Row]:
    found: dict[str, list[tuple[float, float]]] = {}
    sides = ["ours"] + ([] if missing(commands=("softflowd",)) else ["softflowd"])
    with programs.scratch() as directory:
        capture = directory / "in.pcap"
        workload.write_capture(capture, size, 16_384)
        for _ in range(turns):
            for side in sides:
                turn = _live_ours if side == "ours" else _live_softflowd
                found.setdefault(side, []).append(turn(capture, int(_LIVE_RATE * seconds), directory))
    values = {side: statistics.median(cpu for cpu, _ in runs) for side, runs in found.items()}
    for side, runs in found.items():
        ratios = {"softflowd": values["softflowd"] / values["ours"]} if side == "ours" and "softflowd" in values else {}
        detail = {"loss": round(max(loss for _, loss in runs), 5), "offered": round(_LIVE_RATE), "turns": len(runs)}
        yield Row("meters", f"{size}, live, {side}", values[side], "ns/packet", ratios, detail)


def _offer(command: list[str], capture: Path, n: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    words = ["taskset", "-c", str(cores[0]), sys.executable, "-m", "bench.offer", "a0", str(capture), str(_LIVE_RATE), str(n)]
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the generator: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _collector(lines: Wires, directory: Path) -> Iterator[list[int]]:
    """nfcapd on B; after it has ended, the packets in the records that it received are in the list."""
    into, found = directory / "nf", list[int]()
    into.mkdir()
    words = lines.command(lines.b, ["nfcapd", "-w", str(into), "-p", str(_PORT), "-b", "127.0.0.1", "-S", "0", "-B", str(1 << 22)])
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield found
        time.sleep(0.5)  # what was sent last is in the socket
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(programs.STOP_S)
        text = subprocess.run(["nfdump", "-R", str(into), "-q", "-N", "-o", "fmt:%pkt;%opkt"], capture_output=True, text=True).stdout
        found.append(sum(int(n) for line in text.splitlines() if ";" in line for n in line.split(";")))
        shutil.rmtree(into)


def _live_ours(capture: Path, n: int, directory: Path) -> tuple[float, float]:
    """(ns of CPU per packet sent, share that was in no record)."""
    config = directory / "live.yaml"
    config.write_text("node: bench\ninputs: {span: {kind: afpacket, interface: b0}}\n" + _FLOWS)
    with wires() as lines:
        lines.drop_at_ingress()
        with _collector(lines, directory) as found, programs.agent(config, pinned(lines.command(lines.b, []))) as process:
            status = [*programs.TAPMESH, "status", "--json", "--name", programs.agent_name()]
            _until(lambda: '"running"' in _said(status) and _flows(status).get("metered_packets") == 0)
            before = programs.cpu_ns(programs.family(process.pid))
            _offer(lines.command(lines.a, []), capture, n)
            _until(lambda: _flows(status).get("in_flight_packets") == 0)
            spent = programs.cpu_ns(programs.family(process.pid)) - before
    return spent / n, 1 - found[0] / n


def _said(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout


def _flows(command: list[str]) -> dict[str, int]:
    said = _said(command)
    found: dict[str, int] = json.loads(said)["ledger"]["flows"] if said else {}
    return found


def _until(is_so: object, within_s: float = 300.0) -> None:
    assert callable(is_so)
    end = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > end:
            raise RuntimeError("the agent is not up, or does not come to an end")
        time.sleep(0.2)


def _live_softflowd(capture: Path, n: int, directory: Path) -> tuple[float, float]:
    with wires() as lines:
        lines.drop_at_ingress()
        control = directory / "softflowd.ctl"
        words = [*_SOFTFLOWD, "-p", str(directory / "softflowd.pid"), "-c", str(control), "-i", "b0"]
        with (
            _collector(lines, directory) as found,
            brokers.background(pinned(lines.command(lines.b, words)), until="Exporting") as running,
        ):
            pids = running.pids()
            before = programs.cpu_ns(pids)
            _offer(lines.command(lines.a, []), capture, n)
            time.sleep(0.5)  # nothing says when it has read what was captured
            spent = programs.cpu_ns(pids) - before
            # On SIGTERM softflowd 1.1 exports nothing of what it holds.
            programs.run(["softflowctl", "-c", str(control), "shutdown"])
            time.sleep(0.5)
    return spent / n, 1 - found[0] / n
