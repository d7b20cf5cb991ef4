from __future__ import annotations

from shared.images import Lane, Status


def test_only_ready_and_failed_are_final() -> None:
    assert {status for status in Status if status.is_final} == {Status.READY, Status.FAILED}


def test_uploads_come_first_and_nobody_waits_for_the_lanes_that_make_room() -> None:
    assert list(Lane) == [Lane.UPLOAD, Lane.DEMAND, Lane.AHEAD, Lane.BULK]
    assert [lane for lane in Lane if lane.is_preemptible] == [Lane.AHEAD, Lane.BULK]
