"""Compiled kernels: kept in our own directory, named by what they are made of, and never taken from where others can write."""

from __future__ import annotations

import ast
import fcntl
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from broker.core.errors import TapmeshError
from stages import cache, warm
from stages.jit import PLAIN

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAPMESH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_directory_is_private_and_the_same_for_the_same_sources(base: Path) -> None:
    first = cache.use()
    assert first == cache.use()
    assert first.parent == base
    assert first.stat().st_mode & 0o777 == 0o700


def test_a_change_in_any_source_is_another_directory(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    for folder in ("stages", "broker/core", "broker/config"):
        shutil.copytree(ROOT / folder, copy / folder)
    monkeypatch.setattr(cache, "_ROOT", copy)
    before = cache.use()
    (copy / "stages/memory/compiled.py").write_text((copy / "stages/memory/compiled.py").read_text() + "\n# another\n")
    changed_callee = cache.use()
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert len({before, changed_callee, cache.use()}) == 3


def test_what_was_compiled_of_other_files_with_the_same_content_is_not_complete(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba compiles anew what lies elsewhere, or is newer: it must not do so in silence, in every process at once."""
    directory = cache.use()
    here = cache.complete(directory)
    assert here == cache.complete(directory)
    copy = tmp_path / "copy"
    for folder in ("stages", "broker/core", "broker/config"):
        shutil.copytree(ROOT / folder, copy / folder)
    monkeypatch.setattr(cache, "_ROOT", copy)
    assert cache.use() == directory
    elsewhere = cache.complete(directory)
    os.utime(copy / "stages/memory/compiled.py", (1, 1))
    assert len({here, elsewhere, cache.complete(directory)}) == 3


@pytest.mark.skipif(PLAIN, reason="kernels run as plain Python here: nothing is compiled")
def test_who_waits_for_the_compiler_says_so(base: Path) -> None:
    program = "from stages.warm import warm; warm(lambda text: (print(text, flush=True), input()))"
    base.mkdir()
    with (cache.use() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", program]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        ) as waiting:
            assert waiting.stdout is not None
            try:
                assert waiting.stdout.readline() == b"another process compiles the kernels\n"
            finally:
                waiting.kill()


def test_only_a_few_old_ones_are_kept(base: Path) -> None:
    for i in range(6):
        (base / f"kernels-{i}").mkdir(parents=True)
    cache.use()
    assert len(list(base.glob("kernels-*"))) == 3


def test_a_directory_that_others_can_write_is_refused(base: Path) -> None:
    cache.use().chmod(0o777)
    with pytest.raises(cache.CacheError, match="others than this user can write it"):
        cache.use()


def test_a_place_that_cannot_be_made_is_refused_in_words(base: Path) -> None:
    base.write_text("a file is in the way")
    with pytest.raises(cache.CacheError, match="set TAPMESH_CACHE_DIR to a directory of this user"):
        cache.use()


def test_a_user_without_a_home_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAPMESH_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # whom no password file knows
    with pytest.raises(cache.CacheError, match="no home directory"):
        cache.base_directory()


@pytest.mark.parametrize("useful", ["shared object", "numba's cache"])
def test_where_no_shared_object_can_be_used_numba_fills_its_cache_once(useful: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every start would compile it in vain, and then all kernels again."""
    asked: list[str] = []

    def compile_(_progress: object, environment: dict[str, str]) -> int:
        asked.append(environment.get("TAPMESH_KERNELS", "auto"))
        return 0

    monkeypatch.delenv("TAPMESH_KERNELS", raising=False)
    monkeypatch.setattr(warm, "_compile", compile_)
    monkeypatch.setattr(warm, "_is_compiled", lambda: useful == "shared object" or asked[-1] == "jit")
    warm._compile_apart(lambda _line: None)
    assert asked == (["auto"] if useful == "shared object" else ["auto", "jit"])


def test_compiling_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAPMESH_KERNELS", raising=False)
    monkeypatch.setattr(warm, "_compile", lambda _progress, _environment: 78)
    with pytest.raises(TapmeshError, match="failed with exit status 78"):
        warm._compile_apart(lambda _line: None)


@pytest.mark.skipif(PLAIN, reason="kernels run as plain Python here: nothing is compiled")
def test_kernels_are_written_there_and_nowhere_else(base: Path) -> None:
    program = "from stages import atomics; atomics.park.compile('void(int64, int64)')"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT), "TAPMESH_KERNELS": "jit"}, check=True)
    assert list(base.glob("kernels-*/**/*.nbi"))
    assert not list(ROOT.glob("stages/**/__pycache__/*.nbi"))


def test_what_a_file_with_kernels_takes_constants_from_is_among_the_sources() -> None:
    """They are compiled in: a kernel that was made of an offset which has moved since reads something else."""
    sources = {ROOT / name for name, _ in cache._sources()}
    looked_at = 0
    for path in ROOT.glob("stages/**/*.py"):
        text = path.read_text()
        if "\n@kernel\n" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("broker."):
                module = importlib.import_module(node.module)
                for name in node.names:
                    is_value = hasattr(module, name.name)
                    taken = getattr(module, name.name) if is_value else importlib.import_module(f"{node.module}.{name.name}")
                    if not isinstance(taken, type):
                        assert Path((taken if isinstance(taken, ModuleType) else module).__file__ or "") in sources, path
                        looked_at += 1
    assert looked_at > 50
