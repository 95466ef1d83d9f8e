"""``python -m bench [NAME...] [--quick]``: each bench is a module with ``measure(quick) -> rows``."""

from __future__ import annotations

import argparse
import importlib
import sys

from bench.report import line

BENCHES = (
    "replay", "peers", "filter", "classbench", "encapsulate", "dedup", "flows", "meters", "export", "store", "answers", "explain", "growth",
    "scaling", "memory", "startup", "runs", "live", "small", "rfc2544",
)  # fmt: skip


def main() -> int:
    """Exit status 1 when a bench could not measure; the others are still run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measurements as JSON lines")
    parser.add_argument("name", nargs="*", help=f"of {', '.join(BENCHES)}; all when none is given")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.name) - set(BENCHES)
    if unknown:
        parser.error(f"no bench is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    failed = 0
    for name in arguments.name or BENCHES:
        try:
            for row in importlib.import_module(f"bench.{name}").measure(arguments.quick):
                print(line(row), flush=True)
        except RuntimeError as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
