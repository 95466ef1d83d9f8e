"""Kernels that were compiled ahead into a shared object, which Python imports as an extension module; numba has no part in it.

| place | made by | compiled for |
|---|---|---|
| `kernels.so` in the cache directory of these sources (`cache.py`) | the first start, `make kernels` | this machine |
| `stages/kernels.so` | `make slim`: for an agent without numba | what `--cpu` said, and all CPUs that have more |

The first that fits is taken. A shared object says of which sources it was made and what it asks of the CPU, and one that does not fit is
not used.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from broker.core.errors import TapmeshError
from stages import cache

NAME = "kernels"
SHIPPED = Path(__file__).with_name(f"{NAME}.so")
_MODES = ("auto", "ahead", "jit", "compile")

F = TypeVar("F", bound=Callable[..., Any])


class KernelsError(TapmeshError):
    """There is no shared object of kernels that can be used here, and no numba to do without."""


def choose() -> tuple[str, Any]:
    """(MODE of `stages.jit`, the module of kernels if that is ahead). KernelsError when the way that was asked for is not there."""
    if _is_set("NUMBA_DISABLE_JIT"):
        return "plain", None
    asked = os.environ.get("TAPMESH_KERNELS") or "auto"
    if asked not in _MODES:
        raise KernelsError(f"TAPMESH_KERNELS={asked}: expected one of {', '.join(_MODES[:3])}")
    if asked in ("jit", "compile"):
        return asked, None
    if is_checked():
        module, reasons = None, ["NUMBA_BOUNDSCHECK is set, which is for kernels that numba compiles"]
    else:
        module, reasons = find()
    if module is not None:
        return "ahead", module
    if asked == "ahead" or importlib.util.find_spec("numba") is None:
        raise KernelsError("; ".join(reasons))
    return "jit", None


def _is_set(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def is_checked() -> bool:
    """Whether kernels are to check every access to an array, which only numba can add."""
    return _is_set("NUMBA_BOUNDSCHECK")


def find() -> tuple[Any, list[str]]:
    """(the module, []), or (None, why there is none). Its attributes are the kernels: `stages.wire.parse.parse_packets` and so on."""
    digest = cache.digest()
    places, reasons = [SHIPPED], []
    try:
        places.insert(0, cache.directory(digest) / f"{NAME}.so")
    except cache.CacheError as error:  # what was shipped needs no cache
        reasons.append(str(error))
    for file in places:
        try:
            if not os.path.lexists(file):
                continue
            if file != SHIPPED:
                cache.check_owner(file.parent)
            module = _import(file)
            reason = _refusal(json.loads(module.made), digest)
        except (ImportError, ValueError, LookupError, AttributeError) as error:
            reason = str(error)
        except cache.CacheError as error:
            reasons.append(str(error))
            continue
        if not reason:
            return module, []
        reasons.append(f"{file}: {reason}")
    return None, reasons or [f"there are no compiled kernels, neither {places[0]} nor {SHIPPED}: python -m stages compile"]


def _refusal(made: dict[str, Any], digest: str) -> str:
    """Why it cannot be used here; empty if it can."""
    if made["sources"] != digest:
        return "was compiled of other sources than those here"
    if missing := sorted(set(made["needs"]) - cpu_flags()):
        return f"was compiled for {made['cpu']}, but this CPU has no {', '.join(missing)}"
    return ""


def _import(file: Path) -> Any:
    """Nothing in it runs on what not every CPU has, before a kernel is called."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(file))
    spec = importlib.util.spec_from_file_location(NAME, file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def call_of(module: Any, function: F) -> F:
    """What was compiled of it."""
    try:
        compiled: F = getattr(module, name_of(function))
    except AttributeError:
        raise KernelsError(f"{module.__file__}: has no kernel {name_of(function)}; TAPMESH_KERNELS=jit compiles any") from None
    return compiled


def cpu_flags() -> set[str]:
    """What this CPU has, by the names of /proc/cpuinfo, and what machine it is."""
    with open("/proc/cpuinfo") as file:
        for line in file:  # those of all cores are long
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return {*value.split(), platform.machine()}
    return {platform.machine()}
