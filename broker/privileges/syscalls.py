"""Which system calls each process may make: the allow-lists of `sandbox`. Names as in syscalls(2).

| role | is |
|---|---|
| worker | a stage's process: files of its own, sockets of the internet, shared memory; it starts threads, no program, and signals nobody |
| worker-tidy | the same for a send worker with files that are rotated: it starts the program that compresses them |
| worker-raw, worker-raw-tidy | the same where there is no opener: it opens packet and raw sockets itself |
| companion | exporter and store of flow records, and the judge: as a worker |
| host | what forks the workers: as one, and it starts and ends processes |
| control | the supervisor: as the host, and it starts programs |
| opener | opens sockets and asks the kernel's netlink, and little else |

A role can only be narrowed: who is started by another has at most what that one has. `ioctl` and `setsockopt` are not looked into: without
capabilities they change nothing outside the process's own descriptors.
"""

from __future__ import annotations

import mmap
import socket
from dataclasses import dataclass


@dataclass(frozen=True)
class Argument:
    """The call is meant if argument `number`, under `mask` if there is one, is `value`."""

    number: int
    value: int
    mask: int = 0


@dataclass(frozen=True)
class Role:
    """`unknown`: calls that are answered as by a kernel without them (ENOSYS), so that libraries take the older."""

    allowed: tuple[str, ...]
    allowed_if: tuple[tuple[str, tuple[Argument, ...]], ...] = ()
    unknown: tuple[str, ...] = ("clone3",)


def _names(text: str) -> list[str]:
    return text.split()


_CLONE_THREAD = 0x0001_0000  # linux/sched.h

_BASE = _names(
    """
    brk madvise mremap munmap membarrier mincore msync exit exit_group rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait
    rt_sigpending sigaltstack signalfd4 restart_syscall futex set_robust_list get_robust_list set_tid_address rseq sched_yield
    sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_setscheduler mbind sched_getscheduler gettid getpid
    getppid getpgrp getpgid getsid getuid geteuid getgid getegid getresuid getresgid getgroups getrandom uname sysinfo getrusage times
    getrlimit getcpu arch_prctl clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time timerfd_create timerfd_settime
    timerfd_gettime poll ppoll select pselect6 epoll_create1 epoll_create epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 pipe
    pipe2 read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range dup dup2 dup3 fcntl ioctl
    sendfile open openat stat lstat fstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink readlinkat getcwd
    getdents64 socketpair bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt shutdown sendto sendmsg
    sendmmsg recvfrom recvmsg recvmmsg
    """
)

_FILES = _names(
    """
    unlink unlinkat rename renameat renameat2 mkdir mkdirat rmdir link linkat ftruncate fallocate fadvise64 fsync fdatasync
    sync_file_range flock utimensat fchmod chmod fchmodat umask memfd_create copy_file_range listxattr llistxattr flistxattr getxattr
    lgetxattr fgetxattr setpriority getpriority readahead ioprio_set
    """
)

_PROCESSES = ["fork", "vfork", "wait4", "waitid", "kill", "tgkill", "pidfd_open", "pidfd_send_signal", "setsid", "setpgid", "clone"]

_TIDY = ["execve", "fork", "vfork", "clone", "wait4", "waitid", "kill"]
_PROGRAMS = ["execve", "chdir", "fchdir", "setrlimit", "prlimit64", "capget", "capset", "seccomp", "symlink", "symlinkat"]


def _sockets(*families: int) -> list[tuple[str, tuple[Argument, ...]]]:
    return [("socket", (Argument(0, family),)) for family in families]


_PLAIN = 0xF  # SOCK_TYPE_MASK, linux/net.h
_ORDINARY = [
    ("socket", (Argument(0, family), Argument(1, kind, _PLAIN)))
    for family in (socket.AF_INET, socket.AF_INET6)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
] + _sockets(socket.AF_UNIX, socket.AF_NETLINK)

_ALL_SOCKETS = _sockets(socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET)

_THREADS = [("clone", (Argument(0, _CLONE_THREAD, _CLONE_THREAD),))]
# A library may be loaded, from a file; memory that was written cannot be made executable.
_LIBRARIES = [
    ("mmap", (Argument(2, 0, mmap.PROT_EXEC),)),
    ("mmap", (Argument(2, mmap.PROT_EXEC, mmap.PROT_EXEC | mmap.PROT_WRITE), Argument(3, 0, mmap.MAP_ANONYMOUS))),
    ("mprotect", (Argument(2, 0, mmap.PROT_EXEC),)),
]
_LIMITS = [("prlimit64", (Argument(2, 0),))]  # reads only
# Names of threads and processes, the end with the parent, dumpable, timer slack; and what is to be seen of seccomp.
_PRCTL = [("prctl", (Argument(0, option),)) for option in (1, 3, 4, 15, 16, 21, 22, 29, 38, 39)]
_COMMON = (*_LIBRARIES, *_LIMITS, *_PRCTL)
_SIGNAL_OURSELVES = ["tgkill"]  # abort(3)

_WORKER = (*_BASE, *_FILES, *_SIGNAL_OURSELVES)
ROLES: dict[str, Role] = {
    "worker": Role(_WORKER, (*_ORDINARY, *_THREADS, *_COMMON)),
    "worker-tidy": Role((*_WORKER, *_TIDY), (*_ORDINARY, *_COMMON)),
    "worker-raw": Role(_WORKER, (*_ALL_SOCKETS, *_THREADS, *_COMMON)),
    "worker-raw-tidy": Role((*_WORKER, *_TIDY), (*_ALL_SOCKETS, *_COMMON)),
    "companion": Role(_WORKER, (*_ORDINARY, *_THREADS, *_COMMON)),
    "host": Role((*_WORKER, *_PROCESSES, *_TIDY, "prctl", "seccomp", "capget", "capset", "prlimit64"), (*_ALL_SOCKETS, *_LIBRARIES)),
    "control": Role((*_WORKER, *_PROCESSES, *_PROGRAMS, "prctl", "mmap", "mprotect", "socket"), ()),
    "opener": Role((*_BASE, "tgkill"), (*_ALL_SOCKETS, *_COMMON)),
}
