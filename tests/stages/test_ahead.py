"""Kernels that were compiled ahead: taken only where they fit, callable as numba's are, and enough for an agent without numba."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages import ahead, atomics, build, cache
from stages.jit import MODE
from tests.again import run_again
from tests.cli.tapmesh import numbered, tapmesh
from tests.packets import pcap, read_pcap

ROOT = Path(__file__).resolve().parents[2]

FROM_LIBC = {"__errno_location", "memcpy", "memmove", "memset", "recvmmsg", "sendmmsg", "writev"}
FROM_PYTHON = {
    "PyBool_FromLong", "PyErr_Occurred", "PyErr_SetString", "PyExc_TypeError", "PyLong_AsLongLong", "PyLong_FromLongLong",
    "PyModule_AddStringConstant", "PyModule_Create2", "Py_IncRef", "_Py_NoneStruct",
}  # fmt: skip
"""All of them in its stable ABI."""

compiled_ahead = pytest.mark.skipif(MODE != "ahead", reason="kernels were not compiled ahead for this run: TAPMESH_KERNELS")


@pytest.fixture
def made() -> Path:
    return cache.directory(cache.digest()) / "kernels.so"


@compiled_ahead
def test_the_shared_object_asks_libc_and_python_for_what_every_version_has(made: Path) -> None:
    command = ["nm", "--dynamic", "--undefined-only", "--format=posix", made]
    symbols = {line.split()[0].partition("@")[0] for line in subprocess.check_output(command, text=True).splitlines()}
    assert symbols <= FROM_LIBC | FROM_PYTHON
    command[2] = "--defined-only"
    assert {line.split()[0] for line in subprocess.check_output(command, text=True).splitlines()} == {"PyInit_kernels"}


@compiled_ahead
def test_a_kernel_takes_integers_as_they_come_and_nothing_else() -> None:
    cell = np.zeros(1, np.int64)
    at = int(cell.ctypes.data)
    for value in (5, -1, -(1 << 63), (1 << 63) - 1, np.int64(-1), np.uint8(200), True):
        assert atomics.park(np.int64(at), value) is None
        assert cell[0] == value
        assert atomics.load_acquire(at) == value
    for arguments, error in (((), TypeError), ((at, 1), TypeError), (("1",), TypeError), ((1.0,), TypeError), ((1 << 63,), OverflowError)):
        with pytest.raises(error):
            atomics.load_acquire(*arguments)


def test_a_shared_object_says_why_it_is_not_for_this_machine() -> None:
    needs = ["avx9", platform.machine()]
    assert ahead._refusal({"sources": "a", "cpu": "x", "needs": []}, "b") == "was compiled of other sources than those here"
    assert ahead._refusal({"sources": "a", "cpu": "x86-64-v9", "needs": needs}, "a") == (
        "was compiled for x86-64-v9, but this CPU has no avx9"
    )
    assert ahead._refusal({"sources": "a", "cpu": "x", "needs": [platform.machine()]}, "a") == ""


@pytest.mark.parametrize("trouble", ["none", "no home", "others can write it", "not a shared object"])
def test_a_cache_that_cannot_be_used_does_not_keep_from_what_was_shipped(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped, own = tmp_path / "shipped.so", tmp_path / f"kernels-{cache.digest()}" / "kernels.so"
    monkeypatch.setenv("TAPMESH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(ahead, "SHIPPED", shipped)
    imported: list[Path] = []

    def import_(file: Path) -> SimpleNamespace:
        imported.append(file)
        if file == own:
            raise ImportError("invalid ELF header")
        return SimpleNamespace(made=json.dumps({"sources": cache.digest(), "cpu": "x", "needs": []}))

    monkeypatch.setattr(ahead, "_import", import_)
    shipped.touch()
    if trouble == "no home":
        monkeypatch.setattr(cache, "base_directory", _no_home)
    elif trouble != "none":
        own.parent.mkdir(mode=0o700)
        own.touch()
        if trouble == "others can write it":
            own.parent.chmod(0o777)
    module, reasons = ahead.find()
    assert (module is not None, reasons) == (True, [])
    assert imported == [*([own] if trouble == "not a shared object" else []), shipped]
    shipped.unlink()
    assert ahead.find()[0] is None
    words = {"none": "there are no compiled kernels", "no home": "no home", "others can write it": "others than this user can write it"}
    assert words.get(trouble, "invalid ELF header") in "; ".join(ahead.find()[1])


def _no_home() -> Path:
    raise cache.CacheError("no home")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
def test_what_a_level_asks_for_is_what_the_c_library_takes_it_for() -> None:
    """ld.so says which levels it supports here, and so do we."""
    said = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--help"], capture_output=True, text=True, check=True).stdout
    for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4"):
        assert (f"{level} (supported" in said) == (set(build.LEVELS[level]) <= ahead.cpu_flags()), level


NEEDED = (
    "_yaml", "annotated_types", "msgpack", "numpy", "numpy.libs", "pydantic", "pydantic_core", "pyzmq.libs", "structlog",
    "typing_extensions.py", "typing_inspection", "yaml", "zmq",
)  # fmt: skip


def _agent(directory: Path) -> tuple[Path, dict[str, str]]:
    """A Python of its own with a copy of the agent and what `requirements/slim.txt` installs: no numba, nothing cached.

    Returns its site-packages, and the environment to run it in.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory / "venv"], check=True)
    (site,) = (directory / "venv" / "lib").glob("python3*/site-packages")
    for folder in ("broker", "stages"):
        shutil.copytree(ROOT / folder, site / folder, ignore=shutil.ignore_patterns("__pycache__"))
    ours = Path(np.__file__).parents[1]
    for name in NEEDED:
        if (ours / name).exists():
            (site / name).symlink_to(ours / name)
    environment = {key: value for key, value in os.environ.items() if key not in ("TAPMESH_KERNELS", "PYTHONPATH")}
    return site, environment | {"TAPMESH_CACHE_DIR": str(directory / "cache")}


@compiled_ahead
def test_an_agent_without_numba_writes_the_same_files(tmp_path: Path, made: Path) -> None:
    source, config = tmp_path / "in.pcap", tmp_path / "c.yaml"
    source.write_bytes(pcap(numbered(3_000)))
    config.write_text(
        f"""node: test
inputs: {{span: {{kind: pcap, file: {source}}}}}
tools:
  all: {{kind: pcap, file: unused.pcap}}
  vxlan: {{tunnel: {{kind: vxlan, remote: 192.0.2.9, vni: 7}}}}
  gre: {{tunnel: {{kind: gre, remote: 192.0.2.9, key: 7, sequence: true, checksum: true}}}}
maps: [{{name: one, rules: [drop: "udp src port 4003", pass: "udp"], to: [all, vxlan, gre]}}]
"""
    )
    site, environment = _agent(tmp_path / "agent")
    shutil.copy(made, site / "stages" / "kernels.so")
    python = tmp_path / "agent" / "venv" / "bin" / "python"
    command = [python, "-I", "-m", "broker.cli.main", "replay", source, "--config", config, "--out", tmp_path / "slim"]
    slim = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (slim.returncode, slim.stderr) == (0, "")
    assert not (tmp_path / "agent" / "cache").exists()
    assert tapmesh("replay", source, "--config", config, "--out", tmp_path / "usual").returncode == 0
    for name in ("all.pcap", "vxlan.pcap", "gre.pcap", "ledger.json"):
        assert (tmp_path / "slim" / name).read_bytes() == (tmp_path / "usual" / name).read_bytes(), name
    assert len(read_pcap((tmp_path / "slim" / "gre.pcap").read_bytes())[1]) == 2_940


def test_without_numba_and_without_fitting_kernels_it_says_what_is_wrong(tmp_path: Path) -> None:
    site, environment = _agent(tmp_path)
    command = [tmp_path / "venv" / "bin" / "python", "-I", "-m", "stages", "capture", "--pipeline", "none"]

    def said() -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 78, done.stderr
        return done.stdout + done.stderr

    assert "there are no compiled kernels, neither" in said()
    (site / "stages" / "kernels.so").write_bytes(b"\x7fELF")
    assert f"{site}/stages/kernels.so: " in said()


@compiled_ahead
def test_kernels_that_numba_compiles_pass_the_same_tests() -> None:
    """A sample of them: those of all stages take minutes (TAPMESH_KERNELS=jit make test)."""
    run_again("tests/core/test_ring.py", timeout_s=300, TAPMESH_KERNELS="jit")
