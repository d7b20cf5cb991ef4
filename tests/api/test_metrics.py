"""`/metrics` is there where it is asked for, for those who may read it, and labels are none of a client's making."""

from __future__ import annotations

import pytest

from tests.api.arrange import UNKNOWN_ID, Service, problem_of
from tests.api.conftest import Start

TOKEN = "scrape-me"


@pytest.fixture(autouse=True)
def for_this_test_only(counting: None) -> None:
    """Each test switches on for itself."""


async def test_there_are_no_metrics_unless_they_are_asked_for(service: Service) -> None:
    assert (await service.client.simulate_get("/metrics")).status_code == 404


async def test_with_a_token_it_is_asked_for(start: Start) -> None:
    service = await start(metrics_token=TOKEN)

    unknown = await service.client.simulate_get("/metrics")
    wrong = await service.client.simulate_get("/metrics", headers={"Authorization": "Bearer guessed"})
    right = await service.client.simulate_get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})

    assert [problem_of(answer) for answer in (unknown, wrong)] == ["missing-token", "wrong-token"]
    assert right.status_code == 200
    assert right.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert right.headers["cache-control"] == "no-store"
    assert "asgilook_images_waiting 0.0" in right.text


async def test_without_one_whoever_reaches_the_port_is_told(start: Start) -> None:
    service = await start(metrics=True)

    assert (await service.client.simulate_get("/metrics")).status_code == 200


async def test_a_request_counts_for_the_route_that_it_took(start: Start) -> None:
    service = await start(metrics=True)
    await service.client.simulate_get(f"/images/{UNKNOWN_ID}")
    await service.client.simulate_get(f"/images/{UNKNOWN_ID}/elsewhere")
    await service.client.simulate_request("BREW", "/images")
    await service.client.simulate_get("/images", query_string="limit=5")

    text = (await service.client.simulate_get("/metrics")).text

    counted = [line for line in text.splitlines() if line.startswith("asgilook_requests_total{")]
    assert counted == [
        'asgilook_requests_total{method="GET",route="/images/{image_id}",status="404"} 1.0',
        'asgilook_requests_total{method="GET",route="none",status="404"} 1.0',
        'asgilook_requests_total{method="other",route="/images",status="400"} 1.0',
        'asgilook_requests_total{method="GET",route="/images",status="200"} 1.0',
    ]
    assert UNKNOWN_ID not in text
    assert "BREW" not in text
