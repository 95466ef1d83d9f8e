"""Runs the targets of `fuzz_targets`, guided by coverage where atheris is there (`make fuzz` installs it), else with plain random changes.

    python -m tests.endurance.fuzz TARGET SECONDS      begins with what .cache/fuzz/TARGET holds and leaves there what it has found
    python -m tests.endurance.fuzz TARGET FILE         does one file again

What ends it is in .cache/fuzz/TARGET.found.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.endurance.fuzz_targets import Target

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".cache" / "fuzz"
_PIECES = (
    b"",
    b"\0",
    b"\xff",
    b"(",
    b")",
    b"[",
    b"{",
    b":",
    b"-1",
    b"0x",
    b"9" * 30,
    b"\n",
    b" ",
    b'"',
    b"\xd9",
    b"\xdf",
    b"\xcb\x7f\xf0" + bytes(6),
    b"\xc1",
)


def changed(chosen: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with a few changes."""
    data = bytearray(chosen.choice(seeds))
    for _ in range(chosen.choice((1, 1, 2, 4, 8))):
        at = chosen.randrange(len(data) + 1)
        end = min(len(data), at + chosen.choice((0, 1, 1, 2, 4, 16)))
        match chosen.randrange(5):
            case 0:
                data[at:end] = chosen.choice(_PIECES)
            case 1:
                data[at:end] = chosen.randbytes(chosen.choice((1, 2, 4)))
            case 2:
                data[at:at] = bytes(data[at:end]) * chosen.choice((1, 2, 50))
            case 3 if at < len(data):
                data[at] ^= 1 << chosen.randrange(8)
            case _:
                other = chosen.choice(seeds)
                start = chosen.randrange(len(other) + 1)
                data[at:end] = other[start : start + chosen.choice((1, 4, 16, 200))]
    return bytes(data)


def kernels() -> list[str]:
    """Modules that are not instrumented: numba compiles them as they are."""
    found = [path.relative_to(ROOT) for path in (ROOT / "stages").rglob("*.py") if "@kernel" in path.read_text() or "memory" in path.parts]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found]


def plain(target: Target, seed: int, n: int, seconds: float = float("inf")) -> int:
    """The seeds, then `n` changes of them or as many as fit. Returns how many were run; the exception has a note with the bytes."""
    seeds, chosen, end, done = list(target.seeds()), random.Random(seed), time.monotonic() + seconds, 0
    for number in range(len(seeds) + n):
        if number < len(seeds):
            data = seeds[number]
        else:
            data = target.changed(chosen, seeds) if target.changed and chosen.random() < 0.8 else changed(chosen, seeds)
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"input: {data[:2000]!r}")
            raise
        done += 1
        if time.monotonic() > end:
            break
    return done


def guided(name: str, target: Target, seconds: int) -> None:
    """By libFuzzer: ends the process."""
    import atheris

    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    arguments = [
        f"-max_total_time={seconds}",
        "-timeout=20",
        "-max_len=8192",
        "-rss_limit_mb=2048",
        f"-artifact_prefix={KEPT}/{name}.found.",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], target.run)
    atheris.Fuzz()


def main(name: str, what: str) -> int:
    has_guide = importlib.util.find_spec("atheris") is not None
    watched: Any = contextlib.nullcontext()
    if has_guide:
        import atheris

        watched = atheris.instrument_imports(include=["broker", "stages"], exclude=kernels())
    with watched:
        from tests.endurance.fuzz_targets import TARGETS
    target = TARGETS[name]
    if not what.isdigit():
        target.run(Path(what).read_bytes())
        return 0
    if has_guide:
        guided(name, target, int(what))
    KEPT.mkdir(parents=True, exist_ok=True)
    try:
        done = plain(target, time.time_ns(), 1 << 62, float(what))
    except Exception:
        (KEPT / f"{name}.found.txt").write_text(traceback.format_exc())
        raise
    sys.stdout.write(f"{name}: {done:,} inputs, at random\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
