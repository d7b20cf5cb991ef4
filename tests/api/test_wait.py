from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from falcon.testing import Result

from api.wait import Waiter, wait_of
from shared.errors import (
    DecoderCrashed,
    ImageTooLarge,
    RenderFailure,
    RenderOutOfMemory,
    RenderTimedOut,
    UnreadableImage,
)
from shared.images import DebtKind, Image, Status
from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.redis.clients import listening_client
from shared.redis.notices import Listener
from tests.api.arrange import PATIENCE, PHOTO, UNKNOWN_ID, Service, certain, problem_of, until

FOR_EVER = 3600.0


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=0", 0),
        ("wait=5", 5),
        ("wait=20", 20),
        ("wait=21", 20),
        ("wait=999999999", 20),
        ("wait=" + "9" * 5000, 20),
        ("wait=0000000000007", 7),
        ("WAIT = 5", 5),
        ('wait="5"', 5),
        ("wait=5; foo=bar", 5),
        ("respond-async, wait=5", 5),
        ("handling=lenient, wait=5, return=minimal", 5),
        ("wait=5, wait=7", 5),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=abc", None),
        ('wait="5', None),
        ("wait=\N{ARABIC-INDIC DIGIT FIVE}", None),
        ("respond-async; wait=5", None),
        ("await=5", None),
    ],
)
def test_a_preference_is_read_as_rfc_7240_has_it(prefer: str | None, seconds: int | None) -> None:
    assert wait_of(prefer) == seconds


# --- Over HTTP -----------------------------------------------------------------------------------------------


def upload(service: Service, prefer: str) -> asyncio.Task[Result]:
    return asyncio.create_task(service.client.simulate_post("/images", body=PHOTO, headers={"Prefer": prefer}))


async def uploaded(service: Service) -> str:
    """Return the id of the one image once it is committed."""

    async def is_there() -> bool:
        return service.rows() != []

    await until(is_there)
    (image_id,) = service.rows()
    return image_id


async def test_an_upload_that_is_ready_in_time_is_created(service: Service) -> None:
    """The tutorial's own answer, for who wants it."""
    request = upload(service, "wait=15")
    image_id = await uploaded(service)
    await service.worker.publish(await service.worker.claim(image_id))

    response = await request

    record = (await service.client.simulate_get(f"/images/{image_id}")).json
    assert response.status_code == 201
    assert response.json == record
    assert response.json["status"] == "ready"
    assert response.headers["Location"] == f"/images/{image_id}.jpeg"
    assert response.headers["Content-Location"] == f"/images/{image_id}"
    assert response.headers["Preference-Applied"] == "wait=15"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Retry-After" not in response.headers


async def test_more_than_twenty_seconds_count_as_twenty(service: Service) -> None:
    request = upload(service, "wait=600")
    await service.worker.publish(await service.worker.claim(await uploaded(service)))

    response = await request

    assert response.headers["Preference-Applied"] == "wait=20"


@pytest.mark.parametrize("failure", [UnreadableImage, ImageTooLarge, RenderTimedOut, RenderOutOfMemory, DecoderCrashed])
async def test_a_file_that_fails_in_time_is_the_uploaders_to_mend(
    service: Service, failure: type[RenderFailure]
) -> None:
    request = upload(service, "wait=15")
    image_id = await uploaded(service)
    await service.worker.fail(await service.worker.claim(image_id), failure.type, "This is what is wrong.")

    response = await request

    assert response.status_code == 422
    assert problem_of(response) == failure.type
    assert response.json["detail"] == "This is what is wrong."
    assert response.json["image"] == (await service.client.simulate_get(f"/images/{image_id}")).json
    assert response.json["image"]["status"] == "failed"
    assert response.headers["Location"] == f"/images/{image_id}"
    assert response.headers["Preference-Applied"] == "wait=15"


async def test_a_rendering_that_we_lost_is_our_fault(service: Service) -> None:
    request = upload(service, "wait=15")
    image_id = await uploaded(service)
    await service.worker.fail(await service.worker.claim(image_id), "worker-lost", "Lost again and again.")

    response = await request

    assert response.status_code == 500
    assert problem_of(response) == "worker-lost"
    assert response.json["image"]["id"] == image_id
    assert response.headers["Location"] == f"/images/{image_id}"


@pytest.mark.parametrize("seconds", [0, 1])
async def test_an_upload_that_is_not_ready_in_time_is_acknowledged(service: Service, seconds: int) -> None:
    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Prefer": f"wait={seconds}"})

    assert response.status_code == 202
    assert response.json["status"] == "queued"
    assert response.headers["Location"] == f"/images/{response.json['id']}"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Preference-Applied"] == f"wait={seconds}"


async def test_an_upload_that_is_cancelled_while_it_waits_is_acknowledged(service: Service) -> None:
    """As the server does at the end of its grace. Who is told to come back would send a picture that we have."""
    headers = {"Prefer": "wait=15", "Content-Type": "image/jpeg", "Content-Length": str(len(PHOTO))}
    request = asyncio.create_task(service.send("POST", "/images", headers, [PHOTO]))

    async def is_enqueued() -> bool:
        return await service.jobs() != []

    await until(is_enqueued)
    request.cancel()

    start, *bodies = await request

    assert start["status"] == 202
    record = json.loads(b"".join(event["body"] for event in bodies))
    assert [record["id"]] == service.rows()
    assert record["status"] == "queued"


async def test_a_preference_that_cannot_be_read_is_not_applied(service: Service) -> None:
    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Prefer": "wait=soon"})

    assert response.status_code == 202
    assert "Preference-Applied" not in response.headers


async def test_a_record_is_held_until_its_image_is_ready(service: Service) -> None:
    attempt = await service.worker.processing()
    request = asyncio.create_task(service.client.simulate_get(f"/images/{attempt.id}", headers={"Prefer": "wait=15"}))
    await service.worker.publish(attempt)

    response = await request

    assert response.status_code == 200
    assert response.json["status"] == "ready"
    assert response.headers["Cache-Control"] == "no-cache"


async def test_a_record_is_held_until_its_image_has_failed(service: Service) -> None:
    attempt = await service.worker.processing()
    request = asyncio.create_task(service.client.simulate_get(f"/images/{attempt.id}", headers={"Prefer": "wait=15"}))
    await service.worker.fail(attempt, UnreadableImage.type, "It is no picture.")

    response = await request

    assert response.status_code == 200
    assert response.json["error"]["detail"] == "It is no picture."


async def test_a_record_that_is_not_final_in_time_is_answered_as_it_is(service: Service) -> None:
    image = await service.worker.processing()

    response = await service.client.simulate_get(f"/images/{image.id}", headers={"Prefer": "wait=1"})

    assert response.status_code == 200
    assert response.json["status"] == "processing"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Cache-Control"] == "no-store"


async def test_nobody_waits_for_what_is_final_or_is_not_there(service: Service) -> None:
    ready, failed, deleted = await service.worker.ready(), await service.worker.failed(), await service.worker.queued()
    await service.client.simulate_delete(f"/images/{deleted.id}")

    async with asyncio.timeout(PATIENCE):
        responses = [
            await service.client.simulate_get(f"/images/{image_id}", headers={"Prefer": "wait=20"})
            for image_id in (ready.id, failed.id, deleted.id, UNKNOWN_ID)
        ]

    assert [response.status_code for response in responses] == [200, 200, 404, 404]


async def test_who_waits_for_an_image_that_is_deleted_learns_it_at_once(service: Service) -> None:
    posting = upload(service, "wait=20")
    image_id = await uploaded(service)
    getting = asyncio.create_task(service.client.simulate_get(f"/images/{image_id}", headers={"Prefer": "wait=20"}))
    await service.client.simulate_delete(f"/images/{image_id}")

    async with asyncio.timeout(PATIENCE):
        responses = [await posting, await getting]

    assert [problem_of(response) for response in responses] == ["no-such-image"] * 2


async def test_without_redis_who_waits_looks_for_himself(service: Service) -> None:
    """A notice may be lost; the ledger is read every second all the same."""
    attempt = await service.worker.processing()
    service.redises.go_away()
    request = asyncio.create_task(service.client.simulate_get(f"/images/{attempt.id}", headers={"Prefer": "wait=20"}))
    await service.worker.publish(attempt)

    async with asyncio.timeout(PATIENCE):
        response = await request

    assert response.json["status"] == "ready"


# --- By which mechanism --------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def listener(service: Service) -> AsyncIterator[Listener]:
    """A listener that has begun to listen."""
    client = listening_client(service.settings.redis_url, service.redises)
    listener = Listener(client, lambda: service.ledger_name)
    with listener.listen("anything") as subscribed:
        running = asyncio.create_task(listener.run())
        await asyncio.wait_for(subscribed.wait(), PATIENCE)
    yield listener
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await client.aclose()


class ObservedLedger(Ledger):
    """Tells when a row has been read."""

    def __init__(self, service: Service) -> None:
        super().__init__(create_engine(service.settings))
        self.was_read = asyncio.Event()

    async def get(self, image_id: str) -> Image | None:
        image = await super().get(image_id)
        self.was_read.set()
        return image


@pytest_asyncio.fixture
async def ledger(service: Service) -> AsyncIterator[ObservedLedger]:
    ledger = ObservedLedger(service)
    yield ledger
    await ledger.close()


async def test_a_notice_wakes_who_waits(service: Service, listener: Listener, ledger: ObservedLedger) -> None:
    """He never looks for himself here, so that only the notice can have woken him."""
    waiter = Waiter(ledger, service.worker.settling, listener, look_every=FOR_EVER)
    attempt = await service.worker.processing()
    request = asyncio.create_task(waiter.until_final(attempt.id, FOR_EVER))
    await asyncio.wait_for(ledger.was_read.wait(), PATIENCE)
    await service.worker.publish(attempt)

    image = await asyncio.wait_for(request, PATIENCE)

    assert certain(image).status is Status.READY


async def test_a_notice_that_is_missed_is_caught_by_a_look(
    service: Service, listener: Listener, ledger: ObservedLedger
) -> None:
    waiter = Waiter(ledger, service.worker.settling, listener, look_every=0.01)
    attempt = await service.worker.processing()
    request = asyncio.create_task(waiter.until_final(attempt.id, FOR_EVER))
    await asyncio.wait_for(ledger.was_read.wait(), PATIENCE)
    # Committed, but its worker died before it could tell anybody.
    await service.worker.publish(attempt, settle=False)

    image = await asyncio.wait_for(request, PATIENCE)

    assert certain(image).status is Status.READY


async def test_a_new_subscription_counts_as_a_notice(
    service: Service, listener: Listener, ledger: ObservedLedger
) -> None:
    """Whatever was announced while the connection was lost was announced to nobody."""
    waiter = Waiter(ledger, service.worker.settling, listener, look_every=FOR_EVER)
    attempt = await service.worker.processing()
    request = asyncio.create_task(waiter.until_final(attempt.id, FOR_EVER))
    await asyncio.wait_for(ledger.was_read.wait(), PATIENCE)
    service.redises.go_away()
    await service.worker.publish(attempt, settle=False)
    service.redises.hang_up()
    service.redises.come_back()

    image = await asyncio.wait_for(request, PATIENCE)

    assert certain(image).status is Status.READY


class OvertakenLedger(ObservedLedger):
    """Reads a row that changes, with a notice that is heard, before the reader has it."""

    def __init__(self, service: Service, listener: Listener, attempt: Image) -> None:
        super().__init__(service)
        self._service, self._listener, self._attempt = service, listener, attempt

    async def get(self, image_id: str) -> Image | None:
        image = await super().get(image_id)
        if certain(image).status is Status.PROCESSING:
            with self._listener.listen(image_id) as heard:
                await self._service.worker.publish(self._attempt)
                await asyncio.wait_for(heard.wait(), PATIENCE)
        return image


async def test_a_notice_between_subscription_and_read_is_not_missed(service: Service, listener: Listener) -> None:
    attempt = await service.worker.processing()
    ledger = OvertakenLedger(service, listener, attempt)
    waiter = Waiter(ledger, service.worker.settling, listener, look_every=FOR_EVER)

    image = await asyncio.wait_for(waiter.until_final(attempt.id, FOR_EVER), PATIENCE)

    await ledger.close()
    assert certain(image).status is Status.READY


async def test_the_tokens_are_paid_before_a_request_that_waits_is_answered(
    service: Service, listener: Listener, ledger: ObservedLedger
) -> None:
    waiter = Waiter(ledger, service.worker.settling, listener)
    attempt = await service.worker.processing()
    await service.worker.publish(attempt, settle=False)

    image = certain(await waiter.until_final(attempt.id, 0))

    assert not image.owes(DebtKind.TOKENS)
    assert [debt.kind for debt in (await service.image(attempt.id)).debts] == [DebtKind.NOTICE]
