"""Whatever a client writes, what reads it returns or refuses, and raises nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from email.utils import formatdate

import msgpack
from hypothesis import example, given
from hypothesis import strategies as st

from api.conditional import NotModified, Part, PreconditionFailed, Unsatisfiable, Whole, decide
from api.problems import Problem
from api.records import Page
from api.uploads import digests_of
from api.urls import ImageIdConverter, SizeConverter
from api.wait import MOST_SECONDS, wait_of
from shared.redis.response_cache import Copy, _unpack
from tests.fuzzing import examples

ETAG = '"0a1b2c"'
#: What the parsers here take for structure, and what looks like it.
PIECES = st.sampled_from(
    [
        *'",;:=-*/ \t\\',
        "bytes",
        "W/",
        ETAG,
        "sha-256",
        "sha-512",
        "wait",
        "0",
        "9" * 25,
        "-1",
        "٣",
        "\xff",
        "GMT",
        "%00",
    ]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join))
NUMBERS = st.integers(-2, 300).map(str) | st.sampled_from(["", "00", "9" * 30, "+1", "1.0", "x"])
RANGES = st.builds(
    "{}{}-{}{}".format, st.sampled_from(["bytes=", "BYTES=", "bits=", ""]), NUMBERS, NUMBERS, TEXTS | st.just("")
)
DATES = st.integers(0, 2**33).map(lambda seconds: formatdate(seconds, usegmt=True))
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "range": RANGES | TEXTS,
        "if-range": st.just(ETAG) | DATES | TEXTS,
        "if-match": st.just(ETAG) | TEXTS,
        "if-none-match": st.just(ETAG) | TEXTS,
        "if-modified-since": DATES | TEXTS,
        "if-unmodified-since": DATES | TEXTS,
    },
)


@examples(300)
@given(
    method=st.sampled_from(["GET", "HEAD", "DELETE"]),
    headers=CONDITIONS,
    modified=st.none() | st.floats(0, 2**33),
    length=st.none() | st.integers(0, 300),
)
def test_any_conditions_come_to_a_decision(
    method: str, headers: Mapping[str, str], modified: float | None, length: int | None
) -> None:
    match decide(method, headers, etag=ETAG, last_modified=modified, length=length):
        case Part(first, last):
            assert method == "GET"
            assert length is not None
            assert 0 <= first <= last < length
            assert "range" in headers
        case Unsatisfiable():
            assert "range" in headers
        case NotModified():
            assert {"if-none-match", "if-modified-since"} & headers.keys()
        case PreconditionFailed():
            assert {"if-match", "if-unmodified-since", "if-none-match"} & headers.keys()
        case whole:
            assert whole == Whole()


@examples(200)
@given(st.text(max_size=40) | st.from_regex(r"[0-9a-fA-F]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?"))
def test_a_text_is_an_id_in_one_spelling_only(text: str) -> None:
    converted = ImageIdConverter().convert(text)

    assert converted in (None, text)
    assert converted is None or (len(text) == 36 and text == text.lower() and text.isascii())


@examples(200)
@given(st.text(max_size=12) | st.builds("{}x{}".format, NUMBERS, NUMBERS))
def test_a_text_is_a_size_in_one_spelling_only(text: str) -> None:
    size = SizeConverter().convert(text)

    assert size is None or "{}x{}".format(*size) == text


PARAMETERS = st.tuples(
    st.sampled_from(["limit", "after", "order", "status", "more", "LIMIT", ""]),
    NUMBERS | TEXTS | st.sampled_from(["ready", "failed", "asc", "desc", "01890a5d-ac96-774b-bcce-b302099a8057"]),
)


@examples(300)
@given(TEXTS | st.lists(PARAMETERS, max_size=4).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs)))
def test_any_query_is_a_page_or_a_problem(query: str) -> None:
    with contextlib.suppress(Problem):
        page = Page.parse(query)

        assert 1 <= page.limit <= 1000
        assert Page.parse(page.path.partition("?")[2]) == page
        assert page.path.isascii()
        assert page.path.isprintable()


@examples(200)
@given(TEXTS | st.builds("wait={}{}".format, NUMBERS, TEXTS | st.just("")))
@example('wait="' + "9" * 10_000 + '"')
def test_any_preference_is_a_bearable_wait_or_none(prefer: str) -> None:
    assert wait_of(prefer) in (None, *range(MOST_SECONDS + 1))


@examples(200)
@given(TEXTS | st.binary(max_size=70).map(lambda digest: f"sha-256=:{digest.hex()}:"))
def test_any_digest_is_one_or_a_problem(header: str) -> None:
    with contextlib.suppress(Problem):
        assert {name: len(digest) for name, digest in digests_of(header).items()}.items() <= {
            "sha-256": 32,
            "sha-512": 64,
        }.items()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=10,
)


@examples(300)
@given(
    st.binary(max_size=60)
    | JUNK.map(msgpack.packb)
    | st.tuples(st.just(b"token"), st.just("/images"), JUNK, JUNK, JUNK).map(msgpack.packb)
)
@example(msgpack.packb([b"token", "/images", float("inf"), [], b""]))
def test_whatever_is_in_redis_is_a_copy_or_none(entry: bytes) -> None:
    copy = _unpack(entry, b"token", "/images")

    assert copy is None or isinstance(copy, Copy)
