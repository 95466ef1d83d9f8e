"""How many files and sockets a process may have open: all that the machine allows us, and a refusal in words where that is too few."""

from __future__ import annotations

import resource

from broker.core.errors import TapmeshError

SPARE = 32
"""What every process has without any tool: shared memory, libraries, doorbells, its log."""
A_TOOL = 2
"""In a send worker: its file or socket, and the next one of a rotation, or a reader of a stream."""


def raise_limit() -> None:
    """To the hard limit, for us and all that we start: it is low for the sake of select(2), which nobody here uses."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def check_descriptors(n_tools: int, n_workers: int) -> None:
    """TapmeshError when a process of the pipeline would come to its limit: a send worker has all tools, the supervisor all workers."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = SPARE + max(A_TOOL * n_tools, n_workers + n_tools)
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise TapmeshError(
            f"a process may have {limit} files open, the pipeline needs {needed} ({n_tools} tools, {n_workers} workers): "
            f"raise the limit (systemd: LimitNOFILE={max(1024, needed)}; a shell: ulimit -Hn), or have fewer tools"
        )
