"""When a process asks the ledger about what it has copied: whenever a notice may have been missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from api.renditions import local_copies
from api.renditions.local_copies import LocalCopies
from shared.cancellation import cancel
from shared.errors import StorageUnavailable
from shared.ledger import Ledger
from tests.waiting import until


class Copied:
    """Counts how often its copies are checked, and fails the first time."""

    checked = 0

    async def forget_copies(self, image_id: str) -> None:
        """Nothing is copied."""

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        self.checked += 1
        if self.checked == 1:
            raise StorageUnavailable("the disk is in trouble")


@pytest.fixture
def storage() -> Copied:
    return Copied()


@pytest.fixture
async def copies(ledger: Ledger, storage: Copied, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCopies]:
    monkeypatch.setattr(local_copies, "_LEAST_SECONDS", 0.0)
    copies = LocalCopies(ledger, storage)
    running = asyncio.create_task(copies.run())
    yield copies
    await cancel(running)


async def test_at_every_subscription_copies_are_checked_though_it_failed_before(
    storage: Copied, copies: LocalCopies
) -> None:
    for times in (1, 2):
        copies.notices_missed()
        await until(lambda times=times: storage.checked == times)  # type: ignore[misc] # a default is no argument


async def test_now_and_then_copies_are_checked(
    monkeypatch: pytest.MonkeyPatch, storage: Copied, copies: LocalCopies
) -> None:
    monkeypatch.setattr(local_copies, "_EVERY_SECONDS", 0.01)
    copies.notices_missed()

    await until(lambda: storage.checked >= 3)
