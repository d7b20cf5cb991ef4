"""The consumer: takes work while a slot is free. From the queue, by arq; while Redis is away, from the ledger.

arq's own way of taking a job reads a hundred ids and asks three times about each, since arq leaves running jobs in the
queue. Here ZPOPMIN takes the job out as it finds it: no other worker can get it, and the start takes two exchanges
instead of seven. A job that is lost on the way is queued again by the sweep.
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

from shared.errors import LedgerUnavailable
from shared.images import Lane
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.clients import arq_client
from shared.redis.queue import WORK, Queue, pack, unpack
from worker.attempt import Attempt
from worker.attempts import Attempts
from worker.jobs import SLOTS
from worker.pause import Pause
from worker.slots import Slot, Slots

logger = logging.getLogger(__name__)

#: Seconds after which the queue is looked at without a ring, since a ring may be lost.
_LISTEN_SECONDS = 0.5
#: Seconds after which the ledger is asked for work again while Redis is away.
_ASK_SECONDS = 0.3
#: Seconds between two looks for more urgent work while preemptible work fills the slots.
_PREEMPT_SECONDS = 0.05
_BEAT_EVERY_SECONDS = 2.0
_AGAIN_SECONDS = 0.5
#: Tries of a job. Each is one: a job that a dead worker has begun counts as tried, and must be run all the same.
_ANY_NUMBER = 2**31


class Jobs(Protocol):
    """What a consumer runs."""

    async def work(self, ctx: dict[str, Any], image_id: str) -> None:
        """Do the work that waits on an image. The slot is `ctx[SLOTS][ctx["job_id"]]`."""

    async def work_on(self, attempt: Attempt, slot: Slot) -> None:
        """Do the work that was claimed already."""


class Children(Protocol):
    """What a consumer asks about the child processes."""

    unfiltered_for: str


class Consumer:
    """Takes work for each free slot, in its order. The ledger alone issues work again, so nothing is retried."""

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
        job_seconds: float,
        children: Children,
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._ledger = ledger
        self._attempts = attempts
        self._slots = slots
        self._pause = pause
        self._worker = worker
        self._children = children
        self._is_stopping = False
        self._was_away = False
        self._beaten_at = -_BEAT_EVERY_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        #: The slot of each job that arq runs, by the job's id.
        self._slot_of_job: dict[str, Slot] = {}
        self._arq = Worker(
            [func(jobs.work, name=WORK)],
            queue_name=queue.name,
            redis_pool=arq_client(redis, job_serializer=pack, job_deserializer=unpack),
            ctx={SLOTS: self._slot_of_job},
            job_timeout=job_seconds,
            max_tries=_ANY_NUMBER,
            retry_jobs=False,
            keep_result=0,
            handle_signals=False,
            job_serializer=pack,
            job_deserializer=unpack,
        )

    async def run(self) -> None:
        """Consume until cancelled, whether or not Redis is there. Running jobs go on by themselves."""
        while True:
            try:
                await self._consume()
            except LedgerUnavailable as exc:
                logger.warning("the ledger could not be asked for work", extra={"reason": str(exc)})
            except Exception:
                logger.exception("the consumer failed and begins again")
            await asyncio.sleep(_AGAIN_SECONDS)

    def stop(self) -> None:
        """Take nothing new from now on."""
        self._is_stopping = True

    async def _consume(self) -> None:
        while True:
            self._slots.freed.clear()
            await self._take_work()
            await self._beat()
            await self._wait()

    async def _take_work(self) -> None:
        try:
            await self._take_from_queue()
            # Without a free slot nothing was asked.
            self._was_away &= self._queue.is_away
        except RedisAway as exc:
            if not self._was_away:
                logger.warning("the queue is away", extra={"reason": str(exc)})
            self._was_away = True
            await self._take_from_ledger()

    async def _take_from_queue(self) -> None:
        if self._may_preempt():
            lane = await self._queue.first_lane()
            self._make_room(lane is not None and not lane.is_preemptible)
        while self._may_take():
            with self._slots.reserve() as slot:
                job_id = await self._queue.take()
                if job_id is None:
                    return
                if job_id not in self._slot_of_job:  # else it was enqueued again before it was claimed
                    self._slot_of_job[job_id] = slot
                    self._begin(self._run_job(job_id), slot)

    async def _take_from_ledger(self) -> None:
        if self._may_preempt():
            self._make_room(await self._ledger.is_waiting(Lane.DEMAND))
        while self._may_take():
            with self._slots.reserve() as slot:
                attempt = await self._attempts.claim_next()
                if attempt is None:
                    return
                self._begin(self._jobs.work_on(attempt, slot), slot)

    def _may_take(self) -> bool:
        return self._slots.free > 0 and self._takes_new

    def _may_preempt(self) -> bool:
        return self._slots.free == 0 and self._takes_new and self._slots.preemptible() is not None

    @property
    def _takes_new(self) -> bool:
        return not self._pause.seconds_left and not self._is_stopping

    def _make_room(self, is_urgent: bool) -> None:
        # Another worker may have taken the urgent work meanwhile. Then the slot goes to other work.
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

    async def _run_job(self, job_id: str) -> None:
        try:
            # arq logs by how much a job is late, from a score that is a time. Ours is an order.
            await self._arq.run_job(job_id, round(time.time() * 1000))
        except (RedisError, OSError) as exc:
            # Its outcome is in the ledger, or the sweep finds that it was never run.
            logger.debug("a job's end was not recorded in Redis", extra={"reason": str(exc)})
        except Exception:
            logger.exception("arq could not run a job")
        finally:
            del self._slot_of_job[job_id]

    async def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= _BEAT_EVERY_SECONDS:
            self._beaten_at = time.monotonic()
            with contextlib.suppress(RedisAway):
                await self._queue.beat(self._worker, is_filtered=not self._children.unfiltered_for)

    async def _wait(self) -> None:
        if self._slots.freed.is_set():
            return  # a job ended while work was looked for, and more may wait
        if self._may_take() and not self._queue.is_away:
            # Do not BLPOP while all slots are taken: an idle worker needs that wake-up.
            with contextlib.suppress(RedisAway):
                await self._queue.listen(_LISTEN_SECONDS)
            return
        seconds = _LISTEN_SECONDS
        if self._may_take():
            seconds = _ASK_SECONDS
        elif self._takes_new and self._slots.may_become_preemptible():
            seconds = _PREEMPT_SECONDS
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._slots.freed.wait(), seconds)
