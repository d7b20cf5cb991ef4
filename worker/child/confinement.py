"""What a child gives up before it reads anything, and once it has loaded all that it needs: each step for good."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import platform
import resource
import signal
import sys

from shared.formats import HAS_HEIF

# <linux/prctl.h>, <linux/sched.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_THREAD = 0x00010000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_NICENESS = 5

#: Whose system calls the list below was tried on; others have more, and by other names.
_PROCESSORS = ("x86_64", "aarch64")

#: What a decoder needs once it is loaded. Reading, writing and measuring the descriptors that it was sent; talking to
#: its worker; memory without code; the clock; its own end. Nothing that opens, connects, executes or starts anything.
_ALLOWED = (
    *("read", "write", "lseek", "fstat", "newfstatat", "ftruncate", "close"),
    *("recvmsg", "sendto", "poll", "ppoll", "select", "pselect6"),
    *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield"),
    *("clock_gettime", "gettimeofday", "getrusage", "getrandom", "getpid", "gettid"),
    *("rt_sigprocmask", "rt_sigreturn", "restart_syscall", "exit", "exit_group"),
    "getcwd",  # Pillow asks where it is before it saves what it has opened
)

_libc = ctypes.CDLL(None, use_errno=True)


class NoFilter(Exception):
    """This platform has no system-call filter for us; the message says what is missing."""


def confine(parent: int, memory_bytes: int, file_bytes: int, descriptors: int) -> None:
    """Bind this process to its parent's life, and to limits that it cannot raise again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker is told to stop, and lets its children finish; they end when it closes or kills them.
        signal.signal(number, signal.SIG_IGN)
    # Who uploads, reads or is told waits for web, worker and Redis: on a busy machine they go first.
    os.nice(_NICENESS)
    # Without privileges a network namespace takes a user namespace. Either may be refused: then the other limits stand.
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)  # it died before the line above
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, descriptors)
    _limit(resource.RLIMIT_CORE, 0)


def filter_system_calls() -> None:
    """Have the kernel refuse every system call but a few, from now on. Raises NoFilter where that cannot be.

    What is refused fails with EPERM: a library that only asks goes on without, one that was taken over gets nowhere.
    """
    if platform.machine() not in _PROCESSORS:
        raise NoFilter(f"there is none for {platform.machine()}")
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as exc:
        raise NoFilter(f"pyseccomp or libseccomp is not installed: {exc}") from exc
    try:
        calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
        for name in _ALLOWED:
            if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:  # not every processor has each
                calls.add_rule(pyseccomp.ALLOW, name)
        for name in ("mmap", "mprotect"):
            no_code = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
            calls.add_rule(pyseccomp.ALLOW, name, no_code)
        itself = pyseccomp.Arg(0, pyseccomp.EQ, 0)
        calls.add_rule(pyseccomp.ALLOW, "prlimit64", itself, pyseccomp.Arg(1, pyseccomp.EQ, resource.RLIMIT_CPU))
        if HAS_HEIF:
            # The decoder of HEVC takes a thread, whether or not it has use for it. What clone3 is asked for cannot be
            # seen by a filter; where it is not known, clone is used.
            calls.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
            calls.add_rule(
                pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD)
            )
            for name in ("set_robust_list", "rseq"):
                calls.add_rule(pyseccomp.ALLOW, name)
        # By which abort() ends it.
        calls.add_rule(pyseccomp.ALLOW, "tgkill", pyseccomp.Arg(0, pyseccomp.EQ, os.getpid()))
        calls.load()
    except OSError as exc:
        raise NoFilter(f"the kernel takes none: {exc}") from exc


def limit_cpu(seconds: int) -> None:
    """Allow so many more seconds of computing time; SIGXCPU ends who takes more."""
    # The kernel counts from the process's start, in whole seconds; SIGXCPU comes at the soft limit.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def give_back_memory() -> None:
    """Return to the system what the heap holds and nobody uses."""
    if hasattr(_libc, "malloc_trim"):  # glibc has it, musl keeps less
        _libc.malloc_trim(0)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
