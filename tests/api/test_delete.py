from __future__ import annotations

import shutil

import pytest

from shared.images import DebtKind, Status
from shared.ledger import DELETED_SECONDS
from tests.api.arrange import UNKNOWN_ID, Service, problem_of
from tests.ledgers import let_pass


async def test_a_delete_is_answered_with_nothing(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_delete(f"/images/{image.id}")

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["Cache-Control"] == "no-store"


async def test_a_second_delete_finds_nothing(service: Service) -> None:
    image = await service.worker.ready()
    await service.client.simulate_delete(f"/images/{image.id}")

    response = await service.client.simulate_delete(f"/images/{image.id}")

    assert response.status_code == 404
    assert problem_of(response) == "no-such-image"


async def test_an_image_that_never_was_cannot_be_deleted(service: Service) -> None:
    response = await service.client.simulate_delete(f"/images/{UNKNOWN_ID}")

    assert problem_of(response) == "no-such-image"


@pytest.mark.parametrize("status", ["queued", "processing", "ready", "failed"])
async def test_a_deleted_image_is_gone_at_once_whatever_its_status(service: Service, status: str) -> None:
    image = await getattr(service.worker, status)()

    response = await service.client.simulate_delete(f"/images/{image.id}")

    paths = [f"/images/{image.id}", f"/images/{image.id}.jpeg", f"/thumbnails/{image.id}/320x180.jpeg"]
    answers = [await service.client.simulate_get(path) for path in paths]
    answers.append(await service.client.simulate_post(f"/images/{image.id}/retry"))
    assert response.status_code == 204
    assert [problem_of(answer) for answer in answers] == ["no-such-image"] * 4
    assert service.files() == []


async def test_the_row_stays_a_minute_for_what_a_late_attempt_may_write(service: Service) -> None:
    """What it writes after the first look at its folders is found by a second, with which the row goes."""
    image = await service.worker.ready()

    await service.client.simulate_delete(f"/images/{image.id}")

    row = await service.image(image.id)
    assert (row.status, [debt.kind for debt in row.debts]) == (Status.DELETING, [DebtKind.LEFTOVERS])
    await let_pass(service.ledger, DELETED_SECONDS - 5)
    assert await service.ledger.take_debts(DebtKind.LEFTOVERS) == []
    await let_pass(service.ledger, 10)
    assert [taken.id for taken in await service.ledger.take_debts(DebtKind.LEFTOVERS)] == [image.id]


async def test_an_attempt_that_was_at_work_publishes_nothing(service: Service) -> None:
    """DELETE simply wins."""
    attempt = await service.worker.processing()
    await service.client.simulate_delete(f"/images/{attempt.id}")

    published = await service.ledger.publish(attempt, (640, 360), [], seconds=0.1)
    failed = await service.ledger.fail(attempt, "unreadable-image", "It is no picture.")

    assert (published, failed) == (None, None)


async def test_without_redis_an_image_is_deleted_all_the_same(service: Service) -> None:
    image = await service.worker.ready()
    service.redises.go_away()

    response = await service.client.simulate_delete(f"/images/{image.id}")

    assert response.status_code == 204
    assert (await service.client.simulate_get(f"/images/{image.id}")).status_code == 404
    owed = {debt.kind for debt in (await service.image(image.id)).debts}
    assert owed == set(DebtKind), "the sweep pays them"
    assert service.files() == []


async def test_files_that_cannot_be_removed_now_are_removed_later(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """For its client the image is gone with the commit; the rest is the sweep's."""
    image = await service.worker.ready()
    (folder,) = {path.parent.parent for path in service.files("renditions")}
    shutil.rmtree(folder)
    folder.write_bytes(b"where a folder was expected")

    response = await service.client.simulate_delete(f"/images/{image.id}")

    assert response.status_code == 204
    assert "leftovers of a deleted image remain" in caplog.text
    assert [debt.kind for debt in (await service.image(image.id)).debts] == [DebtKind.LEFTOVERS]


async def test_only_what_the_client_means_is_deleted(service: Service) -> None:
    image = await service.worker.ready()
    record = await service.client.simulate_get(f"/images/{image.id}")

    refused = await service.client.simulate_delete(f"/images/{image.id}", headers={"If-Match": '"another"'})
    still_there = await service.client.simulate_get(f"/images/{image.id}")
    deleted = await service.client.simulate_delete(f"/images/{image.id}", headers={"If-Match": record.headers["ETag"]})

    assert (refused.status_code, problem_of(refused)) == (412, "precondition-failed")
    assert still_there.status_code == 200
    assert deleted.status_code == 204


async def test_a_get_of_something_else_is_refused(service: Service) -> None:
    image = await service.worker.ready()

    for path in (f"/images/{image.id}", f"/images/{image.id}.jpeg"):
        response = await service.client.simulate_get(path, headers={"If-Match": '"another"'})

        assert (response.status_code, problem_of(response)) == (412, "precondition-failed")
