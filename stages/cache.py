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
    *(
        f"broker/core/{name}.py"
        for name in ("batch", "flow_layout", "flow_ring", "layout", "metrics", "model", "ring", "rule_counts", "senders", "stage")
    ),
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


def digest() -> str:
    """Of all that kernels are made of."""
    digest = hashlib.sha256()
    for name, path in _sources():
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def complete(directory: Path) -> Path:
    """The file that says that numba has all kernels in the directory. Its name says what numba asks, too: it takes nothing that was made by
    another version, of a copy of the sources, or before they were installed again."""
    versions = (sys.version, importlib.metadata.version("numba"), importlib.metadata.version("llvmlite"))
    facts = (versions, str(_ROOT), *((name, path.stat().st_mtime_ns) for name, path in _sources()))
    return directory / f"complete-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def base_directory() -> Path:
    """TAPMESH_CACHE_DIR; else /var/cache/tapmesh for root, and XDG_CACHE_HOME or ~/.cache for everybody else. CacheError: there is none."""
    if chosen := os.environ.get("TAPMESH_CACHE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/cache/tapmesh")
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tapmesh"
    except RuntimeError:
        raise CacheError("this user has no home directory to keep compiled kernels in: set TAPMESH_CACHE_DIR") from None


def directory(sources: str) -> Path:
    """Of the sources with that digest; it need not be there."""
    checked = os.environ.get("NUMBA_BOUNDSCHECK", "0")
    return base_directory() / f"kernels-{sources}{'' if checked in ('', '0') else '-checked'}"


def use() -> Path:
    """Make the directory and return it. CacheError in words when it cannot be made, or is not safe to take code from."""
    made = directory(digest())
    try:
        new = not made.exists()
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_owner(made)
        if not os.access(made, os.W_OK | os.X_OK):
            raise CacheError(f"{made}: not writable; set TAPMESH_CACHE_DIR to a directory of this user")
        if new:
            _forget_old(made)
    except OSError as error:
        raise CacheError(
            f"{made}: {error.strerror}; compiled kernels need a place: set TAPMESH_CACHE_DIR to a directory of this user"
        ) from None
    return made


def check_owner(made: Path) -> None:
    """CacheError when code in it could come from somebody else."""
    owner = made.stat()
    if owner.st_uid not in (os.geteuid(), 0) or owner.st_mode & 0o022:  # root could give us anything anyway
        raise CacheError(f"{made}: holds code, but others than this user can write it; remove it or set TAPMESH_CACHE_DIR")


def _forget_old(current: Path) -> None:
    others = sorted((p for p in current.parent.glob("kernels-*") if p != current), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in others[_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
