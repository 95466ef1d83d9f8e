"""Where compiled kernels are kept.

numba's own cache does not see that a callee or a constant in another file has changed, nor which checks were on, so the directory is
named by a digest of everything that kernels are made of. What is in it is code: it belongs to the user that runs it, mode 0700.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from broker.core.errors import TapmeshError

_ROOT = Path(__file__).resolve().parent.parent
_SOURCES = (
    "stages/**/*.py",
    *(f"broker/core/{name}.py" for name in ("flow_layout", "layout", "metrics", "rule_counts", "senders")),
    "broker/config/policy/*.py",
)
_WITHOUT = "stages/judge/"  # has no kernels of its own
_KEPT = 3  # digests: this version, the one before, and one to go back to


class CacheError(TapmeshError):
    """There is no place to keep compiled kernels, or it is not safe to take code from."""


def _sources() -> Iterator[tuple[str, Path]]:
    for pattern in _SOURCES:
        for path in sorted(_ROOT.glob(pattern)):
            if not (name := path.relative_to(_ROOT).as_posix()).startswith(_WITHOUT):
                yield name, path


def _digest() -> str:
    digest = hashlib.sha256()
    for name, path in _sources():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    facts = (
        sys.version,
        importlib.metadata.version("numba"),
        importlib.metadata.version("llvmlite"),
        os.environ.get("NUMBA_BOUNDSCHECK", ""),
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def complete(directory: Path) -> Path:
    """The file that says that all kernels are in the directory. Its name says where the sources lie and when they were written, for numba
    asks that too: it takes nothing that was compiled of a copy of them, or before they were installed again."""
    facts = (str(_ROOT), *((name, path.stat().st_mtime_ns) for name, path in _sources()))
    return directory / f"complete-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def base_directory() -> Path:
    """TAPMESH_CACHE_DIR; else /var/cache/tapmesh for root, and XDG_CACHE_HOME or ~/.cache for everybody else."""
    if chosen := os.environ.get("TAPMESH_CACHE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/cache/tapmesh")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tapmesh"


def use() -> Path:
    """Make the directory and return it. CacheError in words when it cannot be made, or is not safe to take code from."""
    directory = base_directory() / f"kernels-{_digest()}"
    try:
        new = not directory.exists()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat()
        if owner.st_uid != os.geteuid() or owner.st_mode & 0o022:
            raise CacheError(f"{directory}: holds code, but others than this user can write it; remove it or set TAPMESH_CACHE_DIR")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise CacheError(f"{directory}: not writable; set TAPMESH_CACHE_DIR to a directory of this user")
        if new:
            _forget_old(directory)
    except OSError as error:
        raise CacheError(
            f"{directory}: {error.strerror}; compiled kernels need a place: set TAPMESH_CACHE_DIR to a directory of this user"
        ) from None
    return directory


def _forget_old(current: Path) -> None:
    others = sorted((p for p in current.parent.glob("kernels-*") if p != current), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in others[_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
