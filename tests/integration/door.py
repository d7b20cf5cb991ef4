"""What is said at the HTTP door, and how it ends: the source of the tables in docs/http-requests.md.

`python -m tests.integration.door` prints the table.
"""

from __future__ import annotations

import http.client
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.integration.service import Response

HOST = b"Host: door\r\n"
UNKNOWN = b"/images/01890a5d-ac96-774b-bcce-b302099a8057"
#: Asks for the connection's end, so that everything can be read until there is no more.
LAST = b"GET /healthz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
#: What nobody may answer: it stands where only a parser that was led astray finds a request.
SMUGGLED = b"DELETE " + UNKNOWN + b" HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


def get(target: bytes = b"/healthz", headers: bytes = HOST, method: bytes = b"GET") -> bytes:
    return method + b" " + target + b" HTTP/1.1\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /images HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


def form(parts: bytes, boundary: bytes = b"edge") -> bytes:
    return post(
        b"Content-Type: multipart/form-data; boundary=%s\r\nContent-Length: %d\r\n" % (boundary, len(parts)), parts
    )


def part(disposition: bytes, content: bytes = b"abc", more: bytes = b"") -> bytes:
    return b"--edge\r\nContent-Disposition: form-data; " + disposition + b"\r\n" + more + b"\r\n" + content + b"\r\n"


@dataclass(frozen=True)
class Shape:
    """Something a client may send, the statuses of its answers, and whether the connection goes on."""

    name: str
    sends: bytes
    statuses: tuple[int, ...]
    stays_open: bool = False
    note: str = ""

    @property
    def row(self) -> str:
        """The shape's row in the table."""
        runs = [(status, len(list(run))) for status, run in itertools.groupby(self.statuses)]
        answers = ", ".join(f"{count} times {status}" if count > 1 else str(status) for status, count in runs)
        return f"| {self.name} | {answers} | {'kept' if self.stays_open else 'closed'} | {self.note} |"


@dataclass(frozen=True)
class Theme:
    title: str
    shapes: list[Shape] = field(default_factory=list)


#: Of a shape that uvicorn itself would have taken.
OURS = "not uvicorn's"

FRAMING = Theme(
    "Where a request ends",
    [
        Shape(
            "`Content-Length` before `Transfer-Encoding`",
            post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
            (400,),
        ),
        Shape(
            "`Transfer-Encoding` before `Content-Length`",
            post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED),
            (400,),
        ),
        Shape("two equal `Content-Length`", post(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc"), (400,)),
        Shape(
            "two different `Content-Length`",
            post(b"Content-Length: 3\r\nContent-Length: 90\r\n", b"abc" + SMUGGLED),
            (400,),
        ),
        Shape("`Content-Length: 3, 3`", post(b"Content-Length: 3, 3\r\n", b"abc"), (400,)),
        Shape("`Content-Length: +3`", post(b"Content-Length: +3\r\n", b"abc"), (400,)),
        Shape("`Content-Length: -3`", post(b"Content-Length: -3\r\n", b"abc"), (400,)),
        Shape("`Content-Length: 0x3`", post(b"Content-Length: 0x3\r\n", b"abc"), (400,)),
        Shape("`Content-Length: 1 2`", post(b"Content-Length: 1 2\r\n", b"abc"), (400,)),
        Shape("`Content-Length` without a value", post(b"Content-Length:\r\n", b"abc"), (400,)),
        Shape("`Content-Length` of 30 digits", post(b"Content-Length: " + b"9" * 30 + b"\r\n", b"abc"), (400,)),
        Shape(
            "`Content_Length` beside no length",
            get(headers=HOST + b"Content_Length: 5\r\n"),
            (200,),
            True,
            "a name like any other",
        ),
        Shape("`Transfer-Encoding: xchunked`", post(b"Transfer-Encoding: xchunked\r\n", CHUNKS), (501,)),
        Shape("`Transfer-Encoding: identity`", post(b"Transfer-Encoding: identity\r\n", CHUNKS), (501,)),
        Shape(
            "`Transfer-Encoding: chunked, identity`", post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS), (400,)
        ),
        Shape(
            "`Transfer-Encoding: gzip, chunked`",
            post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
            (501,),
            note=OURS,
        ),
        Shape("`Transfer-Encoding: , chunked`", post(b"Transfer-Encoding: , chunked\r\n", CHUNKS), (501,), note=OURS),
        Shape(
            "`Transfer-Encoding: chunked, chunked`", post(b"Transfer-Encoding: chunked, chunked\r\n", CHUNKS), (400,)
        ),
        Shape('`Transfer-Encoding: "chunked"`', post(b'Transfer-Encoding: "chunked"\r\n', CHUNKS), (501,)),
        Shape(
            "`Transfer-Encoding` twice, `chunked` last",
            post(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
            (501,),
            note=OURS,
        ),
        Shape(
            "`Transfer-Encoding` twice, `chunked` first",
            post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", CHUNKS),
            (400,),
        ),
        Shape(
            "`tRANSFER-eNCODING: CHUNKED`",
            post(b"tRANSFER-eNCODING: CHUNKED\r\n", CHUNKS),
            (415,),
            True,
            "as it should be; three bytes are no picture",
        ),
        Shape(
            "`Transfer-Encoding:` folded before `chunked`", post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS), (400,)
        ),
        Shape("`Transfer-Encoding` with a vertical tab", post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS), (400,)),
        Shape("`Transfer-Encoding : chunked`", post(b"Transfer-Encoding : chunked\r\n", CHUNKS), (400,)),
        Shape(
            "`Transfer-Encoding` in HTTP/1.0",
            b"POST /images HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS + SMUGGLED,
            (400,),
            note=OURS,
        ),
        Shape(
            "`GET` with a body that is a request",
            get(headers=HOST + b"Content-Length: %d\r\n" % len(SMUGGLED)) + SMUGGLED,
            (200,),
            note="the body is dropped",
        ),
        Shape("a chunk size with letters", chunked(b"xyz\r\nabc\r\n0\r\n\r\n"), (400,)),
        Shape("a negative chunk size", chunked(b"-3\r\nabc\r\n0\r\n\r\n"), (400,)),
        Shape("a chunk size `0x3`", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), (400,)),
        Shape("a chunk size with a space", chunked(b"3 \r\nabc\r\n0\r\n\r\n"), (400,)),
        Shape("a chunk size past 64 bits", chunked(b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n"), (400,)),
        Shape("a chunk longer than its size", chunked(b"3\r\nabcdef\r\n0\r\n\r\n"), (400,)),
        Shape("a chunk that ends in LF", chunked(b"3\nabc\n0\n\n"), (400,)),
        Shape("a chunk with extensions", chunked(b'3;a=b;c="d"\r\nabc\r\n0\r\n\r\n'), (415,), True, "ignored"),
        Shape("a chunk extension with a line end", chunked(b'3;a="b\nc"\r\nabc\r\n0\r\n\r\n'), (400,)),
        Shape(
            "a chunk extension of 1 MB", chunked(b"3;" + b"x" * 1_000_000 + b"\r\nabc\r\n0\r\n\r\n"), (400,), note=OURS
        ),
        Shape(
            "a chunk size behind 1 MB of zeros", chunked(b"0" * 1_000_000 + b"3\r\nabc\r\n0\r\n\r\n"), (400,), note=OURS
        ),
        Shape("1,000 chunks of one byte", chunked(b"1\r\na\r\n" * 1_000 + b"0\r\n\r\n"), (415,), True),
        Shape(
            "trailers",
            chunked(b"3\r\nabc\r\n0\r\nPrefer: wait=20\r\nX-Request-ID: mine\r\n\r\n"),
            (415,),
            True,
            "dropped; uvicorn takes them for headers",
        ),
        Shape("a trailer that frames", chunked(b"3\r\nabc\r\n0\r\nContent-Length: 90\r\n\r\n") + SMUGGLED, (400,)),
        Shape(
            "1 MB of trailers", chunked(b"3\r\nabc\r\n0\r\n" + b"X: 123456\r\n" * 100_000 + b"\r\n"), (400,), note=OURS
        ),
        Shape(
            "one trailer of 1 MB", chunked(b"3\r\nabc\r\n0\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n"), (400,), note=OURS
        ),
    ],
)

HEADS = Theme(
    "Headers",
    [
        Shape("no `Host`", get(headers=b""), (400,), note=OURS),
        Shape("two `Host`", get(headers=HOST + b"Host: other\r\n"), (400,), note=OURS),
        Shape("`Host: a b`", get(headers=b"Host: a b\r\n"), (400,), note=OURS),
        Shape("`Host: user@door`", get(headers=b"Host: user@door\r\n"), (400,), note=OURS),
        Shape("`Host: door/images`", get(headers=b"Host: door/images\r\n"), (400,), note=OURS),
        Shape("`Host: [::1]:8000`", get(headers=b"Host: [::1]:8000\r\n"), (200,), True),
        Shape("`Host: door` and a space", get(headers=b"Host: door \r\n"), (200,), True, "RFC 9110, section 5.5"),
        Shape("an empty `Host`", get(headers=b"Host:\r\n"), (200,), True),
        Shape("NUL in a value", get(headers=HOST + b"X: a\0b\r\n"), (400,)),
        Shape("NUL in a name", get(headers=HOST + b"X\0: a\r\n"), (400,)),
        Shape("another control character in a value", get(headers=HOST + b"X: a\x01b\r\n"), (400,)),
        Shape(
            "invalid UTF-8 in a value",
            get(headers=HOST + b"X-Request-ID: \xff\xfe\xc3\r\nPrefer: \xff\r\n"),
            (200,),
            True,
            "ignored",
        ),
        Shape("a name beyond ASCII", get(headers=HOST + b"X\xe9: a\r\n"), (400,)),
        Shape("a bare CR", get(headers=HOST + b"X: a\rY: b\r\n"), (400,)),
        Shape("a bare LF", get(headers=HOST + b"X: a\nY: b\r\n"), (400,)),
        Shape("bare LFs throughout", b"GET /healthz HTTP/1.1\nHost: door\n\n", (400,)),
        Shape("a folded value", get(headers=HOST + b"X: a\r\n b\r\n"), (400,)),
        Shape("a space before the first header", get(headers=b" X: a\r\n" + HOST), (400,)),
        Shape("a space before the colon", get(headers=HOST + b"X : a\r\n"), (400,)),
        Shape("no colon", get(headers=HOST + b"nonsense\r\n"), (400,)),
        Shape("no name", get(headers=HOST + b": a\r\n"), (400,)),
        Shape("99 headers more", get(headers=HOST + b"X: a\r\n" * 99), (200,), True),
        Shape("100 headers more", get(headers=HOST + b"X: a\r\n" * 100), (431,), note=OURS),
        Shape("100,000 headers", get(headers=HOST + b"X: a\r\n" * 100_000), (431,), note=OURS),
        Shape("a header of 30 kB", get(headers=HOST + b"X: " + b"x" * 30_000 + b"\r\n"), (200,), True),
        Shape("a header of 40 kB", get(headers=HOST + b"X: " + b"x" * 40_000 + b"\r\n"), (431,), note=OURS),
        Shape("a header of 1 MB", get(headers=HOST + b"X: " + b"x" * 1_000_000 + b"\r\n"), (431,), note=OURS),
        Shape("a header's name of 1 MB", get(headers=HOST + b"x" * 1_000_000 + b": a\r\n"), (431,), note=OURS),
        Shape("`Expect: 100-continue` without a body", get(headers=HOST + b"Expect: 100-continue\r\n"), (200,), True),
        Shape("`Expect: 200-ok`", get(headers=HOST + b"Expect: 200-ok\r\n"), (200,), True, "ignored"),
        Shape(
            "`Connection: close`, and a request after it",
            get(headers=HOST + b"Connection: close\r\n") + SMUGGLED,
            (200,),
        ),
        Shape("`Connection: close, keep-alive`", get(headers=HOST + b"Connection: close, keep-alive\r\n"), (200,)),
    ],
)

REQUEST_LINES = Theme(
    "Request lines",
    [
        Shape("HTTP/0.9", b"GET /healthz\r\n\r\n", (505,), note=OURS),
        Shape("HTTP/1.0", b"GET /healthz HTTP/1.0\r\n\r\n", (200,)),
        Shape(
            "HTTP/1.0 with `Connection: keep-alive`", b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", (200,)
        ),
        Shape("HTTP/1.2", b"GET /healthz HTTP/1.2\r\n" + HOST + b"\r\n", (400,)),
        Shape("HTTP/2.0 in HTTP/1.1's clothes", b"GET /healthz HTTP/2.0\r\n" + HOST + b"\r\n", (505,), note=OURS),
        Shape("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
        Shape("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", (400,)),
        Shape("`http/1.1`", b"GET /healthz http/1.1\r\n" + HOST + b"\r\n", (400,)),
        Shape("a tab for a space", b"GET\t/healthz HTTP/1.1\r\n" + HOST + b"\r\n", (400,)),
        Shape("a space after the version", b"GET /healthz HTTP/1.1 \r\n" + HOST + b"\r\n", (400,)),
        Shape("an empty line first", b"\r\n" + get(), (200,), True, "RFC 9112, section 2.2"),
        Shape("40 kB of empty lines", b"\r\n" * 20_000, (431,), note=OURS),
        Shape("`get`", get(method=b"get"), (400,)),
        Shape("a method of 1 MB", get(method=b"G" * 1_000_000), (400,)),
        Shape("an unknown method", get(method=b"BREW"), (400,)),
        Shape("`TRACE`", get(method=b"TRACE"), (405,), True),
        Shape("`CONNECT door:443`", get(b"door:443", method=b"CONNECT"), (400,)),
        Shape("`CONNECT /images`", get(b"/images", method=b"CONNECT") + SMUGGLED, (405,)),
        Shape("`PROPFIND`, as WebDAV has it", get(method=b"PROPFIND"), (405,), True),
        Shape("`OPTIONS *`", get(b"*", method=b"OPTIONS"), (404,), True),
        Shape(
            "an address with its scheme and host",
            get(b"http://other.example/healthz"),
            (200,),
            True,
            "RFC 9112, section 3.2.2; the host is ignored",
        ),
        Shape("an address without a path", get(b"http://other.example"), (400,)),
        Shape("a fragment", get(b"/healthz#here"), (400,), note=OURS),
        Shape("a space in the path", get(b"/health z"), (400,)),
        Shape("NUL in the path", get(b"/healthz\0"), (400,)),
        Shape("a bare CR in the path", get(b"/healthz\r"), (400,)),
        Shape("a byte beyond ASCII in the path", get(b"/healthz\xff"), (400,)),
        Shape("`%00` in the path", get(b"/healthz%00"), (404,), True),
        Shape("`%0d%0a` in the path", get(b"/images/%0d%0aX-Injected:%20yes"), (404,), True, "not reflected"),
        Shape("`%0d%0a` in the query", get(b"/images?after=%0d%0aX-Injected:%20yes"), (400,), True, "not reflected"),
        Shape("invalid UTF-8 in the path", get(b"/images/%ff%fe%c3"), (404,), True),
        Shape("invalid UTF-8 in the query", get(b"/images?status=%ff%fe%c3"), (400,), True),
        Shape("raw bytes in the query", get(b"/images?status=\xff"), (400,)),
        Shape("`%68ealthz`, another spelling", get(b"/%68ealthz"), (404,), True),
        Shape("`//healthz`", get(b"//healthz"), (404,), True),
        Shape("`/images/../healthz`", get(b"/images/../healthz"), (404,), True),
        Shape("`/images/..%2f..%2fetc%2fpasswd`", get(b"/images/..%2f..%2fetc%2fpasswd"), (404,), True),
        Shape("an address of 8,000 bytes", get(b"/healthz?" + b"x" * 7_991), (200,), True),
        Shape("an address of 10 kB", get(b"/healthz?" + b"x" * 10_000), (414,), note=OURS),
        Shape("an address of 1 MB", get(b"/" + b"x" * 1_000_000), (414,), note=OURS),
    ],
)

SEQUENCES = Theme(
    "One request after another",
    [
        Shape("three requests at once", get() * 3, (200, 200, 200), True, "answered in their order"),
        Shape(
            "a request, then nonsense", get() + b"nonsense\r\n\r\n", (200, 400), note="the good one is answered first"
        ),
        Shape(
            "a request, then one with an ambiguous length",
            get() + post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            (200, 400),
        ),
        Shape("1,000 requests at once", get() * 1_000, (*[200] * 17, 400), note="16 may wait behind one"),
        Shape(
            "`Upgrade: h2c`",
            get(
                headers=HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
            ),
            (200,),
            note="not upgraded",
        ),
        Shape(
            "`Upgrade: websocket`",
            get(headers=HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            (200,),
            note="not upgraded",
        ),
        Shape(
            "`Upgrade`, and a request after it",
            get(headers=HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + SMUGGLED,
            (200,),
        ),
        Shape(
            "`Upgrade`, with a body that is a request",
            post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n" % len(SMUGGLED), SMUGGLED),
            (415,),
            note="not upgraded; uvicorn loses the body, or answers it",
        ),
        Shape(
            "`Upgrade`, with a chunked body",
            post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
            (415,),
            note="not upgraded; uvicorn loses the body, or answers it",
        ),
        Shape(
            "`Upgrade`, with a body, and a request after it",
            post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n", b"abc" + SMUGGLED),
            (415,),
        ),
        Shape(
            "`Upgrade`, with a body of two lengths",
            post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
            (400,),
        ),
        Shape(
            "`Upgrade` that `Connection` does not name",
            get(headers=HOST + b"Upgrade: h2c\r\n"),
            (200,),
            True,
            "ignored",
        ),
    ],
)

FORMS = Theme(
    "Forms",
    [
        Shape(
            "a form without a boundary",
            post(b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\n", b"abc"),
            (400,),
        ),
        Shape("a boundary of 71 characters", form(b"--" + b"e" * 71 + b"--\r\n", b"e" * 71), (400,)),
        Shape("a boundary beyond ASCII", form(b"--\xe9--\r\n", b"\xe9"), (400,), True),
        Shape("a form that is another boundary's", form(part(b'name="a"; filename="b"'), b"other"), (400,), True),
        Shape("a form that never ends", form(part(b'name="a"; filename="b"')), (400,), True),
        Shape("10,000 parts", form(part(b'name="a"') * 10_000 + b"--edge--\r\n"), (400,)),
        Shape(
            "two files",
            form(part(b'name="a"; filename="b"', b"\xff\xd8\xff\xe0 enough to be a JPEG") * 2 + b"--edge--\r\n"),
            (400,),
            True,
        ),
        Shape(
            "a part's headers of 1 MB",
            form(part(b'name="a"; filename="b"', more=b"X: " + b"x" * 1_000_000 + b"\r\n") + b"--edge--\r\n"),
            (400,),
        ),
        Shape(
            "100,000 headers in a part",
            form(part(b'name="a"; filename="b"', more=b"X: a\r\n" * 100_000) + b"--edge--\r\n"),
            (400,),
        ),
        Shape(
            "a form in a form",
            form(
                part(
                    b'name="a"; filename="b"',
                    part(b'name="c"; filename="d"').replace(b"edge", b"inner"),
                    b"Content-Type: multipart/mixed; boundary=inner\r\n",
                )
                + b"--edge--\r\n"
            ),
            (415,),
            True,
            "the inner one is content like any other",
        ),
        Shape(
            '`filename="../../etc/passwd"`',
            form(part(b'name="a"; filename="../../etc/passwd"') + b"--edge--\r\n"),
            (415,),
            True,
            "nobody reads it",
        ),
        Shape(
            "NUL in a filename",
            form(part(b'name="a"; filename="a\0.png"') + b"--edge--\r\n"),
            (415,),
            True,
            "nobody reads it",
        ),
        Shape(
            "CRLF in a filename",
            form(part(b'name="a"; filename="a\r\nX: b"') + b"--edge--\r\n"),
            (415,),
            True,
            "nobody reads it",
        ),
        Shape(
            "invalid UTF-8 in a filename",
            form(part(b'name="a"; filename="\xff\xfe"') + b"--edge--\r\n"),
            (415,),
            True,
            "nobody reads it",
        ),
        Shape(
            "`filename*` in a charset that there is not",
            form(part(b"name=\"a\"; filename*=nonsense''a") + b"--edge--\r\n"),
            (400,),
            True,
        ),
        Shape("a part without a disposition", form(b"--edge\r\n\r\nabc\r\n--edge--\r\n"), (400,), True),
    ],
)

THEMES = [FRAMING, HEADS, REQUEST_LINES, SEQUENCES, FORMS]


def answers_in(received: bytes) -> Iterator[Response]:
    """Yield the answers that a connection has brought, to its last byte."""
    stream = _Stream(received)
    while stream.tell() < len(received):
        answer = http.client.HTTPResponse(stream)  # type: ignore[arg-type] # all that it asks of a socket is its file
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        yield Response(answer.status, headers, answer.read())


class _Stream(io.BytesIO):
    """A socket that has brought all it will."""

    def makefile(self, mode: str) -> _Stream:
        return self

    def close(self) -> None:
        """Stay: the next answer follows."""


def table() -> str:
    """Return the tables of all themes, in Markdown."""
    lines: list[str] = []
    for theme in THEMES:
        lines += [f"### {theme.title}", "", "| sent | answers | connection | |", "|---|---|---|---|"]
        lines += [shape.row for shape in theme.shapes]
        lines.append("")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    print(table())
