"""Sockets that outlive who opened them: the opener holds a second descriptor, so that what a worker captured with goes on collecting
packets while another is started in its place, which then goes on with the very socket."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

MAX_KEPT = 256
"""One for each lane that captures, two for a tunnel input."""


@dataclass
class Kept:
    """Descriptors by name. `described`: whatever tells who takes it that it is what it would have opened."""

    _held: dict[str, tuple[str, int]] = field(default_factory=dict)

    def keep(self, name: str, described: str, fd: int) -> None:
        """Hold a duplicate of `fd`, in place of what has the name already. OSError: ENFILE when there are too many."""
        if name not in self._held and len(self._held) >= MAX_KEPT:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        ours = os.dup(fd)
        self.drop(name)
        self._held[name] = (str(described), ours)

    def find(self, name: str, described: str) -> int:
        """A duplicate of it. OSError: ENOENT when none is held, or one of another kind, which is closed."""
        found = self._held.get(name)
        if found is not None and found[0] != described:
            self.drop(name)
            found = None
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return os.dup(found[1])

    def drop(self, name: str) -> None:
        """Close it, if it is held."""
        _, fd = self._held.pop(name, ("", -1))
        if fd >= 0:
            os.close(fd)

    def drop_all(self) -> None:
        for name in tuple(self._held):
            self.drop(name)

    def list(self) -> list[tuple[str, str]]:
        """(name, described) of each."""
        return [(name, described) for name, (described, _) in self._held.items()]
