"""Stores that fail over in the middle of uploads: nothing acknowledged is lost or missing."""

from __future__ import annotations

import pytest

from tests.apart.failovers import fail_over_redis, refusing_store, restarting_postgresql, upload_through
from tests.integration.evidence import lines_of
from tests.integration.service import Services

pytestmark = pytest.mark.processes


def test_postgresql_restarted_in_the_middle_of_uploads_loses_nothing(services: Services) -> None:
    with restarting_postgresql(services) as (service, restart):
        outcome = upload_through(service, restart, uploads=12, seconds=0)

    outcome.assert_nothing_is_missing()
    assert outcome.uploads.refused
    # Of those whose commit was under way when the server went, nobody can tell before it is back.
    assert len(outcome.untold_originals) <= 4
    assert set(outcome.untold_rows) <= set(outcome.untold_originals)


def test_a_store_that_answers_503_in_the_middle_of_uploads_loses_nothing(services: Services) -> None:
    with refusing_store(services) as (service, refuse):
        outcome = upload_through(service, refuse, uploads=12, seconds=0)

    outcome.assert_nothing_is_missing()
    assert outcome.uploads.refused
    assert (outcome.untold_rows, outcome.untold_originals) == ([], [])


def test_redis_failed_over_to_empty_servers_in_the_middle_of_uploads_refuses_nobody(services: Services) -> None:
    service = services.deploy(workers=2)

    outcome = upload_through(service, fail_over_redis, uploads=12, seconds=0)

    outcome.assert_nothing_is_missing()
    assert (outcome.uploads.refused, dict(outcome.uploads.unanswered)) == ([], {})
    assert (outcome.untold_rows, outcome.untold_originals) == ([], [])
    service.until(service.is_ready, what="every part's health")
    assert lines_of(service, message="redis is left alone")
