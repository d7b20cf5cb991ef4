"""arq's Worker, made to start jobs within milliseconds and to survive its Redis.

What runs a job is arq's; how a job is taken is not. arq reads a hundred ids, and asks of each three times whether
somebody else has it, since it leaves running jobs in the queue. Here a job is taken out of the queue by the word that
finds it: nobody else can have it then, and what is lost on the way, the sweep finds in the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

from arq.constants import job_key_prefix, retry_key_prefix
from arq.worker import Function, Worker
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.redis.circuit_breaker import RedisAway
from shared.redis.clients import arq_client
from shared.redis.queue import Queue, pack, unpack
from worker.attempts import Lent

logger = logging.getLogger(__name__)

#: Seconds after which a listener looks for itself: a ring may have been lost.
_LISTEN_SECONDS = 0.5
_BEAT_EVERY_SECONDS = 2.0
_RECONNECT_SECONDS = 0.5


class Consumer(Worker):
    """Takes jobs while a slot is free. Only the ledger issues work again, so nothing is retried or kept here."""

    def __init__(
        self,
        functions: list[Function],
        *,
        redis: Redis,
        queue: Queue,
        slots: int,
        job_seconds: float,
        worker: str,
        may_take: Callable[[], bool],
        may_listen: Callable[[], bool] = lambda: True,
        is_filtered: bool = True,
    ) -> None:
        super().__init__(
            functions,
            queue_name=queue.name,
            redis_pool=arq_client(redis, job_serializer=pack, job_deserializer=unpack),
            max_jobs=slots,
            job_timeout=job_seconds,
            max_tries=1,
            retry_jobs=False,
            keep_result=0,
            handle_signals=False,
            on_job_start=self._lend_slot,
            job_serializer=pack,
            job_deserializer=unpack,
        )
        self._queue = queue
        self._worker = worker
        self._may_take = may_take
        self._may_listen = may_listen
        self._is_filtered = is_filtered
        self._slot_freed = asyncio.Event()
        #: Jobs that go on without a slot, and how many of those are over that arq has not counted yet.
        self._without_slot: set[str] = set()
        self._uncounted = 0
        #: Whether there were more jobs in the queue than were taken, when it was last looked at.
        self._more_wait = False
        self._beaten_at = -_BEAT_EVERY_SECONDS

    async def main(self) -> None:
        """Take jobs until cancelled. Raises RedisError or OSError when Redis goes away; running jobs go on."""
        while True:
            self._slot_freed.clear()
            if self._may_pick:
                await self._poll_iteration()
            else:
                await self.heart_beat()
            await self._wait_for_work()

    async def _poll_iteration(self) -> None:
        """Take a job for each free slot, the oldest first, and start it."""
        while self._may_pick and self.job_counter < self.max_jobs:
            async with self.pool.pipeline(transaction=False) as pipe:
                pipe.zpopmin(self.queue_name)
                pipe.zcard(self.queue_name)
                found, waiting = await pipe.execute()
            self._more_wait = waiting > 0
            if not found:
                break
            ((job_id, score),) = found
            self._start(job_id.decode(), int(score))
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                # What went wrong in arq's own code is to be known.
                task.result()
        await self.heart_beat()

    def _start(self, job_id: str, score: int) -> None:
        self.job_counter += 1
        task = self.tasks[job_id] = self.loop.create_task(self.run_job(job_id, score))
        task.add_done_callback(lambda _: self._release_sem_dec_counter_on_complete())

    def look(self) -> None:
        """Look into the queue at once, and listen again."""
        self._slot_freed.set()

    async def heart_beat(self) -> None:
        """Tell that the loop turns; there are no cron jobs to look for."""
        await self.record_health()

    async def finish_job(self, job_id: str, *_: Any) -> None:
        """Forget a job that was run; it left the queue before."""
        await self.pool.delete(job_key_prefix + job_id, retry_key_prefix + job_id)

    async def run_job(self, job_id: str, score: int) -> None:
        """Run a job to its end, whatever Redis does meanwhile: the ledger has its outcome."""
        try:
            await super().run_job(job_id, score)
        except (RedisError, OSError) as exc:
            logger.debug("a job's end was not recorded in Redis", extra={"reason": str(exc)})
        finally:
            if job_id in self._without_slot:
                self._without_slot.remove(job_id)
                self._uncounted += 1

    async def record_health(self) -> None:
        """Tell, at every turn of the loop and at most every two seconds, that it turns."""
        if time.monotonic() - self._beaten_at >= _BEAT_EVERY_SECONDS:
            self._beaten_at = time.monotonic()
            with contextlib.suppress(RedisAway):
                await self._queue.beat(self._worker, is_filtered=self._is_filtered)

    @property
    def _may_pick(self) -> bool:
        return self.allow_pick_jobs and self._may_take()

    async def _wait_for_work(self) -> None:
        if self._slot_freed.is_set():
            return  # it ended while we looked, and there may be more to take
        if self._may_pick and self.job_counter < self.max_jobs and self._may_listen():
            # Who would wait for another picture's child does not listen: a ring that it hears is lost for an idle one.
            # redis-py's types know whole seconds only; the server takes fractions.
            await self.pool.blpop([self._queue.doorbell], timeout=_LISTEN_SECONDS)  # type: ignore[arg-type,misc]
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._slot_freed.wait(), _LISTEN_SECONDS)

    async def _lend_slot(self, ctx: dict[str, Any]) -> None:
        ctx["lent"] = Lent(lambda: self._more_wait, functools.partial(self._leave_slot, ctx["job_id"]))

    def _leave_slot(self, job_id: str) -> None:
        """Count a job no longer that goes on without its slot."""
        self._without_slot.add(job_id)
        self.job_counter -= 1
        self._slot_freed.set()

    def _release_sem_dec_counter_on_complete(self) -> None:
        # arq does not say of which job, but says it of each.
        if self._uncounted:
            self._uncounted -= 1
        else:
            # Its semaphore counts the same, and nothing here waits for it.
            self.job_counter -= 1
        self._slot_freed.set()


class Consumers:
    """One consumer after another: a lost connection ends arq's main loop and leaks its semaphore."""

    def __init__(self, make: Callable[[], Consumer]) -> None:
        self._make = make
        self._current: Consumer | None = None
        self._picking = True

    async def run(self) -> None:
        """Consume until cancelled."""
        while True:
            self._current = self._make()
            self._current.allow_pick_jobs = self._picking
            try:
                await self._current.main()
            except (RedisError, OSError) as exc:
                logger.warning("the queue is away", extra={"reason": f"{type(exc).__name__}: {exc}"})
            except Exception:
                logger.exception("the consumer failed and is made anew")
            await asyncio.sleep(_RECONNECT_SECONDS)

    def look(self) -> None:
        """Have the current one look into the queue at once."""
        if self._current is not None:
            self._current.look()

    def stop_picking(self) -> None:
        """Take nothing new from now on; running jobs go on."""
        self._picking = False
        if self._current is not None:
            self._current.allow_pick_jobs = False
