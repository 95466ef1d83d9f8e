"""What the kernel refuses to a process in its role. Each call is made once without the role, so that the refusal is seen to be its."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from pathlib import Path

import pytest

from broker.privileges.syscalls import ROLES

ROOT = Path(__file__).resolve().parents[2]
# By number, x86-64 and others alike through libseccomp's table; arguments that do no harm where they are let through.
FORBIDDEN = {
    "ptrace": (0x4200, 0, 0, 0),
    "process_vm_readv": (0, 0, 0, 0, 0, 1),
    "process_vm_writev": (0, 0, 0, 0, 0, 1),
    "mount": (0, 0, 0, 0, 0),
    "umount2": (0, 0),
    "pivot_root": (0, 0),
    "chroot": (0,),
    "unshare": (0,),
    "setns": (-1, 0),
    "bpf": (-1, 0, 0),
    "perf_event_open": (0, 0, -1, -1, 0),
    "keyctl": (-1, 0, 0, 0, 0),
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "init_module": (0, 0, 0),
    "finit_module": (-1, 0, 0),
    "delete_module": (0, 0),
    "kexec_load": (0, 1 << 40, 0, 0),
    "io_uring_setup": (0, 0),
    "userfaultfd": (-1,),
    "execve": (0, 0, 0),
    "execveat": (-1, 0, 0, 0, 0),
    "setuid": (0,),
    "capset": (0, 0),
    "kill": (0x7FFF_FFFF, 0),
    "open_by_handle_at": (-1, 0, 0),
    "name_to_handle_at": (-1, 0, 0, 0, 0),
    "mknodat": (-1, 0, 0, 0),
    "personality": (0xFFFF_FFFF,),
    "swapon": (0, 0),
    "acct": (1,),
    "quotactl": (0, 0, 0, 0),
}
SCRIPT = """
import ctypes, errno, socket, sys
from broker.privileges import sandbox
role, wanted = sys.argv[1], eval(sys.argv[2])
seccomp, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None, use_errno=True)
numbers = {name: seccomp.seccomp_syscall_resolve_name(name.encode()) for name in wanted}
if role:
    assert sandbox.enter(role) == "", sandbox.enter(role)
for name, arguments in wanted.items():
    if numbers[name] < 0:
        continue
    ctypes.set_errno(0)
    answer = libc.syscall(ctypes.c_long(numbers[name]), *map(ctypes.c_long, arguments))
    print(name, errno.errorcode.get(ctypes.get_errno(), 0) if answer < 0 else 0)
for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW), (socket.AF_INET6, socket.SOCK_RAW),
                     (socket.AF_VSOCK, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)):
    try:
        socket.socket(family, kind, 47 if kind == socket.SOCK_RAW and family != socket.AF_PACKET else 0).close()
        print(f"{family.name}-{kind.name}", 0)
    except OSError as error:
        print(f"{family.name}-{kind.name}", errno.errorcode[error.errno])
"""

pytestmark = pytest.mark.skipif(ctypes.util.find_library("seccomp") is None, reason="libseccomp is not installed")


def answers(role: str) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, role, repr(FORBIDDEN)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def free() -> dict[str, str]:
    """Without a role."""
    return answers("")


@pytest.mark.parametrize("role", ["worker", "worker-raw", "companion", "opener"])
def test_what_has_no_place_in_a_role_is_refused(role: str, free: dict[str, str]) -> None:
    found = answers(role)
    refused = {name for name in FORBIDDEN if found.get(name) == "EPERM"}
    assert refused == found.keys() & FORBIDDEN.keys()
    by_the_role = {name for name in refused if free[name] != "EPERM"}
    assert len(by_the_role) >= 20, f"the kernel refuses too many of them by itself: {free}"


def test_a_worker_opens_no_packet_and_no_raw_socket_but_asks_the_opener(free: dict[str, str]) -> None:
    found = answers("worker")
    assert [found[f"{family}-SOCK_RAW"] for family in ("AF_PACKET", "AF_INET", "AF_INET6")] == ["EPERM"] * 3
    assert (found["AF_VSOCK-SOCK_STREAM"], found["AF_INET-SOCK_DGRAM"]) == ("EPERM", "0")
    assert answers("worker-raw")["AF_PACKET-SOCK_RAW"] == free["AF_PACKET-SOCK_RAW"]


def test_memory_that_was_written_does_not_become_code() -> None:
    script = """
import mmap, sys
from broker.privileges import sandbox
mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)
assert sandbox.enter("worker") == ""
for protection in (mmap.PROT_READ | mmap.PROT_EXEC, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
    try:
        mmap.mmap(-1, 4096, prot=protection)
    except PermissionError:
        print("refused")
import _bz2  # a library from a file
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n" * 2, "")


def test_a_thread_may_be_started_and_a_process_may_not() -> None:
    script = """
import os, threading
from broker.privileges import sandbox
assert sandbox.enter("worker") == ""
one = threading.Thread(target=lambda: print("thread", flush=True)); one.start(); one.join()
try:
    os.fork()
except PermissionError:
    print("no process")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("thread\nno process\n", "")


def test_who_is_started_may_do_what_its_role_says() -> None:
    """A filter is inherited: what starts another must itself be allowed everything that the other is."""
    for parent, child in (
        ("control", "host"),
        ("control", "companion"),
        ("host", "worker"),
        ("host", "worker-raw"),
        ("host", "worker-tidy"),
    ):
        may = set(ROLES[parent].allowed) | {name for name, _ in ROLES[parent].allowed_if}
        needs = set(ROLES[child].allowed) | {name for name, _ in ROLES[child].allowed_if}
        assert needs <= may, (parent, child, needs - may)


def test_it_can_be_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from broker.privileges import sandbox

    monkeypatch.setenv("TAPMESH_SECCOMP", "off")
    assert sandbox.enter("worker") == "TAPMESH_SECCOMP=off"
    subprocess.run(["true"], check=True)
