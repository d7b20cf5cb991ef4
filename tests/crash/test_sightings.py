"""Those who judge what clients saw are judged first: what is stale is found, and what is not is left in peace."""

from __future__ import annotations

import math

from tests.crash.sightings import GONE, Sighting, Sightings

#: What a list covers where it holds every ready image.
EVERYTHING = (-math.inf, math.inf)


def sightings(*seen: Sighting, deleted: float | None = None, retried: tuple[float, float] | None = None) -> Sightings:
    """Return what was seen of the image `a`, the seventh in the list."""
    return Sightings(
        all=list(seen),
        deleted={} if deleted is None else {"a": deleted},
        retried=Sightings().retried | ({} if retried is None else {"a": [retried]}),
        sequences={"a": 7},
    )


def record(began: float, state: str, ended: float | None = None) -> Sighting:
    return Sighting(began, began + 1 if ended is None else ended, "GET record", {"a": state})


def listed(began: float, *image_ids: str, covers: tuple[float, float] = EVERYTHING) -> Sighting:
    return Sighting(began, began + 1, "GET list", dict.fromkeys(image_ids, "ready"), covers)


def test_an_image_that_comes_to_its_end_and_is_deleted_is_no_reason_to_complain() -> None:
    seen = [
        *(record(began, state) for began, state in ((0, "queued"), (2, "processing"), (4, "ready"), (14, GONE))),
        *(listed(2), listed(6, "a"), listed(14)),
    ]

    assert sightings(*seen, deleted=10).stale() == []


def test_what_overlaps_is_in_no_order() -> None:
    seen = [record(0, "ready", ended=5), record(4, "queued", ended=6), listed(4)]

    assert sightings(*seen).stale() == []


def test_a_list_without_an_image_that_was_seen_ready_is_stale() -> None:
    stale = sightings(record(0, "ready"), listed(3)).stale()

    assert [(each.sighting.request, each.seconds) for each in stale] == [("GET list", 2)]


def test_a_page_is_judged_by_what_belongs_on_it() -> None:
    seen = [record(0, "ready"), listed(3, "b", covers=(-math.inf, 6)), listed(3, "c", covers=(8, math.inf))]

    assert sightings(*seen).stale() == []


def test_a_record_that_falls_back_behind_a_list_is_stale() -> None:
    stale = sightings(listed(0, "a"), record(4, "processing")).stale()

    assert [(each.sighting.request, each.seconds) for each in stale] == [("GET record", 3)]


def test_an_image_that_is_gone_from_a_list_must_not_be_read_again() -> None:
    """Somebody has begun to delete it; no DELETE needs to have been answered."""
    stale = sightings(record(0, "ready"), listed(5), record(8, "ready"), listed(9, "a"), deleted=4).stale()

    assert [(each.sighting.request, each.seconds) for each in stale] == [("GET record", 2), ("GET list", 3)]


def test_an_image_that_nobody_has_deleted_must_not_be_gone() -> None:
    assert len(sightings(record(0, "ready"), record(5, GONE), deleted=7).stale()) == 1
    assert len(sightings(record(0, "queued"), record(5, GONE)).stale()) == 1


def test_a_retry_begins_anew_and_nothing_falls_back_behind_it() -> None:
    good = [record(0, "failed"), record(12, "queued"), record(14, "processing"), record(16, "failed")]

    assert sightings(*good, retried=(10, 11)).stale() == []
    assert len(sightings(*good, retried=(13, 14)).stale()) == 1
    assert len(sightings(*good, record(18, "processing"), retried=(10, 11)).stale()) == 1


def picture(began: float, web: int) -> Sighting:
    return Sighting(began, began + 1, f"GET /images/a.jpeg at web {web}", {"a": "ready"})


def test_a_picture_may_be_held_for_two_seconds_by_all_but_who_deleted_it() -> None:
    """And nothing but a picture."""
    seen = sightings(
        record(0, "ready"),
        record(10, GONE, ended=11),
        *(picture(12.9, 1), picture(13, 1), picture(12, 2), picture(11.4, 2)),
        record(11.5, "ready"),
        deleted=10,
    )
    seen.deleters["a"] = ("web 2", 11.5)

    excused = [(each.sighting.request, each.sighting.began, seen.is_held_picture(each, 2.0)) for each in seen.stale()]

    assert excused == [
        ("GET /images/a.jpeg at web 1", 12.9, True),
        ("GET /images/a.jpeg at web 1", 13, False),
        ("GET /images/a.jpeg at web 2", 12, False),
        # Its DELETE had not been answered yet.
        ("GET /images/a.jpeg at web 2", 11.4, True),
        ("GET record", 11.5, False),
    ]
