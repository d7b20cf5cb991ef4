from __future__ import annotations

import re
from typing import Any

import pytest

from shared.images import Image
from tests.api.arrange import UNKNOWN_ID, Service, problem_of


async def pages_of(service: Service, path: str) -> list[list[Any]]:
    """Return the bodies of a list's pages, followed by their links."""
    pages: list[list[Any]] = []
    following: str | None = path
    while following is not None:
        response = await service.client.simulate_get(following)
        assert response.status_code == 200
        pages.append(response.json)
        link = re.fullmatch(r'<(/images\?[^>]+)>; rel="next"', response.headers.get("Link", ""))
        following = link[1] if link else None
        assert ("Link" in response.headers) is (link is not None)
    return pages


def ids_of(pages: list[list[Any]]) -> list[list[str]]:
    return [[record["id"] for record in page] for page in pages]


async def ready_in_reverse(service: Service, count: int) -> list[Image]:
    """Return ready images in the order of their publication, which is not that of their ids."""
    attempts = [await service.worker.processing() for _ in range(count)]
    return [await service.worker.publish(attempt) for attempt in reversed(attempts)]


async def test_the_list_is_empty_at_first(service: Service) -> None:
    response = await service.client.simulate_get("/images")

    assert (response.status_code, response.json) == (200, [])
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-ASGILook-Cache"] == "Miss"
    assert re.fullmatch(r'"[0-9a-f]+"', response.headers["ETag"])
    assert "Link" not in response.headers


async def test_the_list_holds_the_records_of_ready_images_and_no_others(service: Service) -> None:
    ready = await service.worker.ready()
    await service.worker.queued()
    await service.worker.processing()
    await service.worker.failed()

    response = await service.client.simulate_get("/images")

    record = (await service.client.simulate_get(f"/images/{ready.id}")).json
    assert response.json == [record]


async def test_ready_images_are_listed_in_order_of_publication(service: Service) -> None:
    """Not of creation: a client that pages by `after` would miss a picture that took longer than a later one."""
    images = await ready_in_reverse(service, 3)

    response = await service.client.simulate_get("/images")

    assert [record["id"] for record in response.json] == [image.id for image in images]
    assert [record["sequence"] for record in response.json] == [1, 2, 3]


async def test_the_newest_come_first_on_demand(service: Service) -> None:
    images = await ready_in_reverse(service, 3)

    response = await service.client.simulate_get("/images?order=desc")

    assert [record["id"] for record in response.json] == [image.id for image in reversed(images)]


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_pages_lead_through_all_ready_images_once(service: Service, order: str) -> None:
    images = [image.id for image in await ready_in_reverse(service, 5)]
    expected = images if order == "asc" else images[::-1]

    pages = await pages_of(service, f"/images?limit=2&order={order}")

    assert ids_of(pages) == [expected[:2], expected[2:4], expected[4:]]


async def test_a_page_that_is_just_full_has_no_next(service: Service) -> None:
    await ready_in_reverse(service, 2)

    response = await service.client.simulate_get("/images?limit=2")

    assert len(response.json) == 2
    assert "Link" not in response.headers


async def test_a_link_keeps_the_other_parameters(service: Service) -> None:
    await ready_in_reverse(service, 3)
    failed = sorted([(await service.worker.failed()).id for _ in range(2)])

    ready = await service.client.simulate_get("/images?order=desc&limit=1")
    others = await service.client.simulate_get("/images?limit=1&status=failed")

    assert ready.headers["Link"] == '</images?limit=1&order=desc&after=3>; rel="next"'
    assert others.headers["Link"] == f'</images?status=failed&limit=1&after={failed[0]}>; rel="next"'


async def test_a_page_holds_a_hundred_unless_asked_for_another_number(service: Service) -> None:
    for _ in range(101):
        await service.worker.queued()

    default = await service.client.simulate_get("/images?status=queued")
    most = await service.client.simulate_get("/images?status=queued&limit=1000")

    assert len(default.json) == 100
    assert "Link" in default.headers
    assert len(most.json) == 101


async def test_what_a_page_begins_after_need_not_exist_any_more(service: Service) -> None:
    images = await ready_in_reverse(service, 3)
    await service.client.simulate_delete(f"/images/{images[1].id}")

    response = await service.client.simulate_get("/images?after=2")
    past_the_end = await service.client.simulate_get("/images?after=999999999999999999")

    assert [record["id"] for record in response.json] == [images[2].id]
    assert past_the_end.json == []


@pytest.mark.parametrize("status", ["queued", "processing", "failed"])
async def test_images_of_another_status_are_listed_by_id(service: Service, status: str) -> None:
    arrange = getattr(service.worker, status)
    expected = [(await arrange()).id for _ in range(3)]
    await service.worker.ready()

    pages = await pages_of(service, f"/images?status={status}&limit=2")
    after = await service.client.simulate_get(f"/images?status={status}&after={expected[1]}")
    newest = await service.client.simulate_get(f"/images?status={status}&order=desc&limit=1")
    unknown = await service.client.simulate_get(f"/images?status={status}&after={UNKNOWN_ID}")

    assert ids_of(pages) == [expected[:2], expected[2:]]
    assert {record["status"] for page in pages for record in page} == {status}
    assert [record["id"] for record in after.json] == expected[2:]
    assert [record["id"] for record in newest.json] == expected[2:]
    assert [record["id"] for record in unknown.json] == expected


async def test_a_list_that_its_client_holds_is_not_sent_again(service: Service) -> None:
    await service.worker.ready()
    held = (await service.client.simulate_get("/images")).headers["ETag"]

    again = await service.client.simulate_get("/images", headers={"If-None-Match": held})
    await service.worker.ready()
    changed = await service.client.simulate_get("/images", headers={"If-None-Match": held})

    assert (again.status_code, again.content) == (304, b"")
    assert changed.status_code == 200
    assert len(changed.json) == 2


async def test_a_list_of_unfinished_images_is_read_anew_each_time(service: Service) -> None:
    first = await service.client.simulate_get("/images?status=queued")
    await service.worker.queued()
    second = await service.client.simulate_get("/images?status=queued")

    assert (len(first.json), len(second.json)) == (0, 1)
    assert await service.copies() == []


async def test_a_deleted_image_is_in_no_list(service: Service) -> None:
    for image in (await service.worker.ready(), await service.worker.failed(), await service.worker.queued()):
        await service.client.simulate_delete(f"/images/{image.id}")

    lists = [await service.client.simulate_get(f"/images?status={s}") for s in ("ready", "failed", "queued")]

    assert [response.json for response in lists] == [[], [], []]


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("limit=0", "invalid-limit"),
        ("limit=1001", "invalid-limit"),
        ("limit=-1", "invalid-limit"),
        ("limit=abc", "invalid-limit"),
        ("limit=1.5", "invalid-limit"),
        ("limit=", "invalid-limit"),
        ("limit=%D9%A3", "invalid-limit"),
        ("limit=" + "9" * 5000, "invalid-limit"),
        ("limit=1&limit=2", "invalid-limit"),
        ("after=abc", "invalid-after"),
        ("after=-1", "invalid-after"),
        ("after=", "invalid-after"),
        ("after=9999999999999999999", "invalid-after"),
        (f"after={UNKNOWN_ID}", "invalid-after"),
        ("status=queued&after=1", "invalid-after"),
        (f"status=queued&after={UNKNOWN_ID.upper()}", "invalid-after"),
        ("status=nonsense", "invalid-status"),
        ("status=", "invalid-status"),
        ("status=deleting", "invalid-status"),
        ("status=READY", "invalid-status"),
        ("status=ready&status=failed", "invalid-status"),
        ("order=newest", "invalid-order"),
        ("order=", "invalid-order"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_refused(service: Service, query: str, problem: str) -> None:
    response = await service.client.simulate_get("/images", query_string=query)

    assert response.status_code == 400
    assert problem_of(response) == problem
    assert await service.copies() == []


async def test_a_parameter_that_means_nothing_to_us_changes_nothing(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get("/images?colour=blue&limit=5")

    assert [record["id"] for record in response.json] == [image.id]
