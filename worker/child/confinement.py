"""Confinement of a child: limits before it reads any file, and a system-call filter once it has loaded its code.

Neither can be undone.
"""

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

#: The processors on which the list below was tested. Others use system calls with other names.
_PROCESSORS = ("x86_64", "aarch64")

#: The system calls that a decoder needs once it is loaded: to read, write and measure the descriptors that it was sent,
#: to talk to its worker, for memory that holds no code, for the clock, and to end. No call opens a file, connects,
#: executes a program or starts a process.
_ALLOWED = (
    *("read", "write", "lseek", "fstat", "newfstatat", "ftruncate", "close"),
    *("recvmsg", "sendto", "poll", "ppoll", "select", "pselect6"),
    *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield"),
    *("clock_gettime", "gettimeofday", "getrusage", "getrandom", "getpid", "gettid"),
    *("rt_sigprocmask", "rt_sigreturn", "restart_syscall", "exit", "exit_group"),
    "getcwd",  # Pillow calls it before it saves a picture that it has opened
)

_libc = ctypes.CDLL(None, use_errno=True)


def confine(parent: int, memory_bytes: int, file_bytes: int, descriptors: int) -> None:
    """Make this process end with its parent, and set limits that it cannot raise again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker gets these signals too, and lets its children finish. A child ends when the worker closes the
        # connection or kills it.
        signal.signal(number, signal.SIG_IGN)
    # On a busy machine web, worker and Redis run first, because clients wait for them.
    os.nice(_NICENESS)
    # Without privileges a network namespace needs a user namespace. Both may be refused. The other limits do not
    # depend on them.
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)  # the parent ended before the line above
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, descriptors)
    _limit(resource.RLIMIT_CORE, 0)


def filter_system_calls() -> str:
    """Make the kernel refuse all system calls except those listed here. Returns why not, or "" if the filter is set.

    A refused call fails with EPERM and does not end the process: a library may try a call and do without it.
    """
    if platform.machine() not in _PROCESSORS:
        return f"there is none for {platform.machine()}"
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as exc:
        return f"pyseccomp or libseccomp is not installed: {exc}"
    try:
        calls = pyseccomp.SyscallFilter(pyseccomp.ERRNO(1))
        for name in _ALLOWED:
            if pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) >= 0:  # a processor may lack some
                calls.add_rule(pyseccomp.ALLOW, name)
        for name in ("mmap", "mprotect"):
            no_code = pyseccomp.Arg(2, pyseccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
            calls.add_rule(pyseccomp.ALLOW, name, no_code)
        itself = pyseccomp.Arg(0, pyseccomp.EQ, 0)
        calls.add_rule(pyseccomp.ALLOW, "prlimit64", itself, pyseccomp.Arg(1, pyseccomp.EQ, resource.RLIMIT_CPU))
        if HAS_HEIF:
            # The decoder of HEVC always starts a thread. A filter cannot see the flags of clone3. If clone3 fails with
            # ENOSYS, the C library uses clone.
            calls.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
            calls.add_rule(
                pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD)
            )
            for name in ("set_robust_list", "rseq"):
                calls.add_rule(pyseccomp.ALLOW, name)
        # abort() ends the process by tgkill.
        calls.add_rule(pyseccomp.ALLOW, "tgkill", pyseccomp.Arg(0, pyseccomp.EQ, os.getpid()))
        calls.load()
    except OSError as exc:
        return f"the kernel takes none: {exc}"
    return ""


def limit_cpu(seconds: int) -> None:
    """Allow `seconds` more of CPU time. After that SIGXCPU ends the process."""
    # The kernel counts whole seconds from the start of the process, and sends SIGXCPU at the soft limit.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def give_back_memory() -> None:
    """Return unused memory of the heap to the system."""
    if hasattr(_libc, "malloc_trim"):  # only glibc has it; musl keeps less
        _libc.malloc_trim(0)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))
