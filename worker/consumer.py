"""The consumer: takes jobs from the queue while a slot is free, and has arq run them.

arq's own way of taking a job reads a hundred ids and asks three times about each, since arq leaves running jobs in the
queue. Here ZPOPMIN takes the job out as it finds it: no other worker can get it, and the start takes two exchanges
instead of seven. A job that is lost on the way is queued again by the sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from arq.worker import Function, Worker
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.redis.circuit_breaker import RedisAway
from shared.redis.clients import arq_client
from shared.redis.queue import Queue, pack, unpack
from worker.pause import Pause
from worker.slots import Slot, Slots

logger = logging.getLogger(__name__)

#: Seconds after which the queue is looked at without a ring, since a ring may be lost.
_LISTEN_SECONDS = 0.5
_BEAT_EVERY_SECONDS = 2.0
_RECONNECT_SECONDS = 0.5


class Children(Protocol):
    """What a consumer asks about the child processes."""

    unfiltered_for: str


class Consumer:
    """Takes a job for each free slot, the oldest first. The ledger alone issues work again, so nothing is retried."""

    def __init__(
        self,
        functions: Sequence[Function],
        *,
        redis: Redis,
        queue: Queue,
        slots: Slots,
        pause: Pause,
        worker: str,
        job_seconds: float,
        children: Children,
    ) -> None:
        self._redis = redis
        self._queue = queue
        self._slots = slots
        self._pause = pause
        self._worker = worker
        self._children = children
        self._is_stopping = False
        self._beaten_at = -_BEAT_EVERY_SECONDS
        #: The jobs that run, each with its slot.
        self._running: dict[asyncio.Task[Any] | None, Slot] = {}
        self._arq = Worker(
            functions,
            queue_name=queue.name,
            redis_pool=arq_client(redis, job_serializer=pack, job_deserializer=unpack),
            job_timeout=job_seconds,
            max_tries=1,
            retry_jobs=False,
            keep_result=0,
            handle_signals=False,
            on_job_start=self._hand_over_slot,
            job_serializer=pack,
            job_deserializer=unpack,
        )

    async def run(self) -> None:
        """Consume until cancelled, whether or not Redis is there. Running jobs go on by themselves."""
        while True:
            try:
                await self._consume()
            except (RedisError, OSError) as exc:
                logger.warning("the queue is away", extra={"reason": f"{type(exc).__name__}: {exc}"})
            except Exception:
                logger.exception("the consumer failed and begins again")
            await asyncio.sleep(_RECONNECT_SECONDS)

    def stop(self) -> None:
        """Take nothing new from now on."""
        self._is_stopping = True

    async def _consume(self) -> None:
        while True:
            self._slots.freed.clear()
            await self._take_jobs()
            await self._beat()
            await self._wait()

    async def _take_jobs(self) -> None:
        while self._may_take():
            found = await self._redis.zpopmin(self._queue.name)
            if not found:
                break
            ((job_id, score),) = found
            task = asyncio.create_task(self._run_job(job_id.decode(), int(score)))
            self._running[task] = self._slots.take()
            task.add_done_callback(self._end_job)

    def _may_take(self) -> bool:
        return self._slots.free > 0 and not self._pause.seconds_left and not self._is_stopping

    async def _run_job(self, job_id: str, score: int) -> None:
        try:
            await self._arq.run_job(job_id, score)
        except (RedisError, OSError) as exc:
            # Its outcome is in the ledger, or the sweep finds that it was never run.
            logger.debug("a job's end was not recorded in Redis", extra={"reason": str(exc)})
        except Exception:
            logger.exception("arq could not run a job")

    async def _hand_over_slot(self, ctx: dict[str, Any]) -> None:
        ctx["slot"] = self._running[asyncio.current_task()]

    def _end_job(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task).release()

    async def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= _BEAT_EVERY_SECONDS:
            self._beaten_at = time.monotonic()
            with contextlib.suppress(RedisAway):
                await self._queue.beat(self._worker, is_filtered=not self._children.unfiltered_for)

    async def _wait(self) -> None:
        if self._slots.freed.is_set():
            return  # a job ended while the queue was looked at, and more may wait
        if self._may_take():
            # Do not BLPOP while all slots are taken: an idle worker needs that wake-up.
            # redis-py's types know whole seconds only; the server takes fractions.
            await self._redis.blpop([self._queue.doorbell], timeout=_LISTEN_SECONDS)  # type: ignore[arg-type,misc]
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._slots.freed.wait(), _LISTEN_SECONDS)
