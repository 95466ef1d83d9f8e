"""What a running agent takes: PSS of all its processes while traffic flows, rings included.

PSS counts a page that n processes share as 1/n in each; pages of the rings that nobody has mapped are added by what their files occupy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import programs, workload
from bench.report import Row

MIB = 1 << 20
PATIENCE_S = 60.0


_IPFIX = "exports: {to: {kind: ipfix, to: 'udp://127.0.0.1:9'}}"
FLOWS = {
    "": "",
    ", flows to a collector": f"flows: {{{_IPFIX}}}\n",
    ", flows to a collector and a store of files": f"flows: {{{_IPFIX}, store: {{kind: parquet, directory: store, flush_s: 1}}}}\n",
}


def measure(quick: bool) -> Iterator[Row]:
    for words, part in list(FLOWS.items())[: 1 if quick else None]:
        yield _measure(words, part, *((20_000, 200) if quick else (400_000, 5_000)))


def _measure(words: str, part: str, n_packets: int, wanted: int) -> Row:
    with programs.scratch() as directory, programs.sink() as receiver:
        capture, config = directory / "in.pcap", directory / "bench.yaml"
        workload.write_capture(capture, "imix", n_packets)
        tool = f"{{tunnel: {{kind: gre-udp, remote: 127.0.0.1, port: {receiver.getsockname()[1]}, key: 7, sequence: true}}}}"
        config.write_text(programs.config_text(capture, tool, workload.terms(100), pace=str(n_packets // 10)) + part)
        with programs.agent(config) as process:
            received = 0
            while received < wanted:
                n = programs.drain(receiver, PATIENCE_S)
                if not n:
                    raise RuntimeError(f"{received} of {wanted} frames came, then none for {PATIENCE_S} s")
                received += n
            total, detail = footprint(programs.family(process.pid))
    case = f"running agent, one worker a stage, 100 rules, traffic flowing{words}"
    return Row("memory", case, total / MIB, "MiB", {}, detail)


def footprint(pids: list[int]) -> tuple[int, dict[str, Any]]:
    """(bytes of all processes of the agent, rings included; of what that is made)."""
    found = [_process(pid) for pid in pids]
    rings = _rings(f"tapmesh-{programs.agent_name()}")
    total = sum(pss for _, pss, _ in found) + max(0, rings - sum(shared for _, _, shared in found))
    return total, {"processes_mib": {name: round(pss / MIB, 1) for name, pss, _ in found if pss}, "rings_mib": round(rings / MIB, 1)}


def _process(pid: int) -> tuple[str, int, int]:
    """(name and pid, PSS, the shared memory in it), in bytes; zeros when it has just gone."""
    with contextlib.suppress(OSError):
        rollup = {
            name: value for name, _, value in (row.partition(":") for row in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
        }
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        pss, shared = (int(rollup[key].split()[0]) * 1024 for key in ("Pss", "Pss_Shmem"))
        return f"{name} {pid}", pss, shared
    return "", 0, 0


def _rings(name: str) -> int:
    """What the files of a pipeline occupy."""
    root = Path(os.environ.get("TAPMESH_SHM", "/dev/shm"))
    return sum(path.stat().st_blocks * 512 for path in (root / name).iterdir())
