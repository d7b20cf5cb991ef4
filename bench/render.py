"""Rendering against the tutorial and against sharp: `python -m bench.render [rounds]`.

Each side is a process that renders in its turn and prints its CPU time. Ours has the environment of a worker's child;
the tutorial and sharp have that of this command. sharp is npm's, found from the working directory or in the
`node_modules` that ASGI_LOOK_BENCH_SHARP names. The pictures are mosaics of photographs that are not enlarged;
ASGI_LOOK_BENCH_PHOTOS may name a folder of other ones (JPEG).

In its turn a side renders twice, and the second time counts. A virtual machine may have given free memory back to its
host since the last turn; the first to ask for it again pays, up to the time of a render.
"""

from __future__ import annotations

import io
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

from bench import tutorial
from bench.figures import ROUNDS, Bar, Figure, Runs, at_least, in_turns, progress, ratio, rounds_asked_for, show
from bench.photographs import encoded, mosaic, photographs
from shared.renditions import Size, ladder
from worker.child import opening, rendering
from worker.renderer.child import ENVIRONMENT
from worker.renderer.outputs import Output

GROUP = "rendering"
LEAST = tutorial.MIN_THUMB_SIZE
NAMES = ("half", "quarter", "eighth", "sixteenth", "smallest")

Make = Callable[[], bytes]
#: Each picture, and the bars of the tutorial's time divided by ours and of sharp's divided by ours.
PICTURES: Mapping[str, tuple[Make, float | None, float | None]] = {
    "12 MP baseline JPEG": (lambda: encoded(mosaic((4032, 3024))), 2.5, 1.0),
    "24 MP baseline JPEG": (lambda: encoded(mosaic((6000, 4000))), 2.5, 1.0),
    "12 MP JPEG, one side odd": (lambda: encoded(mosaic((4031, 3024))), None, None),
    "12 MP dense progressive JPEG": (
        lambda: encoded(mosaic((4032, 3024)), quality=95, subsampling="4:4:4", progressive=True),
        1.4,
        None,
    ),
    "3 MP PNG with alpha": (lambda: encoded(_translucent(mosaic((2048, 1536))), "PNG"), 1.2, None),
    "4 MP WebP": (lambda: encoded(mosaic((2400, 1600)), "WEBP", quality=85), 1.8, None),
}


class Side:
    """A process that renders a file at each call."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 # our own command
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(environment),
        )
        self.clock: list[float] = []

    def __call__(self) -> float:
        """Render; return the milliseconds of CPU."""
        assert self._process.stdin is not None  # noqa: S101 # for mypy
        assert self._process.stdout is not None  # noqa: S101 # likewise
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        computing, elapsed = map(float, self._process.stdout.readline().split())
        self.clock.append(elapsed)
        return computing

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def times(rounds: int) -> Iterator[Figure]:
    node = _sharp()
    for name, (make, bar, sharp_bar) in PICTURES.items():
        with TemporaryDirectory() as folder, ExitStack() as stack:
            file = Path(folder) / "original"
            file.write_bytes(make())
            python = [sys.executable, "-m", "bench.render", "--side"]
            plain = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
            sides = {
                "tutorial": Side([*python, "tutorial", str(file)], plain),
                "tutorial with our pages": Side([*python, "tutorial", str(file)], plain | ENVIRONMENT),
                "ours": Side([*python, "ours", str(file)], plain | ENVIRONMENT),
            }
            if node and sharp_bar is not None:
                command = [node, str(Path(__file__).with_name("sharp.cjs")), str(file), str(LEAST)]
                sides["sharp"] = Side([*command, "ladder"], plain)
                sides["sharp, each from the file"] = Side([*command, "shrunk"], plain)
            for side in sides.values():
                stack.callback(side.end)
            runs = in_turns(sides, rounds, name)
            clocks = {key: statistics.median(side.clock[1:]) for key, side in sides.items()}
            size = f"{file.stat().st_size / 1e6:.1f} MB"
        yield _figure(f"{name}: tutorial / ours", runs, "tutorial", bar, clocks, size)
        yield _figure(f"{name}: tutorial with our huge pages / ours", runs, "tutorial with our pages", None, clocks)
        if "sharp" in runs:
            rival = min(("sharp", "sharp, each from the file"), key=lambda key: statistics.median(runs[key]))
            yield _figure(f"{name}: sharp / ours", runs, rival, sharp_bar, clocks, "" if rival == "sharp" else rival)


def quality() -> Iterator[Figure]:
    """Compare thumbnails with a direct LANCZOS reduction, by PSNR and SSIM: ours minus the tutorial's."""
    served: dict[str, list[Nearness]] = {}
    reduced: dict[str, list[Nearness]] = {}
    for name, image in photographs():
        progress(f"quality: {name}")
        original = encoded(image)
        decoded = Image.open(io.BytesIO(original)).convert("RGB")
        theirs, ours = tutorial.render(original), rendered(original)
        level = decoded
        for label, size in zip(NAMES, ladder(decoded.size, LEAST), strict=False):
            direct = decoded.resize(size, Image.Resampling.LANCZOS)
            level = rendering._scale(level, size, is_first=level is decoded)
            served.setdefault(label, []).append(Nearness.of(_opened(ours[size]), _opened(theirs[size]), direct))
            their_level = tutorial.reduced(original, size).convert("RGB")
            reduced.setdefault(label, []).append(Nearness.of(level, their_level, direct))
    progress("")
    for what, differences in (("as served", served), ("before JPEG", reduced)):
        for label, compared in differences.items():
            values = [one.psnr for one in compared]
            # A box filter differs from BICUBIC only before an encoder.
            bar: Bar | None = at_least(-2 if label == "half" else 0)
            if label == "half" and what == "before JPEG":
                bar = None
            yield Figure(
                GROUP,
                f"{label}, {what}: PSNR to a direct LANCZOS reduction, ours - tutorial, worst of {len(values)}",
                min(values),
                "dB",
                bar,
                note=f"median {statistics.median(values):+.1f} dB; SSIM {min(one.ssim for one in compared):+.4f}",
            )


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    yield from times(rounds)
    yield from quality()


def _figure(
    name: str, runs: Runs, above: str, bar: float | None, clocks: Mapping[str, float], note: str = ""
) -> Figure:
    by_the_clock = f"by the clock {clocks[above] / clocks['ours']:.2f}"
    return Figure(
        GROUP,
        name,
        ratio(runs, above, "ours"),
        bar=None if bar is None else at_least(bar),
        runs={key: runs[key] for key in (above, "ours")},
        runs_unit="ms of computing time",
        note="; ".join(filter(None, (by_the_clock, note))),
    )


def _sharp() -> str | None:
    """Return Node's path if sharp is installed, or None."""
    node = shutil.which("node")
    if node is None:
        print("sharp is left out: there is no Node", file=sys.stderr)
        return None
    looked = "require.resolve('sharp', {paths: [process.env.ASGI_LOOK_BENCH_SHARP || process.cwd()]})"
    if subprocess.run([node, "-e", looked], capture_output=True).returncode != 0:  # noqa: S603
        print(
            "sharp is left out: npm install sharp, and name its node_modules in ASGI_LOOK_BENCH_SHARP", file=sys.stderr
        )
        return None
    return node


def _translucent(image: Image.Image) -> Image.Image:
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def rendered(original: bytes) -> dict[Size, bytes]:
    """Render in this process; return the renditions."""
    picture = opening.open_picture(io.BytesIO(original), max_pixels=50_000_000)
    sizes = (picture.size, *ladder(picture.size, LEAST))
    outputs = {Output(str(size), "jpeg", size): io.BytesIO() for size in sizes}
    rendering.render(picture, outputs, (255, 255, 255))
    return {output.size: file.getvalue() for output, file in outputs.items()}


def _opened(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@dataclass(frozen=True)
class Nearness:
    """How much closer our thumbnail is to a direct reduction than the tutorial's."""

    psnr: float
    ssim: float

    @classmethod
    def of(cls, ours: Image.Image, theirs: Image.Image, direct: Image.Image) -> Nearness:
        return cls(_psnr(ours, direct) - _psnr(theirs, direct), _ssim(ours, direct) - _ssim(theirs, direct))


def _psnr(one: Image.Image, other: Image.Image) -> float:
    error = float(np.mean((np.asarray(one, np.float64) - np.asarray(other, np.float64)) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-6)))


def _ssim(one: Image.Image, other: Image.Image) -> float:
    return float(structural_similarity(np.asarray(one), np.asarray(other), channel_axis=2))  # type: ignore[no-untyped-call] # scikit-image's


def _serve(render: Callable[[bytes], object], original: bytes) -> None:
    for _ in sys.stdin:
        render(original)
        computing, clock = time.process_time(), time.perf_counter()
        render(original)
        print((time.process_time() - computing) * 1000, (time.perf_counter() - clock) * 1000, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        _serve({"ours": rendered, "tutorial": tutorial.render}[sys.argv[2]], Path(sys.argv[3]).read_bytes())
    else:
        show(figures(rounds_asked_for()))
