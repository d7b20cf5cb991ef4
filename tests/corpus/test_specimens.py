"""The corpus itself: the same at every run, with everything in it that it is to have."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from shared.errors import UnreadableImage
from tests.corpus import metadata, polyglots
from tests.corpus.__main__ import write
from tests.corpus.collection import corpus
from tests.corpus.formats import segment, with_segments
from tests.corpus.honest import honest
from tests.corpus.scan import inflated, odd_in, traces
from tests.corpus.specimens import PLANTED, Specimen, text_for
from tests.corpus.strangers import openable, undisguised
from tests.worker.pictures import encoded, photo
from worker.child.opening import open_picture

FORMATS = ("jpeg", "png", "gif", "webp", "tiff", "bmp", "avif")


@pytest.fixture(scope="module")
def specimens() -> list[Specimen]:
    return corpus()


def test_the_corpus_is_the_same_at_every_run(specimens: list[Specimen]) -> None:
    honest.cache_clear()
    digests = [(one.name, hashlib.sha256(one.content).digest()) for one in specimens]

    assert digests == [(one.name, hashlib.sha256(one.content).digest()) for one in corpus()]


def test_every_specimen_has_a_name_and_a_text_of_its_own(specimens: list[Specimen]) -> None:
    names, texts = Counter(one.name for one in specimens), Counter(one.planted for one in specimens if one.planted)

    assert [name for name, count in (names + texts).items() if count > 1] == []
    assert [one.name for one in specimens if not one.outcomes] == []


def test_the_corpus_is_small_on_disk(specimens: list[Specimen]) -> None:
    assert sum(len(one.content) for one in specimens) < 60_000_000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("kind", "word", "least"),
    [
        ("bombs", "", 6),
        ("damage", "percent", 9),
        ("damage", "bits-flipped", 6),
        ("lies", "", 20),
        ("metadata", "", 7),
        ("polyglots", "", 10),
        ("strangers", "behind", 4),
    ],
)
def test_every_format_has_its_share_of_every_kind(
    specimens: list[Specimen], format: str, kind: str, word: str, least: int
) -> None:
    found = [one for one in specimens if one.kind == kind and format in one.name and word in one.name]

    assert len(found) >= least


def test_every_text_is_really_in_its_original() -> None:
    """The scan of the renditions could not fail otherwise."""
    planted = [one for kind in (metadata, polyglots) for one in kind.specimens() if one.planted]

    missed = [
        one.name for one in planted if not any(traces(content) for content in (one.content, *inflated(one.content)))
    ]

    assert len(planted) > 200
    assert missed == []


def test_a_rendition_that_carried_something_over_would_be_found() -> None:
    text = text_for("a test")
    clean = encoded(photo((64, 64)), "JPEG", quality=85).getvalue()
    hiding_places = {
        "comment": with_segments(clean, segment(0xFE, text)),
        "behind the end": clean + text,
        "in front of the end": clean[:-2] + segment(0xFE, text) + clean[-2:],
        "EXIF": with_segments(clean, segment(0xE1, b"Exif\0\0" + text.decode().encode("utf-16-be"))),
        "thumbnail of the header": clean[:2] + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\2\3" + text[:18]) + clean[20:],
    }

    assert (traces(clean), odd_in(clean)) == ([], "")
    assert [place for place, jpeg in hiding_places.items() if not traces(jpeg, PLANTED) or not odd_in(jpeg)] == []


def test_what_only_other_openers_of_pillow_would_take_is_refused_by_all_of_ours() -> None:
    """The door refuses them by their first bytes already; this is what stands behind the door."""
    taken = []
    for content in undisguised():
        try:
            open_picture(io.BytesIO(content), max_pixels=50_000_000, max_side=65_500)
        except UnreadableImage:
            continue
        taken.append(content[:16])

    assert taken == []


def test_pillow_itself_would_open_those_strangers() -> None:
    """Else their refusal would show nothing."""
    formats = []
    for content in openable().values():
        with Image.open(io.BytesIO(content)) as image:
            formats.append(image.format)

    assert "EPS" in formats
    assert len(set(formats)) > 12


def test_the_corpus_can_be_written_to_a_folder(tmp_path: Path, specimens: list[Specimen]) -> None:
    few = specimens[:: len(specimens) // 20]

    write(few, tmp_path)

    lines = (tmp_path / "manifest.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(few)
    assert all((tmp_path / one.name).read_bytes() == one.content for one in few)
