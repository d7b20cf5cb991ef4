"""What this process holds of renditions and rows: how much, how long, and never of an image that has changed."""

from __future__ import annotations

from api.renditions.memory import MOST_SECONDS, Memory, Row
from shared.images import Image
from shared.redis.response_cache import Copy
from tests.api.arrange import Service


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def keep(memory: Memory, path: str, image_id: str, length: int = 10) -> None:
    memory.keep_entry(path, image_id, copy_of(length), memory.now())


def copy_of(length: int) -> Copy:
    return Copy.of(200, (("etag", '"x"'),), bytes(length))


def keep_row(memory: Memory, image: Image) -> None:
    memory.keep_row(Row(image, b"token", memory.now()))


async def test_no_more_is_held_than_may_be(service: Service) -> None:
    memory = Memory(1_000_000, Clock())
    image = await service.worker.ready()

    for number in range(10_000):
        keep(memory, f"/images/{number}.jpeg", str(number), 1000)
        keep_row(memory, image)
        assert memory.bytes <= 1_000_000

    # Heads and rows take room, too: of the bodies alone there would be a thousand.
    assert 100 < len(memory._held) < 250
    assert len(memory._paths_of) == len(memory._held) - 1
    for number in range(10_000):
        memory.forget(str(number))
    memory.forget(image.id)
    assert (memory.bytes, len(memory._held), memory._paths_of) == (0, 0, {})


def test_the_ones_used_last_are_kept() -> None:
    memory = Memory(100_000, Clock())
    keep(memory, "/first", "first", 1000)

    for number in range(100):
        keep(memory, f"/{number}", str(number), 1000)
        assert memory.entry("/first") is not None

    assert memory.entry("/0") is None
    assert memory.entry("/99") is not None


def test_one_rendition_takes_an_eighth_at_the_most() -> None:
    memory = Memory(80_000, Clock())

    keep(memory, "/large", "large", 10_001)
    keep(memory, "/small", "small", 10_000)

    assert (memory.entry("/large"), memory.entry("/small") is not None) == (None, True)


def test_all_renditions_of_an_image_are_forgotten_with_it_and_no_others() -> None:
    memory = Memory(1_000_000, Clock())
    for path, image_id in (("/a", "one"), ("/b", "one"), ("/c", "other")):
        keep(memory, path, image_id)

    memory.forget("one")

    assert [memory.entry(path) is not None for path in ("/a", "/b", "/c")] == [False, False, True]


async def test_what_began_before_its_image_changed_is_not_kept(service: Service) -> None:
    """Though the clock stands still: order is told by a counter."""
    image = await service.worker.ready()
    memory = Memory(1_000_000, Clock())
    began, other = memory.now(), memory.now()

    memory.forget(image.id)
    memory.keep_entry("/entry", image.id, copy_of(10), began)
    memory.keep_row(Row(image, b"token", began))
    memory.keep_entry("/other", "other", copy_of(10), other)

    assert (memory.entry("/entry"), memory.row(image.id)) == (None, None)
    assert memory.entry("/other") is not None
    memory.keep_entry("/entry", image.id, copy_of(10), memory.now())
    assert memory.entry("/entry") is not None


def test_what_began_before_all_was_forgotten_is_not_kept() -> None:
    memory = Memory(1_000_000, Clock())
    began = memory.now()

    memory.forget_all()
    memory.keep_entry("/entry", "one", copy_of(10), began)

    assert memory.entry("/entry") is None


def test_a_change_that_is_too_long_ago_to_be_remembered_still_counts() -> None:
    memory = Memory(1_000_000, Clock())
    began = memory.now()
    memory.forget("one")
    for number in range(2_000):
        memory.forget(str(number))

    memory.keep_entry("/entry", "one", copy_of(10), began)

    assert memory.entry("/entry") is None
    assert len(memory._changes) <= 1_000


def test_what_is_held_is_two_seconds_old_at_the_most() -> None:
    clock = Clock()
    memory = Memory(1_000_000, clock)
    began = memory.now()
    clock.now += 1.0
    memory.keep_entry("/entry", "one", copy_of(10), began)

    clock.now += MOST_SECONDS - 1.001
    before = memory.entry("/entry")
    clock.now += 0.001

    assert before is not None
    assert memory.entry("/entry") is None
    memory.keep_entry("/late", "one", copy_of(10), began)
    assert memory.entry("/late") is None
