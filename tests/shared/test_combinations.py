"""Every transition, from every legal combination of status, work and debts, leads to its legal one or is refused.

The combinations are those of the table in ARCHITECTURE.md.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shared.images import DebtKind, Image, Lane, Status
from shared.ledger import LEASE_SECONDS, MOST_LOSSES, Ledger
from shared.ledger.ledger import _owe
from tests.databases import database
from tests.ledgers import (
    SIZE,
    claimed,
    claimed_renditions,
    failed,
    latest,
    let_pass,
    made_by,
    queued,
    ready,
    wanting_renditions,
)

__all__ = ["database"]

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
Combination = tuple[str, str, str]

#: Commits that clients are told of end in one of these.
TOLD = (Status.READY, Status.FAILED, Status.DELETING)


def table() -> list[Combination]:
    """Return the rows of the table in ARCHITECTURE.md."""
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (yes|no) \|$", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(rows) == 7
    return rows


def combination_of(image: Image) -> Combination:
    return image.status.value, image.work.value if image.work else "none", "yes" if image.worker else "no"


async def deleting(ledger: Ledger) -> Image:
    """Return an image that owes leftovers until its row is removed."""
    row = await ledger.delete((await ready(ledger)).id)
    assert row is not None
    await ledger.paid(row.owes(DebtKind.TOKENS, DebtKind.NOTICE))
    return await latest(ledger, row)


#: By the names that OUTCOMES has for them.
COMBINATIONS: dict[str, tuple[Combination, Callable[[Ledger], Awaitable[Image]]]] = {
    "queued": (("queued", "convert", "no"), queued),
    "converted": (("processing", "convert", "yes"), claimed),
    "ready": (("ready", "none", "no"), ready),
    "requested": (("ready", "renditions", "no"), wanting_renditions),
    "extended": (("ready", "renditions", "yes"), claimed_renditions),
    "failed": (("failed", "none", "no"), failed),
    "deleting": (("deleting", "none", "no"), deleting),
}

#: What each transition makes of each combination. A dot: it is refused, and nothing changes.
OUTCOMES = """
                      queued     converted  ready      requested  extended   failed     deleting
claim                 converted  .          .          extended   .          .          .
claim_next            converted  .          .          extended   .          .          .
renew                 .          converted  .          .          extended   .          .
publish               .          ready      .          .          ready      .          .
hand_back             .          queued     .          .          requested  .          .
fail                  .          failed     .          .          .          .          .
count_failure         .          queued     .          .          requested  .          .
count_loss            .          queued     .          .          requested  .          .
lose_the_lease        .          queued     .          .          requested  .          .
lose_the_last_lease   .          failed     .          .          ready      .          .
request_renditions    .          .          requested  .          .          .          .
request_them_sooner   .          .          requested  requested  .          .          .
give_up               .          .          .          .          ready      .          .
delete                deleting   deleting   deleting   deleting   deleting   deleting   .
retry                 .          .          .          .          .          queued     .
owe_leftovers         .          .          ready      .          .          failed     .
pay_one_by_one        queued     converted  ready      requested  extended   failed     deleting
remove                .          .          .          .          .          .          .
"""


def outcomes() -> dict[str, dict[str, str]]:
    """Return OUTCOMES by transition and combination."""
    head, *rows = (line.split() for line in OUTCOMES.strip().splitlines())
    return {name: dict(zip(head, cells, strict=True)) for name, *cells in rows}


async def lose_the_lease(ledger: Ledger, image: Image) -> object:
    await let_pass(ledger, LEASE_SECONDS + 1, image.id)
    return await ledger.take_lost()


async def lose_the_last_lease(ledger: Ledger, image: Image) -> object:
    return await ledger.count_loss(replace(image, losses=MOST_LOSSES - 1))


async def pay_one_by_one(ledger: Ledger, image: Image) -> object:
    for debt in image.debts:
        # The leftovers of a deleted image are paid by its removal.
        if image.status is not Status.DELETING or debt.kind is not DebtKind.LEFTOVERS:
            await ledger.paid([debt])
    return image


TRANSITIONS: dict[str, Callable[[Ledger, Image], Awaitable[object]]] = {
    "claim": lambda ledger, image: ledger.claim(image.id, "host:2"),
    "claim_next": lambda ledger, image: ledger.claim_next("host:2"),
    "renew": lambda ledger, image: ledger.renew(image),
    "publish": lambda ledger, image: ledger.publish(image, SIZE, made_by(image), seconds=1.0),
    "hand_back": lambda ledger, image: ledger.hand_back(image, 2.0),
    "fail": lambda ledger, image: ledger.fail(image, "unreadable-image", "This is no picture."),
    "count_failure": lambda ledger, image: ledger.count_failure(image),
    "count_loss": lambda ledger, image: ledger.count_loss(image),
    "lose_the_lease": lose_the_lease,
    "lose_the_last_lease": lose_the_last_lease,
    "request_renditions": lambda ledger, image: ledger.request_renditions(image, Lane.BULK),
    "request_them_sooner": lambda ledger, image: ledger.request_renditions(image, Lane.UPLOAD),
    "give_up": lambda ledger, image: ledger.give_up(image),
    "delete": lambda ledger, image: ledger.delete(image.id),
    "retry": lambda ledger, image: ledger.retry(image.id),
    "owe_leftovers": lambda ledger, image: ledger.owe_leftovers(image, image.attempt),
    "pay_one_by_one": pay_one_by_one,
    "remove": lambda ledger, image: ledger.remove(image),
}


def test_the_table_has_what_can_be_arranged_and_nothing_else() -> None:
    assert sorted(table()) == sorted(combination for combination, _ in COMBINATIONS.values())


@pytest.mark.parametrize("owed", [(), tuple(DebtKind), *((kind,) for kind in DebtKind)], ids=str)
@pytest.mark.parametrize("before", COMBINATIONS)
async def test_every_transition_leads_to_its_combination_or_is_refused(
    ledger: Ledger,
    owe: Callable[[Image, tuple[DebtKind, ...]], Awaitable[None]],
    before: str,
    owed: tuple[DebtKind, ...],
) -> None:
    combination, arrange = COMBINATIONS[before]
    expected = outcomes()
    assert expected.keys() == TRANSITIONS.keys()
    for name, transition in TRANSITIONS.items():
        image = await arrange(ledger)
        await owe(image, owed)
        image = await latest(ledger, image)
        assert combination_of(image) == combination

        outcome = await transition(ledger, image)

        after = await latest(ledger, image)
        is_refused = expected[name][before] == "."
        assert bool(outcome) is not is_refused, name
        assert combination_of(after) == COMBINATIONS[before if is_refused else expected[name][before]][0], name
        # A removal that comes too early puts the leftovers off.
        assert outcome is not None or after == image or name == "remove", f"{name} was refused and changed something"
        has_place = (after.work is not None,) * 3
        assert (after.due is not None, after.lane is not None, after.turn is not None) == has_place, name
        assert set(image.debts) <= set(after.debts) or name == "pay_one_by_one", f"{name} dropped a debt"
        assert after.status is not Status.DELETING or after.owes(DebtKind.LEFTOVERS), f"{name} leaves the row for ever"
        if after.status is not image.status and after.status in TOLD:
            new = {debt.kind for debt in after.debts if debt not in image.debts}
            assert {DebtKind.TOKENS, DebtKind.NOTICE} <= new, f"{name} told nobody"
        # Out of the way of the next one's `claim_next`.
        await ledger.delete(image.id)


@pytest.fixture
def owe(ledger: Ledger) -> Callable[[Image, tuple[DebtKind, ...]], Awaitable[None]]:
    """Have an image owe debts of these kinds, as its commits do."""

    async def add(image: Image, kinds: tuple[DebtKind, ...]) -> None:
        async with ledger._database._engine.begin() as connection:
            await _owe(connection, image.id, kinds)

    return add
