"""The consumer: takes work while a slot is free, from the queue by arq or, while Redis is away, from the ledger.

arq leaves running jobs in the queue. To take a job, it reads a hundred ids and sends three requests about each. Here
an idle worker waits in BZPOPMIN, which removes the job that it returns. No other worker can get it. If a job is lost on
the way, the sweep enqueues it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from arq.worker import Worker, func
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.cancellation import cancel, to_the_end
from shared.errors import LedgerUnavailable
from shared.images import Lane
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.clients import arq_client
from shared.redis.queue import WORK, Queue, pack, unpack
from worker.attempt import Attempt
from worker.attempts import Attempts
from worker.pause import Pause
from worker.slots import Slot, Slots

logger = logging.getLogger(__name__)

#: The most seconds that a turn of the consumer's loop waits for a job or for a free slot.
_WAIT_SECONDS = 0.5
#: Seconds between two requests to the ledger for work, while Redis is away.
_ASK_SECONDS = 0.3
#: Seconds between two checks for more urgent work, while preemptible work fills the slots.
_PREEMPT_SECONDS = 0.05
#: The same while Redis is away: idle workers ask for that work more often, so no child is killed for it.
_PREEMPT_AWAY_SECONDS = 1.0
_BEAT_EVERY_SECONDS = 2.0
_AGAIN_SECONDS = 0.5
#: arq's limits of tries and of seconds, out of reach. arq counts a job that a dead worker began as tried, but it must
#: run. `Attempts` limits the time of all work, also of work that was taken without arq.
_NO_LIMIT = 2**31


class Jobs(Protocol):
    """The two ways in which a consumer starts work."""

    async def work(self, image_id: str, slot: Slot) -> None:
        """Do the work that waits on an image."""

    async def work_on(self, attempt: Attempt, slot: Slot) -> None:
        """Do work that is already claimed."""


class Consumer:
    """Takes work for each free slot, in the order of work. arq retries nothing: only the ledger issues work again."""

    def __init__(
        self,
        jobs: Jobs,
        *,
        redis: Redis,
        queue: Queue,
        ledger: Ledger,
        attempts: Attempts,
        slots: Slots,
        pause: Pause,
        worker: str,
        is_filtered: bool,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._ledger = ledger
        self._attempts = attempts
        self._slots = slots
        self._pause = pause
        self._worker = worker
        #: Whether a system-call filter holds the children.
        self._is_filtered = is_filtered
        self._is_stopping = False
        self._beaten_at = -_BEAT_EVERY_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        #: The slot of each job that arq runs, by the job's id.
        self._slot_of_job: dict[str, Slot] = {}
        self._arq = Worker(
            [func(self._work, name=WORK)],
            queue_name=queue.name,
            redis_pool=arq_client(redis, job_serializer=pack, job_deserializer=unpack),
            job_timeout=_NO_LIMIT,
            max_tries=_NO_LIMIT,
            retry_jobs=False,
            keep_result=0,
            handle_signals=False,
            job_serializer=pack,
            job_deserializer=unpack,
        )

    async def run(self) -> None:
        """Consume until `stop` is called and the work that was taken has ended. A cancellation also cancels that work.

        Consumes with or without Redis.
        """
        try:
            while not self._is_stopping or self._tasks:
                try:
                    await self._consume()
                except LedgerUnavailable as exc:
                    logger.warning("the ledger could not be asked for work", extra={"reason": str(exc)})
                    await asyncio.sleep(_AGAIN_SECONDS)
                except Exception:
                    logger.exception("the consumer failed and begins again")
                    await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            await to_the_end(cancel(*self._tasks))

    def stop(self) -> None:
        """Take no more work. A running request for a job may still return one."""
        self._is_stopping = True

    async def _consume(self) -> None:
        self._slots.changed.clear()
        await self._beat()
        try:
            await self._take_from_queue()
        except RedisAway:
            await self._take_from_ledger()

    async def _take_from_queue(self) -> None:
        if self._may_preempt():
            lane = await self._queue.first_lane()
            self._make_room(lane is not None and not lane.is_preemptible)
        if not self._may_take():
            await self._wait_for_slot(_PREEMPT_SECONDS if self._may_preempt() else _WAIT_SECONDS)
            return
        with self._slots.reserve() as slot:
            job_id = await self._queue.take(_WAIT_SECONDS)
            if job_id is not None and job_id not in self._slot_of_job:  # otherwise enqueued again before its claim
                self._slot_of_job[job_id] = slot
                self._begin(self._run_job(job_id), slot)

    async def _take_from_ledger(self) -> None:
        if self._may_preempt():
            self._make_room(await self._ledger.is_waiting(Lane.DEMAND))
        while self._may_take():
            with self._slots.reserve() as slot:
                attempt = await self._attempts.claim_next()
                if attempt is None:
                    break
                self._begin(self._jobs.work_on(attempt, slot), slot)
        await self._wait_for_slot(_ASK_SECONDS if self._may_take() else _PREEMPT_AWAY_SECONDS)

    def _may_take(self) -> bool:
        return self._slots.free > 0 and self._takes_new

    def _may_preempt(self) -> bool:
        return self._slots.free == 0 and self._takes_new and self._slots.preemptible() is not None

    @property
    def _takes_new(self) -> bool:
        return not self._pause.seconds_left and not self._is_stopping

    def _make_room(self, is_urgent: bool) -> None:
        # Another worker may take the urgent work first. Then the slot goes to other work.
        if is_urgent and (slot := self._slots.preemptible()) is not None:
            slot.preempt()

    def _begin(self, work: Coroutine[Any, Any, None], slot: Slot) -> None:
        slot.begin()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._end(done, slot))

    def _end(self, task: asyncio.Task[None], slot: Slot) -> None:
        self._tasks.discard(task)
        slot.release()

    async def _work(self, ctx: dict[str, Any], image_id: str) -> None:
        """Work for arq. The slot is free before arq records the job's end."""
        with self._slot_of_job[ctx["job_id"]] as slot:
            await self._jobs.work(image_id, slot)

    async def _run_job(self, job_id: str) -> None:
        try:
            # arq takes a job's score for a time, and logs how late the job is. Here a score is a place in the order.
            await self._arq.run_job(job_id, round(time.time() * 1000))
        except (RedisError, OSError) as exc:
            # The outcome is in the ledger. If the job never ran, the sweep finds that.
            logger.debug("a job's end was not recorded in Redis", extra={"reason": str(exc)})
        except Exception:
            logger.exception("arq could not run a job")
        finally:
            del self._slot_of_job[job_id]

    async def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= _BEAT_EVERY_SECONDS:
            self._beaten_at = time.monotonic()
            with contextlib.suppress(RedisAway):
                await self._queue.beat(self._worker, is_filtered=self._is_filtered)

    async def _wait_for_slot(self, seconds: float) -> None:
        """Wait until a slot is free or its work is known, at most for `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._slots.changed.wait()
