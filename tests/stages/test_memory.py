"""Memory access of kernels: right values, real atomics in the machine code, and the same answers as plain Python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from broker.core.ring import PLACE
from stages import atomics
from stages.jit import PLAIN
from stages.memory import allow
from tests.stages.own import kernel, memory

ROOT = Path(__file__).resolve().parents[2]

compiled_only = pytest.mark.skipif(PLAIN, reason="kernels run as plain Python here: there is no machine code to look at")


@kernel
def all_accesses(at: int, out: int) -> int:
    memory.store64(out, memory.load8(at))
    memory.store64(out + 8, memory.load16(at + 1))
    memory.store64(out + 16, memory.load32(at + 1))
    memory.store64(out + 24, memory.load64(at + 1))
    memory.store64(out + 32, memory.load_be16(at + 1))
    memory.store64(out + 40, memory.load_be32(at + 1))
    memory.store64(out + 48, memory.load_be64(at + 1))
    memory.store8(at + 20, -1)
    memory.store16(at + 21, 0x12345)
    memory.store_be16(at + 23, 0x1122)
    memory.store_be32(at + 25, 0x33445566)
    memory.store_be64(at + 29, 0x0102030405060708)
    memory.copy(at + 40, at + 20, 17)
    memory.add64(out + 56, 41)
    memory.add64(out + 56, 1)
    memory.store64(out + 64, memory.shift_right(-1, 40))
    memory.store64(out + 72, memory.mix(-5, 0x7FFF_FFFF_FFFF_FFFF))
    memory.store64(out + 80, memory.fetch_add(out + 88, 3))
    memory.store64(out + 96, memory.compare_swap(out + 88, 3, 9))
    memory.store64(out + 104, memory.compare_swap(out + 88, 3, 10))
    return 1


def filled() -> tuple[np.ndarray, np.ndarray]:
    source = np.zeros(64, np.uint8)
    source[:16] = np.arange(240, 256)
    out = np.zeros(16, np.int64)
    allow(int(source.ctypes.data), source.nbytes)
    allow(int(out.ctypes.data), out.nbytes)
    return source, out


def test_every_access_has_the_value_that_struct_has() -> None:
    source, out = filled()
    raw = source.tobytes()
    all_accesses(int(source.ctypes.data), int(out.ctypes.data))
    expected = [raw[0]] + [int.from_bytes(raw[1 : 1 + n], "little") for n in (2, 4)]
    expected += [int.from_bytes(raw[1:9], "little", signed=True)]
    expected += [int.from_bytes(raw[1 : 1 + n], "big") for n in (2, 4)] + [int.from_bytes(raw[1:9], "big", signed=True)]
    product = ((1 << 64) - 5) * 0x7FFF_FFFF_FFFF_FFFF
    folded = ((product >> 64) ^ product) & ((1 << 64) - 1)
    expected += [42, (1 << 24) - 1, folded - (1 << 64) if folded >> 63 else folded, 0, 9, 3, 9]
    assert out[:14].tolist() == expected
    written = bytes.fromhex("ff452311223344556601020304050607 08")
    assert source[20:37].tobytes() == written
    assert source[40:57].tobytes() == written


@compiled_only
def test_plain_python_gives_the_same_and_checks_bounds() -> None:
    program = (
        "from tests.stages import test_memory as t; from stages import memory; import numpy as np\n"
        "t.test_every_access_has_the_value_that_struct_has()\n"
        "memory.forbid_all(); a = np.zeros(8, np.uint8); memory.allow(int(a.ctypes.data), 8)\n"
        "at = int(a.ctypes.data)\n"
        "for call in (lambda: memory.load8(at + 8), lambda: memory.load16(at + 7), lambda: memory.store32(at + 5, 1),\n"
        "             lambda: memory.copy(at, at + 1, 8)):\n"
        "    try: call()\n"
        "    except memory.OutOfBoundsError: continue\n"
        "    raise SystemExit('not caught')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@compiled_only
def test_a_polling_loop_reads_memory_each_time_round() -> None:
    """LLVM moves a plain load out of such a loop, and the other process's store is never seen."""

    @kernel
    def poll(at: int) -> int:
        n = 0
        while memory.load_acquire(at) == 0 and n < 1000:
            n += 1
        return n

    cell = np.zeros(1, np.int64)
    assert poll(int(cell.ctypes.data)) == 1000
    (ir,) = poll.inspect_llvm().values()
    body = ir[ir.index("define") :]
    assert re.search(r"load atomic i64, .* acquire, align 8", body)
    (assembly,) = poll.inspect_asm().values()
    loop = re.search(r"\n(\.LBB\d+_\d+):(?:(?!\n\.LBB).)*?\((%r\w+)\).*?j\w+\t\1", assembly, re.DOTALL)
    assert loop, assembly


@compiled_only
def test_a_publisher_fences_between_its_cursor_and_the_look_at_who_sleeps() -> None:
    place, row = np.zeros(1, PLACE), np.zeros(64, np.int64)
    at = int(row.ctypes.data)
    place["seq"], place["stride"], place["cursor_at"], place["after_at"], place["after_n"], place["after_stride"] = 4, 1, at, at + 256, 1, 1
    assert atomics.publish(int(place.ctypes.data)) == 0
    assert (row[0], place["seq"][0]) == (5, 5)
    program = (
        "import numba\n"
        "from stages import atomics\n"
        "publish = numba.njit(error_model='numpy')(atomics.publish.py_func)\n"
        "publish.compile('int64(int64)')\n"
        "print(*publish.inspect_llvm().values())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TAPMESH_KERNELS": "jit"}
    ir = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    body = ir[ir.index("define") :]
    blocks = dict(re.findall(r"^(\S+):[^\n]*\n((?:  .*\n|\n)*)", body[: body.index("\n}")] + "\n", re.MULTILINE))
    (commit,) = (label for label, text in blocks.items() if "store atomic i64" in text)
    store = blocks[commit].index("store atomic i64")
    assert "release" in blocks[commit][store : blocks[commit].index("\n", store)]
    assert store < blocks[commit].index("fence seq_cst")
    todo, before = [next(iter(blocks))], set[str]()  # what can run without having passed the fence
    while todo:
        label = todo.pop()
        before.add(label)
        if label != commit:
            todo += [name for name in re.findall(r"label %([\w.]+)", blocks[label]) if name not in before]
    assert commit in before
    looks = {label for label, text in blocks.items() if "load atomic i64" in text}
    assert looks
    assert not looks & before


ADDER = Path(__file__).with_name("adder.py")


@compiled_only
def test_two_processes_lose_no_addition_to_each_other(tmp_path: Path) -> None:
    path = f"{tmp_path}/cells"
    with open(path, "wb") as file:
        file.truncate(4096)
    processes = [
        subprocess.Popen([sys.executable, str(ADDER), path, str(i)], env={**os.environ, "PYTHONPATH": str(ADDER.parents[2])})
        for i in (0, 1)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    cells = np.fromfile(path, np.int64)
    assert cells[8] == 600_000
    assert cells[9] == 1_200_000
