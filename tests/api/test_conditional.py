from __future__ import annotations

import pytest

from api.conditional import (
    Decision,
    NotModified,
    Part,
    PreconditionFailed,
    Unsatisfiable,
    Whole,
    content_range,
    decide,
    strong_etag,
)

ETAG = '"abc"'
#: The moment of every example in RFC 9110, with a fraction that no HTTP-date can carry.
MODIFIED = 784111777.75
DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
SECOND_BEFORE = "Sun, 06 Nov 1994 08:49:36 GMT"
SECOND_AFTER = "Sun, 06 Nov 1994 08:49:38 GMT"
LENGTH = 1000


def asked(headers: dict[str, str], method: str = "GET", length: int | None = LENGTH) -> Decision:
    return decide(method, headers, etag=ETAG, last_modified=MODIFIED, length=length)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_request_without_conditions_gets_all_of_it(method: str) -> None:
    assert asked({}, method) == Whole()


METHODS = ["GET", "HEAD", "DELETE"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tags", ['"abc"', '"x", "abc"', 'W/"x","abc"', "*", " * "])
def test_what_the_client_means_is_what_there_is(method: str, tags: str) -> None:
    assert asked({"if-match": tags}, method) == Whole()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tags", ['"x"', 'W/"abc"', '"x", W/"abc"', "", "abc", '"abc'])
def test_what_the_client_means_is_something_else(method: str, tags: str) -> None:
    """Compared strongly; and nonsense, ignored elsewhere, must not let a DELETE through."""
    assert asked({"if-match": tags}, method) == PreconditionFailed()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("date", "held"), [(SECOND_BEFORE, False), (DATE, True), (SECOND_AFTER, True), ("x", True)])
def test_a_date_tells_what_the_client_means_where_no_tag_does(method: str, date: str, held: bool) -> None:
    assert asked({"if-unmodified-since": date}, method) == (Whole() if held else PreconditionFailed())
    assert asked({"if-unmodified-since": date, "if-match": '"abc"'}, method) == Whole()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "tags",
    [
        '"abc"',
        'W/"abc"',
        '"x", "abc"',
        '"x",W/"abc" , "y"',
        ' , "x",, "abc",',
        "*",
        " * ",
        '"a,b", "abc"',
        '"\xe9", "abc"',
        '"", "abc"',
    ],
)
def test_a_tag_that_the_client_holds_is_not_sent_again(method: str, tags: str) -> None:
    assert asked({"if-none-match": tags}, method) == NotModified()


@pytest.mark.parametrize(
    "tags",
    ['"x"', '"ABC"', '"x", "abcd"', "", '"W/abc"', '"x,"', ","],
)
def test_another_tag_gets_all_of_it(tags: str) -> None:
    assert asked({"if-none-match": tags}) == Whole()


@pytest.mark.parametrize(
    "tags",
    ["abc", '"abc', 'abc"', 'w/"abc"', 'W/ "abc"', '*, "abc"', '"abc" "x"', '"abc", x', '"a b", "abc"', "'abc'"],
)
def test_malformed_tags_match_nothing(tags: str) -> None:
    assert asked({"if-none-match": tags}) == Whole()


def test_a_weak_tag_of_ours_matches_too() -> None:
    """If-None-Match compares weakly (section 13.1.2), whichever side is weak."""
    decision = decide("GET", {"if-none-match": '"abc"'}, etag='W/"abc"', last_modified=None, length=None)

    assert decision == NotModified()


def test_tags_of_a_megabyte_are_read_in_no_time() -> None:
    """The pattern may not be one that backtracks: this test would not come back."""
    tags = '"x", ' * 200_000

    assert asked({"if-none-match": tags + '"abc"'}) == NotModified()
    assert asked({"if-none-match": tags + "x"}) == Whole()
    assert asked({"if-none-match": " ," * 500_000 + "x"}) == Whole()
    assert asked({"if-none-match": '"' * 1_000_000}) == Whole()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "date",
    [
        DATE,
        SECOND_AFTER,
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        f"  {DATE}\t",
        "Fri, 31 Dec 9999 23:59:59 GMT",
    ],
)
def test_what_was_not_modified_since_is_not_sent_again(method: str, date: str) -> None:
    assert asked({"if-modified-since": date}, method) == NotModified()


@pytest.mark.parametrize(
    "date",
    [
        SECOND_BEFORE,
        "Sunday, 06-Nov-94 08:49:36 GMT",
        "Sun Nov  6 08:49:36 1994",
        "Mon, 01 Jan 0001 00:00:00 GMT",
    ],
)
def test_what_was_modified_since_is_sent(date: str) -> None:
    assert asked({"if-modified-since": date}) == Whole()


@pytest.mark.parametrize(
    "date",
    [
        "",
        "yesterday",
        "784111999",
        "2030-11-06T08:49:37Z",
        "Sun, 06 Nov 2030 08:49:37",
        "Sun, 06 Nov 2030 08:49:37 CET",
        "Sun, 06 Nov 2030 08:49:37 +0000",
        "Sun, 31 Feb 2030 08:49:37 GMT",
        "Sun, 00 Nov 2030 08:49:37 GMT",
        "Sun, 06 Nov 2030 24:49:37 GMT",
        "Sun, 06 Nov 2030 08:60:37 GMT",
        "Sun, 06 Nov 2030 08:49:61 GMT",
        "Sun, 06 Nov 0000 08:49:37 GMT",
        "Sun, 06 Foo 2030 08:49:37 GMT",
        "Sun, 06-Nov-30 08:49:37 GMT",
        "Sunday, 06 Nov 2030 08:49:37 GMT",
        f"{SECOND_AFTER}, {SECOND_AFTER}",
        "Sun, 06 Nov 2030 08:49:37 GMT\n",
    ],
)
def test_a_malformed_date_is_ignored(date: str) -> None:
    assert asked({"if-modified-since": date}) == Whole()


def test_tags_go_before_dates() -> None:
    assert asked({"if-none-match": '"x"', "if-modified-since": SECOND_AFTER}) == Whole()
    assert asked({"if-none-match": "malformed", "if-modified-since": SECOND_AFTER}) == Whole()
    assert asked({"if-none-match": ETAG, "if-modified-since": SECOND_BEFORE}) == NotModified()


def test_both_go_before_ranges() -> None:
    assert asked({"if-none-match": ETAG, "range": "bytes=0-1"}) == NotModified()
    assert asked({"if-modified-since": DATE, "range": "bytes=5000-"}) == NotModified()
    assert asked({"if-none-match": '"x"', "range": "bytes=0-1"}) == Part(0, 1)


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "get"])
def test_other_methods_have_neither_dates_nor_ranges(method: str) -> None:
    headers = {"if-modified-since": SECOND_AFTER, "range": "bytes=0-1"}

    assert asked(headers, method) == Whole()


@pytest.mark.parametrize(("tags", "held"), [(ETAG, True), (f"W/{ETAG}", True), ("*", True), ('"x"', False)])
def test_other_methods_do_nothing_to_what_the_client_holds(tags: str, held: bool) -> None:
    """Section 13.2.2: where GET and HEAD get a 304, all others fail."""
    assert asked({"if-none-match": tags}, "DELETE") == (PreconditionFailed() if held else Whole())


def test_without_a_date_of_ours_none_of_theirs_counts() -> None:
    decision = decide("GET", {"if-modified-since": SECOND_AFTER}, etag=ETAG, last_modified=None, length=LENGTH)

    assert decision == Whole()


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", Part(0, 0)),
        ("bytes=0-499", Part(0, 499)),
        ("bytes=500-", Part(500, 999)),
        ("bytes=999-", Part(999, 999)),
        ("bytes=0-", Part(0, 999)),
        ("bytes=0-999", Part(0, 999)),
        ("bytes=990-5000", Part(990, 999)),
        ("bytes=-1", Part(999, 999)),
        ("bytes=-1000", Part(0, 999)),
        ("bytes=-5000", Part(0, 999)),
        ("BYTES=1-2", Part(1, 2)),
        ("Bytes= 1-2 ", Part(1, 2)),
        ("bytes=,1-2,", Part(1, 2)),
        ("bytes=0001-0002", Part(1, 2)),
        ("bytes=10-" + "9" * 10_000, Part(10, 999)),
        ("bytes=-" + "9" * 10_000, Part(0, 999)),
        ("bytes=" + "0" * 10_000 + "-" + "0" * 10_000 + "1", Part(0, 1)),
    ],
)
def test_one_range_gets_its_part(wanted: str, part: Part) -> None:
    assert asked({"range": wanted}) == part


@pytest.mark.parametrize(
    "wanted",
    ["bytes=1000-", "bytes=1000-1001", "bytes=-0", "bytes=-000", "bytes=" + "9" * 10_000 + "-"],
)
def test_a_range_past_the_end_is_unsatisfiable(wanted: str) -> None:
    assert asked({"range": wanted}) == Unsatisfiable()


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=1-+2",
        "bytes=1",
        "bytes=2-1",
        "bytes=1000-999",
        "bytes=0-1,5-6",
        "bytes=0-1, -1",
        "bytes=a-b",
        "bytes=1-2x",
        "bytes=1 - 2",
        "bytes =1-2",
        "bytes:1-2",
        "bytes=0x1-2",
        "bytes=1-2\n",
        "bytes=1_0-20",
        "bytes=\xb2-\xb3",
        "items=1-2",
        "seconds=1-2",
        "byte\N{LATIN SMALL LETTER LONG S}=1-2",
    ],
)
def test_anything_else_about_ranges_gets_all_of_it(wanted: str) -> None:
    assert asked({"range": wanted}) == Whole()


def test_only_get_has_ranges() -> None:
    assert asked({"range": "bytes=0-1"}, "HEAD") == Whole()
    assert asked({"range": "bytes=5000-"}, "HEAD") == Whole()


def test_without_a_length_there_are_no_ranges() -> None:
    assert asked({"range": "bytes=0-1"}, length=None) == Whole()


def test_of_nothing_there_are_no_parts() -> None:
    assert asked({"range": "bytes=0-"}, length=0) == Unsatisfiable()
    assert asked({"range": "bytes=-1"}, length=0) == Whole()


@pytest.mark.parametrize("validator", [ETAG, f" {ETAG} ", DATE, "Sunday, 06-Nov-94 08:49:37 GMT"])
def test_a_range_of_what_the_client_began_goes_on(validator: str) -> None:
    assert asked({"range": "bytes=10-19", "if-range": validator}) == Part(10, 19)
    assert asked({"range": "bytes=5000-", "if-range": validator}) == Unsatisfiable()


@pytest.mark.parametrize(
    "validator", ['"x"', 'W/"abc"', f'{ETAG}, "x"', "abc", "*", "", SECOND_BEFORE, SECOND_AFTER, "yesterday"]
)
def test_a_range_of_something_else_gets_all_of_it(validator: str) -> None:
    assert asked({"range": "bytes=10-19", "if-range": validator}) == Whole()
    assert asked({"range": "bytes=5000-", "if-range": validator}) == Whole()


def test_a_weak_tag_of_ours_resumes_nothing() -> None:
    """If-Range compares strongly (section 13.1.5): two equal weak tags do not match."""
    headers = {"range": "bytes=0-1", "if-range": 'W/"abc"'}

    assert decide("GET", headers, etag='W/"abc"', last_modified=None, length=LENGTH) == Whole()


def test_if_range_alone_means_nothing() -> None:
    assert asked({"if-range": '"x"'}) == Whole()


def test_an_etag_is_the_digest_in_quotes() -> None:
    assert strong_etag("00ff") == '"00ff"'


def test_content_range_says_what_was_sent_or_how_much_there_is() -> None:
    assert content_range(Part(0, 9), 100) == "bytes 0-9/100"
    assert content_range(Unsatisfiable(), 100) == "bytes */100"
