"""Core dumps without what is in memory: passwords, keys and other people's packets would be in them.

What is left says which process died where, which is all that is asked of one. Memory stays readable to a debugger of the same user, who
can read the files too that the secrets come from.
"""

from __future__ import annotations

import resource


def leave_memory_out() -> None:
    """Of this process and all that it starts (core(5), coredump_filter). Where the kernel does not offer that, no dumps at all."""
    try:
        with open("/proc/self/coredump_filter", "w") as file:
            file.write("0")
    except OSError:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
