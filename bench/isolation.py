"""What the child costs: `python -m bench.isolation [rounds]`, a photograph rendered in a child and in this process.

Both render ten times in turn and write the same files; their medians are compared.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, cast

from PIL import Image
from skimage import data

from shared.renditions import Size, ladder
from shared.settings import Settings
from worker.child import opening, rendering
from worker.renderer.outputs import Output
from worker.renderer.pool import Renderer

ROUNDS = 100
TURN = 10
SIZES: Mapping[str, Size] = {"1 MP": (1200, 800), "12 MP": (4200, 2800)}
SETTINGS = Settings()


def photograph(size: Size) -> bytes:
    """Return a JPEG of four photographs (of scikit-image, in the public domain) side by side, enlarged to `size`."""
    folder = Path(data.__file__).parent
    picture = Image.new("RGB", (1200, 800))
    picture.paste(Image.open(folder / "coffee.png"))
    picture.paste(Image.open(folder / "rocket.jpg"), (600, 0))
    picture.paste(Image.open(folder / "hubble_deep_field.jpg").crop((0, 0, 1000, 400)), (0, 400))
    picture.paste(Image.open(folder / "chelsea.png"), (749, 500))
    file = io.BytesIO()
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=92)
    return file.getvalue()


def outputs_of(size: Size) -> list[Output]:
    return [Output(str(rung), "jpeg", rung) for rung in (size, *ladder(size, SETTINGS.min_thumb_size))]


async def render_here(original: BinaryIO) -> float:
    """Render in this process, in a thread, as a worker without children would; return the seconds."""

    def render() -> None:
        with ExitStack() as files:
            original.seek(0)
            picture = opening.open_picture(original, max_pixels=SETTINGS.max_pixels)
            outputs = {output: files.enter_context(TemporaryFile(buffering=0)) for output in outputs_of(picture.size)}
            rendering.render(picture, outputs, SETTINGS.background)

    start = time.perf_counter()
    await asyncio.to_thread(render)
    return time.perf_counter() - start


async def render_there(renderer: Renderer, original: BinaryIO) -> float:
    """Render in a child; return the seconds from asking for a child to the written files."""
    start = time.perf_counter()
    with ExitStack() as files:
        async with renderer.open(original.fileno()) as opened:
            outputs = {output: files.enter_context(TemporaryFile(buffering=0)) for output in outputs_of(opened.size)}
            await opened.render({output: file.fileno() for output, file in outputs.items()})
    return time.perf_counter() - start


async def compare(renderer: Renderer, name: str, size: Size, rounds: int) -> None:
    with cast("BinaryIO", TemporaryFile()) as original:
        original.write(photograph(size))
        original.flush()
        here: list[float] = []
        there: list[float] = []
        await render_there(renderer, original)  # warm up both
        await render_here(original)
        while len(here) < rounds:
            if sys.stderr.isatty():
                print(f"\r{name}: {len(here)} of {rounds}", end="", file=sys.stderr)
            here += [await render_here(original) for _ in range(TURN)]
            there += [await render_there(renderer, original) for _ in range(TURN)]
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    ratio = statistics.median(there) / statistics.median(here)
    print(
        f"{name}: {statistics.median(here) * 1000:.1f} ms in this process, {statistics.median(there) * 1000:.1f} ms in "
        f"a child: {ratio:.3f} times ({len(here)} pictures each, medians)"
    )


async def measure(rounds: int) -> None:
    renderer = Renderer(SETTINGS, 1, SETTINGS.max_pixels)
    await renderer.start()
    print(f"system-call filter: {renderer.unfiltered_for or 'on'}")
    try:
        for name, size in SIZES.items():
            await compare(renderer, name, size, rounds if name == "1 MP" else max(1, rounds // 5))
    finally:
        await renderer.close()


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS))
