"""`python -m worker`: the worker's composition root. `--check` reports whether a worker of this host is alive."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys

from shared.cancellation import cancel
from shared.errors import AsgilookError
from shared.identity import check_redis, check_storage, keep_standing
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.connections import open_redis
from shared.redis.notices import Announcer
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
from shared.settings import Settings
from shared.settling import Settling
from shared.shutdown_signals import Requests
from shared.storage.backends import open_storage
from shared.telemetry import logs, tracing
from shared.telemetry.exposition import Exposition
from shared.telemetry.metrics import LEDGER_SECONDS, STORAGE_SECONDS
from shared.telemetry.tracing import traced
from worker import capacity
from worker.attempts import Attempts
from worker.consumer import Consumer
from worker.jobs import Jobs
from worker.metrics import MetricsPort
from worker.pause import Pause
from worker.renderer.pool import Renderer
from worker.slots import Slots
from worker.sweep import Sweep

logger = logging.getLogger("worker")

#: Seconds that attempts have to hand their images back.
_HAND_BACK_SECONDS = 1.0


async def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then finish or hand back what is running."""
    stop, stop_now = _signals()
    # Create this before anything that it counts.
    exposition = Exposition() if settings.metrics_port else None
    name = f"{socket.gethostname()}:{os.getpid()}"
    async with contextlib.AsyncExitStack() as stack:
        if settings.tracing:
            tracing.switch_on("worker")
            stack.push_async_callback(tracing.close)
        ledger = traced(Ledger.connect(settings), "ledger", LEDGER_SECONDS)
        stack.push_async_callback(ledger.close)
        storage = traced(open_storage(settings), "storage", STORAGE_SECONDS)
        await storage.prepare()
        identity = await check_storage(ledger, storage, settings)

        def ledger_name() -> str:
            return identity.name

        # A web process that did not notice the outage uses copies as soon as Redis is back. The sweep would change the
        # tokens too late for that process.
        redis = open_redis(settings, "worker", before_closing=lambda: settling.settle_all_tokens(even_if_open=True))
        stack.push_async_callback(redis.close)
        await redis.check()
        await check_redis(redis.queue, redis.queue_breaker, identity.name, settings)
        queue = traced(Queue(redis.queue, redis.queue_breaker, ledger_name), "queue")
        cache = ResponseCache(redis.cache, redis.cache_breaker, ledger_name)
        announcer = Announcer(redis.queue, redis.queue_breaker, ledger_name)
        settling = Settling(ledger, storage, cache, announcer, settings.keep_originals)

        count = settings.render_slots or capacity.render_slots()
        slots, pause = Slots(count), Pause()
        child_bytes = capacity.child_memory(count)
        renderer = Renderer(settings, count, capacity.pixel_budget(count), child_bytes=child_bytes)
        stack.push_async_callback(renderer.close)
        await renderer.start()
        attempts = Attempts(
            ledger,
            storage,
            queue,
            settling,
            pause,
            name,
            # Those of all other slots may be rendered before it, one by one: each may need the whole pixel budget.
            work_seconds=(count + 1) * settings.render_wall_seconds + 60,
        )
        consumer = Consumer(
            Jobs(settings, identity, storage, renderer, attempts),
            redis=redis.queue,
            queue=queue,
            ledger=ledger,
            attempts=attempts,
            slots=slots,
            pause=pause,
            worker=name,
            is_filtered=not renderer.unfiltered_for,
        )
        consuming = asyncio.create_task(consumer.run())
        background = [
            Sweep(ledger, storage, queue, settling).run(),
            keep_standing(redis.queue, redis.queue_breaker, identity.name),
        ]
        if exposition is not None:
            background.append(MetricsPort(settings, exposition, ledger, queue).run())
        tasks = [asyncio.create_task(part) for part in background]
        # All objects that exist now live as long as the process: the garbage collector need not visit them.
        gc.freeze()
        logger.info("the worker is ready", extra={"worker": name, "slots": count})
        await stop.wait()

        logger.info("the worker takes nothing new", extra={"worker": name})
        consumer.stop()
        hurry = asyncio.create_task(stop_now.wait())
        await asyncio.wait({consuming, hurry}, timeout=settings.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        attempts.stop()
        await asyncio.wait({consuming}, timeout=_HAND_BACK_SECONDS)
        await cancel(hurry, consuming, *tasks)
        with contextlib.suppress(RedisAway):
            await queue.forget(name)
        logger.info("the worker has ended", extra={"worker": name})


async def check(settings: Settings) -> int:
    """Return 0 if a worker of this host is alive, 1 if none is. Raises AsgilookError if that cannot be found out."""
    ledger = Ledger.connect(settings, existing=True)
    redis = open_redis(settings, "worker")
    try:
        identity = await ledger.identity()
        names = await Queue(redis.queue, redis.queue_breaker, lambda: identity.name).workers_alive()
    finally:
        await redis.close()
        await ledger.close()
    host = f"{socket.gethostname()}:"
    ours = [name for name in names if name.startswith(host)]
    print(f"alive: {', '.join(ours)}" if ours else "no worker of this host is alive")
    return 0 if ours else 1


def main() -> int:
    """Run or check. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker", description="Render what is uploaded.")
    parser.add_argument(
        "--check",
        action="store_true",
        help="tell whether a worker of this host is alive: exit code 0, 1 if none is, 2 where that cannot be told",
    )
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env()
        if arguments.check:
            # Print one line only: hide the warnings of the connections.
            logs.configure("ERROR")
            return asyncio.run(check(settings))
        logs.configure(settings.log_level)
        asyncio.run(run(settings))
    except (AsgilookError, OSError) as exc:
        if arguments.check:
            # Not 1: a supervisor would restart workers that only wait for Redis.
            print(f"asgilook: whether a worker is alive cannot be told: {exc}", file=sys.stderr)
            return 2
        print(f"asgilook: the worker cannot run: {exc}", file=sys.stderr)
        return 1
    return 0


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return events that the first and the second SIGTERM or SIGINT set."""
    first, second = asyncio.Event(), asyncio.Event()
    requests = Requests()

    def hear() -> None:
        request = requests.hear()
        if request is not None:
            (first if request == 1 else second).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, hear)
    return first, second


if __name__ == "__main__":
    sys.exit(main())
