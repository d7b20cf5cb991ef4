"""What a child that was taken over could still ask of the kernel: each thing tried, in a process of its own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shared.errors import ChildLost
from worker.renderer.child import Child

#: Each tries one thing; what it is refused with is told.
PROBES = textwrap.dedent("""
    import ctypes, json, mmap, os, resource, signal, socket, time
    import pyseccomp
    from shared.formats import HAS_HEIF
    from worker.child.confinement import filter_system_calls

    libc = ctypes.CDLL(None, use_errno=True)
    ours, theirs = socket.socketpair()

    def call(name, *arguments):
        if getattr(libc, name)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), name)

    def system_call(name, *arguments):
        call("syscall", pyseccomp.resolve_syscall(pyseccomp.system_arch(), name), *arguments)

    unlimited = (ctypes.c_ulong * 2)(1 << 40, 1 << 40)
    probes = {
        "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
        "make a file": lambda: os.open("/tmp/made-by-a-child", os.O_CREAT | os.O_WRONLY),
        "remove a file": lambda: os.unlink("/tmp/made-by-a-child"),
        "list a folder": lambda: os.listdir("/"),
        "reach a server": lambda: socket.socket(socket.AF_INET),
        "reach a neighbour": lambda: socket.socket(socket.AF_UNIX),
        "make a pair of sockets": socket.socketpair,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "start a process": os.fork,
        "start a thread": lambda: system_call("clone", 0x10f00, None, None, None, None),
        "kill its worker": lambda: os.kill(os.getppid(), signal.SIGKILL),
        "kill another by its thread": lambda: system_call("tgkill", os.getppid(), os.getppid(), signal.SIGKILL),
        "trace its worker": lambda: call("ptrace", 16, os.getppid(), 0, 0),
        "read its worker's memory": lambda: call("process_vm_readv", os.getppid(), None, 0, None, 0, 0),
        "map memory for code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
        "raise its memory's limit": lambda: call("setrlimit", resource.RLIMIT_AS, unlimited),
        "raise another's limit": lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)),
        "mount": lambda: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
        "leave its namespaces": lambda: call("unshare", 0x10000000),
        "make a memory file": lambda: os.memfd_create("x"),
        "duplicate a descriptor": lambda: os.dup(0),
        "become another user": lambda: os.setuid(1),
        "be nicer to itself": lambda: os.nice(-1),
        "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, 0),
        "load a module": lambda: system_call("init_module", None, 0, b""),
        "send a message": lambda: ours.sendall(b"x"),
        "allocate": lambda: bytearray(64 << 20),
        "ask for a path": lambda: os.stat("/etc/passwd"),
        "limit its own computing time": lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, -1)),
    }
    if HAS_HEIF:
        del probes["start a thread"]  # which HEVC's decoder does; this one would have no stack
    filter_system_calls()
    told = {}
    for name, probe in probes.items():
        try:
            probe()
            told[name] = 0
        except OSError as exc:
            told[name] = exc.errno
    print(json.dumps(told))
""")

#: A path cannot be told from a descriptor: glibc measures both by the same call.
ALLOWED = {"send a message", "allocate", "limit its own computing time", "ask for a path"}


def test_the_filter_leaves_a_child_nothing_but_its_work() -> None:
    result = subprocess.run([sys.executable, "-c", PROBES], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    told: dict[str, int] = json.loads(result.stdout)
    assert {name for name, number in told.items() if number == 0} == ALLOWED
    assert {number for name, number in told.items() if name not in ALLOWED} == {errno.EPERM}


def test_without_the_filter_the_same_things_can_be_done() -> None:
    """Else a probe that fails for another reason would pass for one that is filtered."""
    harmless = [
        "read a file",
        "reach a server",
        "make a pair of sockets",
        "duplicate a descriptor",
        "make a memory file",
    ]
    program = PROBES.replace("filter_system_calls()\n", f"probes = {{name: probes[name] for name in {harmless}}}\n", 1)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert json.loads(result.stdout) == dict.fromkeys(harmless, 0)


def test_a_c_library_that_gives_no_memory_back_is_taken_as_it_is() -> None:
    program = textwrap.dedent("""
        import ctypes

        class Musl(ctypes.CDLL):
            def __getattr__(self, name):
                if name == "malloc_trim":
                    raise AttributeError(name)
                return super().__getattr__(name)

        ctypes.CDLL = Musl
        from worker.child import confinement
        confinement.give_back_memory()
    """)

    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


async def test_a_child_is_filtered() -> None:
    child = await Child.spawn((sys.executable, "-m", "worker.child"), 384 << 20, 1 << 20)
    try:
        await child.warm_up()
        assert "Seccomp:\t2\n" in Path(f"/proc/{child.process.pid}/status").read_text()
        assert child.unfiltered_for == ""
    finally:
        await child.end()


def altered(how: str) -> tuple[str, ...]:
    """Return the command of a child in whose process something is otherwise."""
    program = (
        f"import sys; {how}; sys.argv.insert(0, 'child'); import runpy; "
        "sys.argv = sys.argv[1:]; runpy.run_module('worker.child', run_name='__main__', alter_sys=True)"
    )
    return sys.executable, "-c", program


@pytest.mark.parametrize(
    ("lacking", "reason"),
    [
        ("sys.modules['pyseccomp'] = None", "pyseccomp or libseccomp is not installed"),
        ("import ctypes.util; ctypes.util.find_library = lambda name: None", "Unable to find libseccomp"),
        ("import platform; platform.machine = lambda: 'm68k'", "there is none for m68k"),
    ],
)
async def test_a_child_that_cannot_be_filtered_works_and_says_why(lacking: str, reason: str) -> None:
    child = await Child.spawn(altered(lacking), 384 << 20, 1 << 20)
    try:
        await child.warm_up()
        assert reason in child.unfiltered_for
    finally:
        await child.end()


async def test_a_child_whose_decoders_the_filter_breaks_does_not_come_up_and_says_what_failed() -> None:
    """Else each picture of that format would fail, and be blamed."""
    greedy = "import worker.child.confinement as c; c._ALLOWED = tuple(set(c._ALLOWED) - {'lseek'})"
    child = await Child.spawn(altered(greedy), 384 << 20, 1 << 20)
    try:
        with pytest.raises(ChildLost, match=r"did not come up: .*Operation not permitted"):
            await child.warm_up()
    finally:
        await child.end()
