"""Compile the kernels ahead, into one shared object: `python -m stages compile`.

numba translates each kernel; all that comes of it is put into one module with the ways in for Python, made internal but for the name of the
module, optimised once and as a whole by LLVM, and linked by the system's linker. numba's own optimiser and its ways in are switched off
meanwhile, since every kernel would pass the one with all that it calls, and the others are not used.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from broker.core.errors import TapmeshError
from stages import ahead, cache
from stages.ways_in import RESULTS, Kernel, module_text

HOST = "host"
LINKERS = (("ld", "-shared"), ("ld.lld", "-shared"), *((name, "-shared", "-nostdlib") for name in ("cc", "gcc", "clang")))
"""What may be there; the first that is makes it. Nothing is linked with: libc and Python are in the process already."""

_V2 = ("cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""What each level of the x86-64 psABI asks for, by the names of /proc/cpuinfo."""

_LLVM = {
    "abm": "lzcnt", "bmi1": "bmi", "lahf_lm": "sahf", "pclmulqdq": "pclmul", "pni": "sse3", "rdrand": "rdrnd", "sha_ni": "sha",
}  # fmt: skip
"""Flags of /proc/cpuinfo for which LLVM has another word. Without `abm` a CPU runs lzcnt, too, and as something else."""


class BuildError(TapmeshError):
    """No shared object can be made here."""


def linker() -> tuple[str, ...]:
    """How a shared object is linked on this machine. BuildError when there is no way."""
    for command, *options in LINKERS:
        if found := shutil.which(command):
            return (found, *options)
    names = ", ".join(command for command, *_ in LINKERS)
    raise BuildError(f"there is no linker ({names}): install binutils, or let numba compile at the first start")


def build(out: Path, cpu: str, progress: Callable[[str], None]) -> None:
    """All kernels into `out`. The process is of no use for kernels afterwards: they were compiled with other options than it would run."""
    link = linker()
    if cpu != HOST and cpu not in LEVELS:
        raise BuildError(f"--cpu {cpu}: expected {HOST} or one of {', '.join(LEVELS)}")
    os.environ |= {"TAPMESH_KERNELS": "compile", "NUMBA_OPT": "0"}  # before the first import of a kernel
    from stages import atomics  # noqa: F401 - the ring's kernels are kernels too
    from stages.jit import compile_all
    from stages.registry import import_stages

    import_stages()
    kernels, modules = [], []
    for done, total, function, made in compile_all():
        progress(f"compiling kernels {done}/{total}: {function.__qualname__}")
        modules.append(made.library._final_module.as_bitcode())
        if not function.__name__.startswith("_"):
            kernels.append(_described(ahead.name_of(function), made.fndesc))
    _link(_object(kernels, modules, cpu), link, out)


def _described(name: str, made: Any) -> Kernel:
    result = str(made.restype)
    assert result in RESULTS, f"{name} returns {result}"
    return Kernel(name, made.llvm_func_name, len(made.args), result)


def _object(kernels: list[Kernel], modules: Iterable[bytes], cpu: str) -> bytes:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    name, features = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features()) if cpu == HOST else (cpu, None)
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=name, features=features.flatten() if features else "", opt=3, reloc="pic", codemodel="default"
    )
    made = {"sources": cache.digest(), "cpu": name, "needs": sorted({platform.machine(), *_needs(cpu, features)})}
    whole = llvm.parse_assembly(module_text(kernels, ahead.NAME, json.dumps(made)))
    whole.triple, whole.data_layout = target.triple, str(target.target_data)
    for bitcode in modules:
        module = llvm.parse_bitcode(bitcode)
        for function in module.functions:
            if not function.is_declaration:
                function.linkage = "weak_odr"  # one of many, and not to be dropped because nothing of this module calls it
        whole.link_in(module)
    for thing in (*whole.functions, *whole.global_variables):
        if not thing.is_declaration and thing.name != f"PyInit_{ahead.NAME}":
            thing.linkage = "internal"
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(whole, builder)
    compiled: bytes = target.emit_object(whole)
    return compiled


def _needs(cpu: str, features: Any) -> Iterable[str]:
    """By the names of /proc/cpuinfo; of this machine those that LLVM knows, by nearly the same name or by another."""
    if cpu != HOST:
        return LEVELS[cpu]
    known = {_bare(name) for name, there in features.items() if there}
    return [flag for flag in ahead.cpu_flags() if _bare(_LLVM.get(flag, flag)) in known]


def _bare(name: str) -> str:
    return "".join(c for c in name if c.isalnum())


def _link(compiled: bytes, link: tuple[str, ...], out: Path) -> None:
    """Whole or not at all: another process may be waiting for it."""
    part, objects = out.with_name(f".{out.name}.{os.getpid()}"), out.with_name(f".{out.name}.{os.getpid()}.o")
    try:
        objects.write_bytes(compiled)
        done = subprocess.run([*link, "-o", str(part), str(objects)], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{link[0]} cannot link the kernels: {done.stderr.strip() or f'exit status {done.returncode}'}")
        part.chmod(0o644)
        part.rename(out)
    except OSError as error:
        raise BuildError(f"{out}: {error.strerror}") from None
    finally:
        objects.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
