"""DELETE wins: at once for everybody who asks, and within a minute and a half for the disk."""

from __future__ import annotations

import pytest

from tests.integration.evidence import files_of, row_of, rows_of
from tests.integration.faults import begin_render, frozen_worker, small_picture
from tests.integration.service import Services

pytestmark = pytest.mark.processes


def test_a_deleted_image_is_gone_at_once_and_its_last_trace_soon(services: Services) -> None:
    """One is deleted in the middle of its render, one while every answer about it has a copy in Redis."""
    service = services.deploy()
    ready = service.upload(small_picture(), wait=20).json
    paths = ["/images", f"/images/{ready['id']}", ready["image"], *ready["thumbnails"]]
    service.until(lambda: all(service.get(path).headers["x-asgilook-cache"] == "Hit" for path in paths))
    rendered = begin_render(service)

    deletions = [service.request("DELETE", f"/images/{image_id}").status for image_id in (rendered, ready["id"])]

    assert deletions == [204, 204]
    gone = [f"/images/{rendered}", f"/images/{rendered}.jpeg", *paths[1:]]
    assert [service.get(path).status for path in gone] == [404] * 6
    assert service.get("/images").json == []
    assert service.get("/images?status=processing").json == []
    assert service.request("DELETE", f"/images/{rendered}").status == 404
    service.until(lambda: rows_of(service) == {}, seconds=90, what="the rows' end")
    assert files_of(service) == []


def test_an_image_that_was_deleted_before_its_render_is_never_rendered(services: Services) -> None:
    service = services.deploy()
    with frozen_worker(service):
        image_id = service.upload(small_picture()).json["id"]

        status = service.request("DELETE", f"/images/{image_id}").status

        assert status == 204
        assert files_of(service) == []
    # Jobs are taken in their order: once this one is done, the other one has been looked at.
    assert service.upload(small_picture(), wait=20).status == 201
    assert row_of(service, image_id)["attempt"] == 0
