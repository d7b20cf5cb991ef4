from __future__ import annotations

import pytest

from shared.images import Status
from tests.api.arrange import UNKNOWN_ID, Service, problem_of


async def test_a_failed_image_is_queued_again(service: Service) -> None:
    image = await service.worker.failed()

    response = await service.client.simulate_post(f"/images/{image.id}/retry")

    assert response.status_code == 202
    assert response.headers["Location"] == f"/images/{image.id}"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Cache-Control"] == "no-store"
    assert (response.json["id"], response.json["status"], response.json["error"]) == (image.id, "queued", None)
    assert await service.jobs() == [f"work:{image.id}:{image.attempt}"]


async def test_a_retry_starts_with_a_clean_sheet_and_a_later_attempt(service: Service) -> None:
    attempt = await service.worker.processing()
    await service.ledger.count_failure(attempt)
    again = await service.worker.claim(attempt.id)
    failed = await service.worker.fail(again, "decoder-crashed", "Twice.")
    assert failed.failures == 1

    await service.client.simulate_post(f"/images/{attempt.id}/retry")

    row = await service.image(attempt.id)
    assert (row.failures, row.losses, row.error_type, row.error_detail) == (0, 0, None, None)
    assert (await service.worker.claim(attempt.id)).attempt == failed.attempt + 1


async def test_an_image_that_was_retried_can_become_ready(service: Service) -> None:
    image = await service.worker.failed()
    await service.client.simulate_post(f"/images/{image.id}/retry")
    await service.worker.publish(await service.worker.claim(image.id))

    response = await service.client.simulate_get(f"/images/{image.id}")

    assert response.json["status"] == "ready"
    assert response.json["error"] is None


@pytest.mark.parametrize("status", ["queued", "processing", "ready"])
async def test_only_a_failed_image_can_be_retried(service: Service, status: str) -> None:
    image = await getattr(service.worker, status)()

    response = await service.client.simulate_post(f"/images/{image.id}/retry")

    assert response.status_code == 409
    assert problem_of(response) == "not-failed"
    assert response.json["detail"] == f"The image is {status}."
    assert await service.image(image.id) == image
    assert await service.jobs() == []


async def test_of_two_retries_one_wins(service: Service) -> None:
    image = await service.worker.failed()

    responses = [await service.client.simulate_post(f"/images/{image.id}/retry") for _ in range(2)]

    assert [response.status_code for response in responses] == [202, 409]
    assert len(await service.jobs()) == 1


async def test_an_image_that_is_not_there_cannot_be_retried(service: Service) -> None:
    deleted = await service.worker.failed()
    await service.client.simulate_delete(f"/images/{deleted.id}")

    responses = [await service.client.simulate_post(f"/images/{id_}/retry") for id_ in (UNKNOWN_ID, deleted.id)]

    assert [problem_of(response) for response in responses] == ["no-such-image"] * 2


async def test_without_redis_a_retry_is_left_to_the_sweep(service: Service) -> None:
    image = await service.worker.failed()
    service.redises.go_away()

    response = await service.client.simulate_post(f"/images/{image.id}/retry")

    row = await service.image(image.id)
    assert response.status_code == 202
    assert response.headers["Retry-After"] == "5"
    assert row.status is Status.QUEUED
    assert [waiting.id for waiting in await service.ledger.waiting(10)] == [image.id]
