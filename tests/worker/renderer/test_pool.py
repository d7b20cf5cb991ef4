"""Children under every fault we can think of: each costs one picture, with the right one to blame."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import pytest
from PIL import Image

from shared.errors import (
    ChildLost,
    DecoderCrashed,
    ImageTooLarge,
    NoChild,
    RenderOutOfMemory,
    RenderTimedOut,
    StorageFull,
    StorageUnavailable,
    UnreadableImage,
)
from shared.renditions import Size, ladder
from shared.settings import Settings
from tests.worker import toy_format
from tests.worker.pictures import encoded, jpeg_of, photo, quartered
from worker.renderer.child import Child
from worker.renderer.formats import FORMATS
from worker.renderer.outputs import Output
from worker.renderer.pool import Renderer
from worker.renderer.protocol import MAX_DESCRIPTORS
from worker.renderer.scratch import Scratch

HOSTILE = (sys.executable, "-m", "tests.worker.hostile")
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = Settings(render_memory_bytes=384 * 1024 * 1024)

StartRenderer = Callable[..., Coroutine[None, None, Renderer]]


#: Servers that the session's other tests have started from this process: they are none of these tests'.
_STRANGERS: set[int] = set()


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    _STRANGERS.update(children())
    yield
    _STRANGERS.clear()


@pytest.fixture
async def start_renderer() -> AsyncIterator[StartRenderer]:
    """Start renderers whose children obey planted faults; afterwards nothing of them is left."""
    renderers: list[Renderer] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    before = children()

    async def start(
        settings: Settings = SETTINGS,
        *,
        slots: int = 1,
        pixel_budget: int = 100_000_000,
        child_bytes: int | None = None,
        command: tuple[str, ...] = HOSTILE,
    ) -> Renderer:
        renderer = Renderer(settings, slots, pixel_budget, child_bytes=child_bytes, command=command)
        renderers.append(renderer)
        await renderer.start()
        return renderer

    yield start

    for renderer in renderers:
        await renderer.close()
    assert children() == before
    assert len(asyncio.all_tasks()) == 1
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def children(of: int | None = None) -> set[int]:
    """Return the pids of all processes started by one, this test unless told; the dead do not count."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == (of or os.getpid()) and state not in "ZX":
                found.add(int(folder.name))
    return found - _STRANGERS


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        await asyncio.sleep(0.01)


async def until_dead(pids: set[int]) -> None:
    await until(lambda: not any(is_alive(pid) for pid in pids))


@pytest.fixture
def original() -> Iterator[Callable[[bytes], int]]:
    """Make descriptors of files with the content given."""
    with ExitStack() as files:

        def write(content: bytes) -> int:
            file = files.enter_context(TemporaryFile())
            file.write(content)
            file.flush()
            return file.fileno()

        yield write


Original = Callable[[bytes], int]

GOOD = encoded(photo((200, 150)), "PNG").getvalue()


def fault(phase: str, name: str) -> bytes:
    return f"FAULT {phase} {name}\n".encode()


async def render(renderer: Renderer, original: int) -> dict[Size, Image.Image]:
    """Have the picture rendered at its size and two below, and return what was written."""
    with ExitStack() as files:
        async with renderer.open(original) as opened:
            sizes = [opened.size, *ladder(opened.size, 1)][:3]
            drafts: dict[Size, IO[bytes]] = {size: files.enter_context(TemporaryFile()) for size in sizes}
            await opened.render({jpeg_of(size): draft.fileno() for size, draft in drafts.items()})
        images: dict[Size, Image.Image] = {}
        for size, draft in drafts.items():
            images[size] = Image.open(draft)
            images[size].load()
        return images


def copied_slowly(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Have every copy out of a scratch file take its time; return what is set when one has begun."""
    copy_to, begun = Scratch.copy_to, threading.Event()

    def copy_slowly(self: Scratch, target: int) -> tuple[int, str]:
        begun.set()
        time.sleep(0.05)
        return copy_to(self, target)

    monkeypatch.setattr(Scratch, "copy_to", copy_slowly)
    return begun


async def test_a_picture_is_opened_and_rendered(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer(command=(sys.executable, "-m", "worker.child"))

    async with renderer.open(original(GOOD)) as opened:
        with TemporaryFile() as full, TemporaryFile() as thumbnail:
            stages = await opened.render({jpeg_of((200, 150)): full.fileno(), jpeg_of((50, 37)): thumbnail.fileno()})

            assert (opened.size, opened.format) == ((200, 150), "PNG")
            assert Image.open(full).size == (200, 150)
            assert Image.open(thumbnail).size == (50, 37)
            assert set(stages) == {"decode", "colour", "scale", "encode"}


def toy_child(fault: str = "") -> tuple[str, ...]:
    """Return the command of a child that knows the toy format, too."""
    return sys.executable, "-m", "tests.worker.toy_format", fault


async def write(renderer: Renderer, original: int, outputs: Sequence[Output]) -> dict[Output, bytes]:
    """Have the outputs rendered, and return what was written."""
    with ExitStack() as files:
        async with renderer.open(original) as opened:
            drafts = {output: files.enter_context(TemporaryFile()) for output in outputs}
            await opened.render({output: draft.fileno() for output, draft in drafts.items()})
        contents: dict[Output, bytes] = {}
        for output, draft in drafts.items():
            contents[output] = os.pread(draft.fileno(), os.fstat(draft.fileno()).st_size, 0)
            assert opened.written[output] == (len(contents[output]), sha256(contents[output]).hexdigest())
        return contents


async def test_a_format_is_added_by_an_encoder_and_a_check(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of one size may differ in their format, or in their name only."""
    monkeypatch.setitem(FORMATS, "toy", toy_format.TOY)
    renderer = await start_renderer(command=toy_child())
    full, half = Output("full", "toy", (200, 150)), Output("100x75", "toy", (100, 75))
    jpeg, named = Output("full", "jpeg", (200, 150)), Output("other", "jpeg", (200, 150))

    written = await write(renderer, original(GOOD), [full, jpeg, half, named])

    assert toy_format.decoded(written[full]) == photo((200, 150))
    assert toy_format.size_of(written[half]) == (100, 75)
    assert written[jpeg] == written[named] == (await write(renderer, original(GOOD), [jpeg]))[jpeg]


@pytest.mark.parametrize("fault", ["toy:jpeg", "jpeg:toy"])
async def test_a_child_that_writes_another_format_than_ordered_is_killed(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Its picture is not blamed."""
    monkeypatch.setitem(FORMATS, "toy", toy_format.TOY)
    renderer = await start_renderer(command=toy_child(fault))
    before = children()

    with pytest.raises(ChildLost, match="claimed to have rendered what it had not"):
        await write(renderer, original(GOOD), [Output("full", format, (200, 150)) for format in ("jpeg", "toy")])

    await until_dead(before)


async def test_a_format_that_cannot_be_checked_is_not_ordered(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer(command=toy_child())

    with pytest.raises(ValueError, match=r"not output formats: .*toy"):
        await write(renderer, original(GOOD), [Output("full", format, (200, 150)) for format in ("jpeg", "toy")])


async def test_an_order_for_a_format_that_a_child_does_not_know_is_refused_and_its_picture_not_blamed(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "toy", toy_format.TOY)
    renderer = await start_renderer()

    with pytest.raises(ChildLost, match=r"not output formats: .*toy"):
        await write(renderer, original(GOOD), [Output("full", format, (200, 150)) for format in ("jpeg", "toy")])

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_as_many_outputs_as_an_order_may_have_are_made(start_renderer: StartRenderer, original: Original) -> None:
    """A name is as long as a preset's may be."""
    renderer = await start_renderer()
    names = [f"{number:0200}" for number in range(MAX_DESCRIPTORS)]

    written = await write(renderer, original(GOOD), [Output(name, "jpeg", (25, 18)) for name in names])

    assert len(written) == MAX_DESCRIPTORS
    assert len(set(written.values())) == 1


async def test_more_outputs_are_our_own_mistake(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    names = [str(number) for number in range(MAX_DESCRIPTORS + 1)]

    with pytest.raises(ValueError, match="outputs in one order"):
        await write(renderer, original(GOOD), [Output(name, "jpeg", (25, 18)) for name in names])


async def test_a_finished_render_leaves_one_line(
    start_renderer: StartRenderer, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = await start_renderer()
    caplog.set_level(logging.INFO, "worker.child")

    await render(renderer, original(GOOD))

    (line,) = caplog.records
    (pid,) = children()
    assert (line.message, vars(line)["pid"], vars(line)["format"], vars(line)["size"]) == (
        "rendered",
        pid,
        "PNG",
        [200, 150],
    )


async def test_a_child_goes_on_after_pictures_that_it_cannot_read(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer(replace(SETTINGS, max_pixels=40_000))
    before = children()

    for content, failure in (
        (b"hello", UnreadableImage),
        (GOOD[:400], UnreadableImage),
        (encoded(quartered((300, 200)), "PNG").getvalue(), ImageTooLarge),
    ):
        with pytest.raises(failure):
            await render(renderer, original(content))

    assert (200, 150) in await render(renderer, original(GOOD))
    assert children() == before


async def test_an_original_is_read_from_its_start_wherever_its_descriptor_stands(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer()
    descriptor = original(GOOD)

    assert await render(renderer, descriptor) == await render(renderer, descriptor)


@pytest.mark.parametrize("phase", ["open", "render"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("segfault", DecoderCrashed),
        ("abort", DecoderCrashed),
        ("vanish", ChildLost),
        ("bug", ChildLost),
        ("allocate", RenderOutOfMemory),
        ("disk", ChildLost),
        ("garbage", ChildLost),
        ("long", ChildLost),
        ("empty", ChildLost),
        ("no-map", ChildLost),
        ("no-size", ChildLost),
        ("odd-size", ChildLost),
        ("true-size", ChildLost),
        ("large-size", ChildLost),
        ("odd-format", ChildLost),
        ("odd-error", ChildLost),
        ("long-error", ChildLost),
        ("odd-cause", ChildLost),
        ("talkative", ChildLost),
        ("talks-later", UnreadableImage),
        ("odd-stages", ChildLost),
        ("endless-stage", ChildLost),
        ("lie", ChildLost),
    ],
)
async def test_a_fault_costs_its_own_picture_only(
    start_renderer: StartRenderer,
    original: Original,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
    name: str,
    error: type[Exception],
) -> None:
    """Promise 8: with one slot, the next picture is rendered by the same child or by its replacement."""
    renderer = await start_renderer()

    with pytest.raises(error):
        await render(renderer, original(fault(phase, name)))

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_size_past_the_limits_that_were_set_is_not_believed(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer(replace(SETTINGS, max_side=3))

    with pytest.raises(ChildLost, match="nonsense about a header"):
        await render(renderer, original(fault("render", "hang")))  # it claims to be of 4 x 4


async def test_a_child_may_take_no_more_memory_than_this_machine_has_for_it(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer(child_bytes=256 * 1024 * 1024)
    large = encoded(Image.new("RGBA", (6000, 6000), (1, 2, 3, 4)), "PNG").getvalue()

    with pytest.raises(RenderOutOfMemory):
        await render(renderer, original(large))


@pytest.mark.parametrize("phase", ["open", "render"])
async def test_a_hang_ends_at_the_wall_limit_and_neighbours_do_not_notice(
    start_renderer: StartRenderer, original: Original, phase: str
) -> None:
    renderer = await start_renderer(replace(SETTINGS, render_wall_seconds=1.0), slots=2)
    hanging = asyncio.create_task(render(renderer, original(fault(phase, "hang"))))

    for _ in range(5):
        assert (200, 150) in await render(renderer, original(GOOD))

    with pytest.raises(RenderTimedOut):
        await hanging
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_who_comes_while_another_is_rendered_waits_for_it_and_not_for_a_child(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next picture is there before the last one's child is free: that it is no trouble of this worker's."""
    monkeypatch.setattr("worker.renderer.pool._CHILD_SECONDS", 0.1)
    renderer = await start_renderer()
    waiting: list[asyncio.Task[dict[Size, Image.Image]]] = []

    async def rendered() -> None:
        waiting.append(asyncio.create_task(render(renderer, original(GOOD))))
        await asyncio.wait(waiting, timeout=0.4)

    async with renderer.open(original(GOOD)) as opened:
        with TemporaryFile() as full, TemporaryFile() as thumbnail:
            outputs = {jpeg_of((200, 150)): full.fileno(), jpeg_of((50, 37)): thumbnail.fileno()}
            await opened.render(outputs, rendered=rendered)

    assert (200, 150) in await waiting[0]


async def test_a_child_starts_after_more_failures_than_a_number_has_powers(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 to the power of 1,024 is no float: the loop that fills the slot would end."""
    monkeypatch.setattr("worker.renderer.pool._AGAIN_SECONDS", 0.0)
    renderer = await start_renderer()
    spawn, failures = Child.spawn, 0

    async def refuse(*arguments: Any) -> Child:
        nonlocal failures
        failures += 1
        if failures <= 1100:
            raise OSError("no memory")
        return await spawn(*arguments)

    monkeypatch.setattr(Child, "spawn", refuse)
    with pytest.raises(DecoderCrashed):
        await render(renderer, original(fault("render", "segfault")))

    assert (200, 150) in await render(renderer, original(GOOD))


@pytest.mark.parametrize("trouble", [OSError("no memory"), RuntimeError("can't start new thread")])
async def test_without_a_child_an_image_is_handed_back_until_one_starts_again(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """Else one sick worker would hold what it claims, and its slot would be gone for good."""
    monkeypatch.setattr("worker.renderer.pool._CHILD_SECONDS", 0.1)
    monkeypatch.setattr("worker.renderer.pool._AGAIN_SECONDS", 0.01)
    renderer = await start_renderer()
    spawn = Child.spawn

    async def refuse(*arguments: object) -> Child:
        raise trouble

    monkeypatch.setattr(Child, "spawn", refuse)
    with pytest.raises(DecoderCrashed):
        await render(renderer, original(fault("render", "segfault")))
    with pytest.raises(NoChild):
        await render(renderer, original(GOOD))

    monkeypatch.setattr(Child, "spawn", spawn)
    monkeypatch.setattr("worker.renderer.pool._CHILD_SECONDS", 30)
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_worker_that_stood_still_past_the_limit_still_takes_its_childs_answer(
    start_renderer: StartRenderer, original: Original
) -> None:
    """After a SIGSTOP, or a machine's pause, the time-out and the child's answer are there at the same moment."""
    renderer = await start_renderer(replace(SETTINGS, render_wall_seconds=2.0))

    with TemporaryFile() as full, TemporaryFile() as thumbnail:
        async with renderer.open(original(GOOD)) as opened:
            outputs = {jpeg_of((200, 150)): full.fileno(), jpeg_of((50, 37)): thumbnail.fileno()}
            # The child has its order by then, and renders on.
            asyncio.get_running_loop().call_soon(time.sleep, 2.5)
            await opened.render(outputs)

    assert opened.written.keys() == outputs.keys()


async def test_spinning_ends_at_the_limit_of_computing_time(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer(replace(SETTINGS, render_cpu_seconds=1, render_wall_seconds=60.0))

    with pytest.raises(RenderTimedOut, match="computing time"):
        await render(renderer, original(fault("render", "spin")))

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_computing_time_is_allowed_to_each_picture_anew(
    start_renderer: StartRenderer, original: Original
) -> None:
    """The kernel counts from the start of the process: a limit set once would kill every child after a while."""
    renderer = await start_renderer(replace(SETTINGS, render_cpu_seconds=1))
    (pid,) = children()
    descriptor = original(encoded(photo((3000, 2000)), "PNG").getvalue())

    def ticks() -> int:
        return sum(int(v) for v in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])

    while ticks() < 2.5 * os.sysconf("SC_CLK_TCK"):
        await render(renderer, descriptor)

    assert children() == {pid}


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [("RGBA", "PNG", {}), ("RGBA", "WEBP", {"method": 0}), ("RGB", "JPEG", {"progressive": True})],
)
async def test_a_picture_that_needs_too_much_memory_is_to_blame(
    start_renderer: StartRenderer, original: Original, mode: str, format: str, options: dict[str, Any]
) -> None:
    """Also where its decoder tells a lack of memory as it tells damage: to send it again would be no use."""
    renderer = await start_renderer(replace(SETTINGS, render_memory_bytes=256 * 1024 * 1024))
    large = encoded(Image.new(mode, (7000, 7000), (1, 2, 3, 4)[: len(mode)]), format, **options).getvalue()

    with pytest.raises(RenderOutOfMemory):
        await render(renderer, original(large))

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_damaged_length_does_not_cost_the_memory_that_it_claims(
    start_renderer: StartRenderer, original: Original
) -> None:
    """Pillow asks its file for as many bytes as a chunk claims to have, and Python makes room for them beforehand."""
    renderer = await start_renderer()
    before = children()
    at = GOOD.index(b"IDAT")

    written = await render(renderer, original(GOOD[: at - 4] + b"\xff\xff\xff\xff" + GOOD[at:]))

    assert (200, 150) in written
    assert children() == before


async def test_a_child_killed_from_outside_is_nobodys_fault(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    (pid,) = children()

    async with renderer.open(original(fault("render", "hang"))) as opened:
        with TemporaryFile() as draft:
            rendering = asyncio.create_task(opened.render({jpeg_of((4, 4)): draft.fileno()}))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ChildLost):
                await rendering

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_children_killed_while_idle_cost_no_picture(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer(slots=2)

    for _ in range(3):
        killed = children()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        await until_dead(killed)
        assert (200, 150) in await render(renderer, original(GOOD))

    await until(lambda: len(children()) == 2)


async def test_a_child_that_hangs_up_and_stays_is_killed(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.renderer.child.EXIT_SECONDS", 0.2)  # ten seconds would only be waited for
    renderer = await start_renderer()
    (pid,) = children()

    with pytest.raises(ChildLost, match="hung up"):
        await render(renderer, original(fault("open", "hang-up")))

    await until(lambda: not is_alive(pid))
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_who_is_cancelled_while_renditions_are_copied_leaves_the_child_to_others(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = copied_slowly(monkeypatch)
    renderer = await start_renderer()
    before = children()
    rendering = asyncio.create_task(render(renderer, original(GOOD)))
    await until(copying.is_set)

    rendering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rendering

    assert children() == before
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_cancelled_render_kills_its_child_at_once_and_reports_no_trouble(
    start_renderer: StartRenderer, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    """Preempted work and a worker that stops say nothing about files or memory."""
    renderer = await start_renderer()
    (pid,) = children()
    began = asyncio.Event()

    async def job() -> None:
        async with renderer.open(original(fault("render", "hang"))) as opened:
            with TemporaryFile() as draft:
                began.set()
                await opened.render({jpeg_of((4, 4)): draft.fileno()})

    task = asyncio.create_task(job())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await until(lambda: not is_alive(pid))
    assert (200, 150) in await render(renderer, original(GOOD))
    assert "replacing a child" not in caplog.messages


async def test_a_cancelled_child_that_goes_on_is_reported_if_it_dies_later(
    start_renderer: StartRenderer, original: Original, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancellation after the render leaves the child to others."""
    renderer = await start_renderer()

    async def job() -> None:
        async with renderer.open(original(GOOD)) as opened:
            with TemporaryFile() as draft:
                await opened.render({jpeg_of((200, 150)): draft.fileno()})
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await job()

    with pytest.raises(DecoderCrashed):
        await render(renderer, original(fault("render", "segfault")))

    await until(lambda: "replacing a child" in caplog.messages)


async def test_who_leaves_without_rendering_costs_the_child_its_life(
    start_renderer: StartRenderer, original: Original
) -> None:
    """It waits for an order that will never come, with the original still open: a fresh one knows where it stands."""
    renderer = await start_renderer()
    (pid,) = children()

    async with renderer.open(original(GOOD)) as opened:
        assert opened.size == (200, 150)

    await until(lambda: not is_alive(pid))
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_closing_in_the_middle_of_a_render_loses_it(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    async with renderer.open(original(fault("render", "hang"))) as opened:
        with TemporaryFile() as draft:
            rendering = asyncio.create_task(opened.render({jpeg_of((4, 4)): draft.fileno()}))
            await renderer.close()

            with pytest.raises(ChildLost):
                await rendering


async def test_a_full_disk_is_storage_that_is_full(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    before = children()

    full = os.open("/dev/full", os.O_RDWR)
    try:
        async with renderer.open(original(GOOD)) as opened:
            with pytest.raises(StorageFull):
                await opened.render({jpeg_of((200, 150)): full})
    finally:
        os.close(full)

    assert (200, 150) in await render(renderer, original(GOOD))
    assert children() == before


async def test_an_original_that_cannot_be_read_is_the_storages_trouble(
    start_renderer: StartRenderer, original: Original, tmp_path: Path
) -> None:
    """A child that only says so ("disk", above) is not believed: its image would be tried again for ever."""
    renderer = await start_renderer()
    (tmp_path / "original").write_bytes(GOOD)
    unreadable = os.open(tmp_path / "original", os.O_WRONLY)
    try:
        with pytest.raises(StorageUnavailable):
            await render(renderer, unreadable)
    finally:
        os.close(unreadable)

    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_child_that_writes_too_much_is_stopped(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    async with renderer.open(original(GOOD)) as opened:
        with TemporaryFile() as draft:
            (pid,) = children()
            subprocess.run(["prlimit", f"--pid={pid}", "--fsize=100"], check=True)  # noqa: ASYNC221 # a moment

            with pytest.raises(ChildLost, match="File too large"):
                await opened.render({jpeg_of((200, 150)): draft.fileno()})


async def test_a_child_knows_nothing_and_holds_nothing(start_renderer: StartRenderer, original: Original) -> None:
    """Promise 6: no secret in its environment, and of all descriptors only its end of the connection."""
    renderer = await start_renderer(command=(sys.executable, "-m", "worker.child"))
    (pid,) = children()

    def opened() -> dict[str, str]:
        return {fd.name: os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}

    before = opened()
    for content in [GOOD, b"hello", GOOD[:500]] * 10:
        try:
            await render(renderer, original(content))
        except UnreadableImage:
            continue

    assert Path(f"/proc/{pid}/environ").read_bytes() == b"GLIBC_TUNABLES=glibc.malloc.hugetlb=1\0"
    assert os.getsid(pid) == pid
    assert sorted(before.values())[:3] == ["/dev/null"] * 3
    assert len(before) == 4
    await until(lambda: opened() == before)


async def test_a_child_is_limited_from_its_start(start_renderer: StartRenderer) -> None:
    await start_renderer(command=(sys.executable, "-m", "worker.child"))
    (pid,) = children()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}

    assert limits["Max address space"] == [str(SETTINGS.render_memory_bytes)] * 2
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["256", "256"]
    assert limits["Max file size"][0] != "unlimited"
    assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


async def test_a_child_has_no_network(start_renderer: StartRenderer) -> None:
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:  # noqa: ASYNC221 # a moment
        pytest.skip("this machine lets nobody have a network namespace")
    await start_renderer(command=(sys.executable, "-m", "worker.child"))
    (pid,) = children()

    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


async def test_a_child_that_keeps_too_much_memory_is_replaced(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer()
    before = children()

    with pytest.raises(UnreadableImage):
        await render(renderer, original(fault("open", "leak")))

    await until_dead(before)
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_child_is_replaced_after_so_many_pictures(
    start_renderer: StartRenderer, original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a picture may have made of it in silence ends with it."""
    monkeypatch.setattr("worker.renderer.child.MOST_PICTURES", 3)
    renderer = await start_renderer()
    before = children()

    for content in (GOOD, b"hello"):
        with suppress(UnreadableImage):
            await render(renderer, original(content))
        assert children() == before
    await render(renderer, original(GOOD))

    await until_dead(before)
    assert (200, 150) in await render(renderer, original(GOOD))


async def test_a_child_lets_its_worker_decide_when_to_stop(start_renderer: StartRenderer, original: Original) -> None:
    renderer = await start_renderer()
    before = children()
    for pid in before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)

    assert (200, 150) in await render(renderer, original(GOOD))

    assert children() == before


async def test_children_die_with_their_parent() -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from shared.settings import Settings
        from worker.renderer.outputs import Output
        from worker.renderer.pool import Renderer

        async def main():
            renderer = Renderer(Settings(), 2, 1, command=(sys.executable, "-m", "tests.worker.hostile"))
            await renderer.start()
            with open(sys.argv[1], "rb") as original:
                async with renderer.open(original.fileno()) as opened, asyncio.timeout(None):
                    print("opened", flush=True)
                    with open(sys.argv[2], "w+b") as draft:
                        await opened.render({Output("full", "jpeg", (4, 4)): draft.fileno()})

        asyncio.run(main())
    """)
    with TemporaryFile() as file, TemporaryFile() as draft:
        file.write(fault("render", "hang"))
        file.flush()
        paths = [f"/proc/self/fd/{f.fileno()}" for f in (file, draft)]
        parent = subprocess.Popen(  # noqa: ASYNC220 # what is tested is its death, not its output
            [sys.executable, "-c", program, *paths],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            pass_fds=(file.fileno(), draft.fileno()),
        )
        with parent:
            try:
                assert parent.stdout is not None
                assert parent.stdout.readline() == b"opened\n"
                born = children(parent.pid)
            finally:
                parent.kill()

    assert len(born) == 2
    await until_dead(born)


@pytest.mark.parametrize("program", ["pass", "import os; os.abort()", "import sys; sys.stdin.read(); 1 / 0"])
async def test_a_child_that_does_not_come_up_fails_the_start(start_renderer: StartRenderer, program: str) -> None:
    with pytest.raises(ChildLost, match="did not come up"):
        await start_renderer(slots=2, command=(sys.executable, "-c", program))


async def test_a_start_that_is_cancelled_leaves_nothing(start_renderer: StartRenderer) -> None:
    starting = asyncio.create_task(start_renderer(slots=2))
    await until(lambda: len(children()) > 0)

    starting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await starting


async def test_pictures_wait_for_the_pixel_budget(start_renderer: StartRenderer, original: Original) -> None:
    """There is a free child for the second picture, but no room for its pixels while the first is being decoded."""
    renderer = await start_renderer(slots=2, pixel_budget=16)
    async with renderer.open(original(fault("render", "hang"))) as opened:
        with TemporaryFile() as draft:
            first = asyncio.create_task(opened.render({jpeg_of((4, 4)): draft.fileno()}))
            second = asyncio.create_task(render(renderer, original(GOOD)))
            done, _ = await asyncio.wait({first, second}, timeout=0.5)

            first.cancel()

            assert done == set()
            assert (200, 150) in await second


async def test_seconds_are_those_in_which_the_child_works(start_renderer: StartRenderer, original: Original) -> None:
    """Owners are billed by them: not for the work that is before theirs."""
    renderer = await start_renderer(pixel_budget=16)
    async with renderer.open(original(GOOD)) as opened:
        header = opened.seconds
        with TemporaryFile() as draft:
            async with renderer._budget.hold(16):
                rendering = asyncio.create_task(opened.render({jpeg_of((200, 150)): draft.fileno()}))
                await until(renderer._budget._turn.locked)
                waiting = opened.seconds
            await rendering

        assert 0 < header == waiting < opened.seconds


async def test_waiting_for_the_pixel_budget_does_not_count_as_rendering(
    start_renderer: StartRenderer, original: Original
) -> None:
    renderer = await start_renderer(replace(SETTINGS, render_wall_seconds=1.5), slots=2, pixel_budget=16)
    first = asyncio.create_task(render(renderer, original(fault("render", "hang"))))
    second = asyncio.create_task(render(renderer, original(fault("render", "hang"))))

    for task in (first, second):
        with pytest.raises(RenderTimedOut):
            await task

    assert (200, 150) in await render(renderer, original(GOOD))
