"""Requests that nobody would think of, against the application behind its guard.

Each is answered properly, and never with a 5xx; what is refused leaves nothing behind; nothing reaches the log but
what was meant to.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.server.asgi_types import Event
from shared.images import Image
from tests.api.arrange import PATIENCE, PHOTO, UNKNOWN_ID, Service
from tests.api.conftest import Start
from tests.fuzzing import examples

LIMIT = 8 * 1024
SIGNATURES = [PHOTO[:600], b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b"BM", b""]
HEADER_VALUES = st.binary(max_size=30).map(lambda value: bytes(byte for byte in value if byte not in b"\0\r\n"))

Headers = list[tuple[bytes, bytes]]


@pytest.fixture
async def service(start: Start) -> Service:
    started: Service = await start(max_upload_bytes=LIMIT)
    return started


async def ask(
    service: Service, method: str, target: bytes, headers: Headers, chunks: list[bytes], *, leaves: bool = False
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request as the server hands it over; return its answer, having checked that it is a proper one."""
    events: list[Event] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    events.append({"type": "http.disconnect"} if leaves else {"type": "http.request", "body": b"", "more_body": False})
    answer: list[Event] = []

    async def receive() -> Event:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event: Event) -> None:
        answer.append(event)

    path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": urllib.parse.unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [*headers, (b"host", b"test")],
        "server": ("test", 80),
        "client": ("test", 1),
    }
    async with asyncio.timeout(PATIENCE):
        await service.app(scope, receive, send)
    if leaves and not answer:
        return 0, {}, b""
    start, *rest = answer
    body = b"".join(event.get("body", b"") for event in rest)
    names = [name for name, _ in start["headers"]]
    answered = dict(start["headers"])
    assert start["status"] < 500
    assert len(set(names)) == len(names)
    assert not any(byte in value for value in answered.values() for byte in b"\0\r\n")
    assert answered[b"x-content-type-options"] == b"nosniff"
    if b"content-length" in answered and method != "HEAD" and start["status"] != 304:
        assert int(answered[b"content-length"]) == len(body)
    if start["status"] >= 400 and method != "HEAD":
        assert answered[b"content-type"] == b"application/problem+json"
        assert answered[b"cache-control"] == b"no-store"
        assert json.loads(body)["status"] == start["status"]
    return start["status"], answered, body


def unforeseen(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]


# --- Uploads ---


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    begin = draw(st.sampled_from(SIGNATURES))
    return begin + draw(st.binary(max_size=300)) + bytes(draw(st.sampled_from([0, 0, 0, 1, LIMIT, LIMIT + 70_000])))


@st.composite
def forms(draw: st.DrawFn) -> bytes:
    """Parts of a form, or of what was one, with more delimiters than there should be, or fewer."""
    pieces = st.sampled_from(
        [
            b"--edge\r\n",
            b"--edge--\r\n",
            b"--edge",
            b"\r\n",
            b"\r\n\r\n",
            b"Content-Disposition: form-data; ",
            b'name="file"; ',
            b'filename="a.png"',
            b'filename="../\0\xff"',
            b"filename*=utf-8''%ff",
            b"filename*=idna''a",
            b"Content-Type: multipart/mixed; boundary=edge\r\n",
            b"Content-Transfer-Encoding: base64\r\n",
            PHOTO[:200],
        ]
    )
    part = b'--edge\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + PHOTO[:200] + b"\r\n"
    good = st.lists(st.just(part), max_size=2).map(lambda parts: b"".join(parts) + b"--edge--\r\n")
    bad = st.lists(pieces | st.binary(max_size=5), max_size=14).map(b"".join)
    return draw(bad | good | st.builds(bytes.__add__, bad, good) | st.builds(bytes.__add__, good, bad))


@st.composite
def digests(draw: st.DrawFn, body: bytes) -> bytes:
    right = base64.b64encode(hashlib.sha256(body).digest())
    members = st.sampled_from([b"sha-256=:%s:" % right, b"sha-256=:AAAA:", b"md5=:AAAA:", b"sha-256", b"=", b";q", b""])
    return b",".join(draw(st.lists(members | HEADER_VALUES, min_size=1, max_size=3)))


@st.composite
def uploads(draw: st.DrawFn) -> tuple[Headers, list[bytes]]:
    is_form = draw(st.booleans())
    body = draw(forms() if is_form else bodies())
    headers: Headers = []
    types = [b"multipart/form-data; boundary=edge", b'Multipart/Form-Data; boundary="edge"']
    others = [b"image/png", b"", b"application/json", b"multipart/form-data", b"multipart/mixed; boundary=edge"]
    content_type = draw(st.sampled_from(types if is_form else others) | HEADER_VALUES)
    headers.append((b"content-type", content_type))
    if draw(st.booleans()):
        headers.append((b"content-length", b"%d" % len(body)))
    else:
        headers.append((b"transfer-encoding", b"chunked"))
    if draw(st.integers(0, 5)) == 5:
        headers.append((b"content-digest", draw(digests(body))))
    optional = {
        b"content-encoding": st.sampled_from([b"identity", b"gzip", b""]) | HEADER_VALUES,
        # Nothing works here: what is accepted would be waited for.
        b"prefer": st.sampled_from([b"wait=0", b"wait=-1", b"wait", b'wait="0"', b"respond-async, wait=0", b";=,"]),
        b"accept": st.sampled_from([b"image/*", b"application/json", b"", b";q=2"]) | HEADER_VALUES,
        b"x-request-id": HEADER_VALUES,
        b"if-none-match": HEADER_VALUES,
        b"authorization": HEADER_VALUES,
        b"cookie": HEADER_VALUES,
        b"range": HEADER_VALUES,
    }
    for name in draw(st.sets(st.sampled_from(sorted(optional)), max_size=3)):
        headers.append((name, draw(optional[name])))
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=4)))
    chunks = [body[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    return headers, chunks


@examples(250)
@given(upload=uploads(), leaves=st.integers(0, 9).map(lambda drawn: drawn == 0))
async def test_any_upload_is_taken_whole_or_refused_without_a_trace(
    service: Service, caplog: pytest.LogCaptureFixture, upload: tuple[Headers, list[bytes]], leaves: bool
) -> None:
    headers, chunks = upload
    rows, files = set(service.rows()), set(service.files())

    status, answered, _ = await ask(service, "POST", b"/images", headers, chunks, leaves=leaves)

    new_rows, new_files = set(service.rows()) - rows, set(service.files()) - files
    if status == 202:
        (image_id,) = new_rows
        assert answered[b"location"] == f"/images/{image_id}".encode()
        (original,) = new_files
        assert original.name == image_id
        assert original.read_bytes() in b"".join(chunks)
    else:
        assert status == 0 or 400 <= status < 500
        assert (new_rows, new_files) == (set(), set())
    assert unforeseen(caplog) == []


# --- Everything else ---

METHODS = ["GET", "HEAD", "GET", "HEAD", "OPTIONS", "PUT", "PATCH", "TRACE", "CONNECT", "BREW", ""]
PATH_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"#?")


def segments(image: Image) -> st.SearchStrategy[bytes]:
    known = [
        *(b"images", b"thumbnails", b"healthz", b"readyz", b"retry", b"", b".", b"..", b"%2e%2e", b"IMAGES"),
        *(image.id.encode(), image.id.encode().upper(), b"{%s}" % image.id.encode(), UNKNOWN_ID.encode()),
        *(
            b"320x180.jpeg",
            b"0320x180.jpeg",
            b"+320x180.jpeg",
            b"320x180.JPEG",
            b"321x180.jpeg",
            b"9" * 50 + b"x1.jpeg",
        ),
        *(image.id.encode() + end for end in (b".jpeg", b".jpg", b"%00.jpeg", b".jpeg.jpeg", b"%2ejpeg")),
    ]
    noise = st.lists(st.sampled_from([*PATH_BYTES]), max_size=6).map(bytes)
    return st.sampled_from(known) | noise


def paths(image: Image) -> st.SearchStrategy[bytes]:
    by_chance = st.lists(segments(image), max_size=4).map(lambda parts: b"/" + b"/".join(parts))
    canonical = st.sampled_from(sorted(canonical_paths(image)))
    nearly = st.builds(
        lambda path, at, byte: path[:at] + bytes([byte]) + path[at:],
        canonical,
        st.integers(0, 60),
        st.sampled_from([*PATH_BYTES]),
    )
    return canonical | canonical | canonical | by_chance | nearly.filter(lambda path: path.startswith(b"/"))


def canonical_paths(image: Image) -> set[bytes]:
    sizes = ["320x180", "160x90"]
    return {
        *(b"/images", b"/healthz", b"/readyz", b"/images/" + image.id.encode(), f"/images/{image.id}.jpeg".encode()),
        *(f"/thumbnails/{image.id}/{size}.jpeg".encode() for size in sizes),
    }


QUERIES = st.one_of(
    st.just(b""),
    st.binary(max_size=20).map(urllib.parse.quote_from_bytes).map(str.encode),
    st.lists(
        st.sampled_from(
            [b"limit=", b"limit=1", b"after=0", b"after=-1", b"order=desc", b"status=%ff", b"status=failed"]
        ),
        max_size=3,
    ).map(b"&".join),
)
REQUEST_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"range",
                b"if-range",
                b"if-match",
                b"if-none-match",
                b"if-modified-since",
                b"accept",
                b"prefer",
                b"cookie",
            ]
        ),
        HEADER_VALUES
        | st.sampled_from([b"bytes=0-1", b"bytes=-1", b"bytes=9-", b"*", b'""', b"image/*", b"text/html"]),
    ),
    max_size=3,
)


@examples(250)
@given(data=st.data(), method=st.sampled_from(METHODS), query=QUERIES, headers=REQUEST_HEADERS)
async def test_any_request_is_answered_and_a_path_has_one_spelling(
    service: Service,
    caplog: pytest.LogCaptureFixture,
    data: st.DataObject,
    method: str,
    query: bytes,
    headers: Headers,
) -> None:
    images = [image for image_id in service.rows() if (image := await service.ledger.get(image_id))]
    image = images[0] if images else await service.worker.ready()
    path = data.draw(paths(image), label="path")

    status, answered, body = await ask(service, method, path + b"?" + query, headers, [])

    if status in (200, 206, 304) and method != "OPTIONS":
        assert path in canonical_paths(image)
    if status == 206:
        first, last = map(int, answered[b"content-range"].split()[1].partition(b"/")[0].split(b"-"))
        whole = (await ask(service, "GET", path, [], []))[2]
        assert body == whole[first : last + 1]
    assert service.rows() == [image.id]
    assert unforeseen(caplog) == []
