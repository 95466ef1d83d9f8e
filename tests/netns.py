"""Network namespaces of a test's own: hosts on one machine, gone when the test is over.

A namespace is held by a process that does nothing. The thread of the test enters one for a moment (`inside`); what it opens or starts
there stays there.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.waiting import until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces and packet sockets")

_CLONE_NEWNET = 0x4000_0000
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """One host. Close it when done; interfaces, sockets and routes in it go with it."""

    def __init__(self) -> None:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _checked(_libc.unshare(_CLONE_NEWNET))
            self._holder = subprocess.Popen(["tail", "-f", "/dev/null"])
            self._fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        finally:
            _checked(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)
        self.pid = self._holder.pid
        self.ip("link", "set", "lo", "up")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in this namespace meanwhile."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        _checked(_libc.setns(self._fd, _CLONE_NEWNET))
        try:
            yield
        finally:
            _checked(_libc.setns(home, _CLONE_NEWNET))
            os.close(home)

    def ip(self, *words: str) -> str:
        """The `ip` command in here; what it says."""
        with self.inside():
            return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        os.close(self._fd)


def connect(one: Namespace, name: str, other: Namespace, other_name: str, *, mtu: int = 1500, quiet: bool = False) -> None:
    """A veth pair between two namespaces, or within one; both ends carry frames. `quiet`: neither sends anything by itself."""
    one.ip("link", "add", name, "mtu", str(mtu), "type", "veth", "peer", "name", other_name, "mtu", str(mtu), "netns", str(other.pid))
    for host, end in ((one, name), (other, other_name)):
        if quiet:
            with host.inside(), open(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6", "w") as file:
                file.write("1")
            host.ip("link", "set", end, "arp", "off")
        host.ip("link", "set", end, "up")
    for host, end in ((one, name), (other, other_name)):  # frames that are sent before the kernel has noticed the carrier are lost
        until(lambda host=host, end=end: " state UP " in host.ip("link", "show", end), f"the carrier of {end}")  # type: ignore[misc]
