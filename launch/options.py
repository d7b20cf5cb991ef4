"""The options that `./run` itself reads from its arguments and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.processes import HERE, LaunchError


@dataclass(frozen=True)
class Options:
    """The launcher's settings. The parts read all other settings from the environment."""

    host: str
    port: int
    storage: Path
    redis_url: str
    workers: int
    grace: int

    @classmethod
    def read(cls, arguments: Sequence[str], env: Mapping[str, str]) -> Options:
        """Read arguments and environment. Raises LaunchError with the variable's name and the fault."""

        def text(name: str, default: str) -> str:
            return env.get(name, "").strip() or default

        def number(name: str, default: str, most: int, least: int = 1) -> int:
            given = text(name, default)
            if not (given.isascii() and given.isdigit() and least <= int(given) <= most):
                raise LaunchError(f"{name}: not a whole number from {least} to {most}: {given}")
            return int(given)

        if len(arguments) == 2 and arguments[0] == "--workers":
            env = {**env, "ASGI_LOOK_WORKERS": arguments[1]}
        elif arguments:
            raise LaunchError("usage: ./run [--workers N]; the rest is set in the environment, see README.md")
        number("WEB_CONCURRENCY", "1", 1_000)  # uvicorn reads this itself, and prints a traceback for a bad value
        return cls(
            host=text("HOST", "127.0.0.1"),
            port=number("PORT", "8000", 65_535),
            # A relative path is relative to the folder in which ./run was called. The parts run in the checkout.
            storage=Path(text("ASGI_LOOK_STORAGE_PATH", str(HERE / "data"))).expanduser().absolute(),
            redis_url=text("REDIS_URL", ""),
            workers=number("ASGI_LOOK_WORKERS", "1", 1_000),
            grace=number("ASGI_LOOK_GRACE_SECONDS", "7", 3_600, least=0),
        )
