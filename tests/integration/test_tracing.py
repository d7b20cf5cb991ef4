"""One trace from an upload's POST to its publication by a worker, as a receiver of OTLP gets it from real processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from launch.processes import free_port
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services, ended

WHY = "the extra `otel` (opentelemetry-sdk, opentelemetry-exporter-otlp-proto-http) is not installed"
trace_service_pb2 = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason=WHY)

pytestmark = pytest.mark.processes

BAD_FILE = b"\xff\xd8\xff\xe0 and nothing else"


@dataclass(frozen=True)
class Span:
    """A span as it was received; ids in hex."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    events: int


class Receiver:
    """A server that speaks OTLP over HTTP."""

    def __init__(self) -> None:
        spans: list[Span] = []
        self.spans = spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                spans.extend(spans_in(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def of(self, trace: str, name: str = "") -> list[Span]:
        """Return the spans of a trace, or those of this name in it."""
        return [span for span in list(self.spans) if span.trace == trace and name in ("", span.name)]


def spans_in(message: bytes) -> list[Span]:
    request = trace_service_pb2.ExportTraceServiceRequest()
    request.ParseFromString(message)
    return [
        Span(
            attributes_of(resource.resource)["service.name"],
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            span.start_time_unix_nano,
            span.end_time_unix_nano,
            attributes_of(span),
            len(span.events),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(message: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in message.attributes}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    serving = threading.Thread(target=receiver.server.serve_forever)
    serving.start()
    yield receiver
    receiver.server.shutdown()
    serving.join()
    receiver.server.server_close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Deployed]:
    with ended(tmp_path_factory.mktemp("tracing")) as services:
        yield services.deploy(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.address, OTEL_BSP_SCHEDULE_DELAY="50")


@dataclass(frozen=True)
class Client:
    """A client that traces: the ids of its trace and of its span, in hex."""

    trace: str
    span: str

    @classmethod
    def new(cls) -> Client:
        return cls(os.urandom(16).hex(), os.urandom(8).hex())

    @property
    def headers(self) -> dict[str, str]:
        return {"traceparent": f"00-{self.trace}-{self.span}-01"}


def upload(service: Deployed, client: Client, content: bytes) -> str:
    """Return the id of an image that was uploaded."""
    return str(service.request("POST", "/images", content, client.headers).json["id"])


def ended_attempt(service: Deployed, receiver: Receiver, trace: str) -> Span:
    """Return the one attempt of a trace, once it was received."""
    service.until(lambda: receiver.of(trace, "attempt"), what="an attempt in the trace")
    (attempt,) = receiver.of(trace, "attempt")
    return attempt


def test_an_upload_and_its_publication_are_one_trace(service: Deployed, receiver: Receiver) -> None:
    client = Client.new()

    answer = service.request("POST", "/images", small_picture(), client.headers | {"X-Request-ID": "from-a-router"})
    attempt = ended_attempt(service, receiver, client.trace)
    service.until(lambda: receiver.of(client.trace, "POST /images"), what="the POST in the trace")

    (post,) = receiver.of(client.trace, "POST /images")
    assert (post.service, post.parent) == ("asgilook-web", client.span)
    assert (attempt.service, attempt.parent) == ("asgilook-worker", post.id)
    about = {"asgilook.image": answer.json["id"], "asgilook.request": "from-a-router"}
    assert post.attributes == about | {
        "http.request.method": "POST",
        "http.route": "/images",
        "http.response.status_code": 202,
    }
    assert attempt.attributes == about | {
        "asgilook.attempt": 1,
        "asgilook.outcome": "published",
        "asgilook.why": "",
    }
    parts = {span.name: span for span in receiver.of(client.trace) if span.parent == attempt.id}
    assert {"claim", "storage.open_local", "render", "storage.keep", "ledger.publish", "settle"} <= parts.keys()
    assert parts["render"].attributes["asgilook.format"] == "PNG"
    assert 0 < parts["render"].attributes["asgilook.decode_seconds"] < 60
    assert {"receive", "storage.keep", "ledger.add", "queue.try_enqueue"} <= {
        span.name for span in receiver.of(client.trace) if span.parent == post.id
    }
    known = {client.span, *(span.id for span in receiver.of(client.trace))}
    assert {span.parent for span in receiver.of(client.trace)} <= known
    assert all(attempt.began <= span.began <= span.ended <= attempt.ended for span in parts.values())


def test_who_uploads_without_a_trace_begins_one(service: Deployed, receiver: Receiver) -> None:
    image_id = service.upload(small_picture()).json["id"]

    def of_image() -> list[Span]:
        return [span for span in list(receiver.spans) if span.attributes.get("asgilook.image") == image_id]

    service.until(lambda: {span.name for span in of_image()} == {"POST /images", "attempt"}, what="both spans")

    post, attempt = sorted(of_image(), key=lambda span: span.began)
    assert (attempt.trace, attempt.parent, post.parent) == (post.trace, post.id, "")


def test_work_that_is_taken_without_redis_belongs_to_the_same_trace(service: Deployed, receiver: Receiver) -> None:
    client = Client.new()

    service.valkey.kill()
    service.valkey.wait()
    upload(service, client, small_picture())

    attempt = ended_attempt(service, receiver, client.trace)
    service.start_valkey()
    service.until(lambda: receiver.of(client.trace, "POST /images"), what="the POST in the trace")
    (post,) = receiver.of(client.trace, "POST /images")
    assert attempt.parent == post.id


def test_of_an_error_only_its_kind_is_told(service: Deployed, receiver: Receiver) -> None:
    client = Client.new()

    assert service.request("POST", "/images", b"<html>", client.headers).status == 415
    service.until(lambda: receiver.of(client.trace, "POST /images"), what="the POST in the trace")

    (receive,) = receiver.of(client.trace, "receive")
    assert receive.attributes == {"error.type": "UnknownFormat"}
    assert receive.events == 0


def test_a_retry_is_a_trace_of_its_own(service: Deployed, receiver: Receiver) -> None:
    first, second = Client.new(), Client.new()
    image_id = upload(service, first, BAD_FILE)
    failed = ended_attempt(service, receiver, first.trace)
    service.until(lambda: service.get(f"/images/{image_id}").json["status"] == "failed", what="the failure")

    assert service.request("POST", f"/images/{image_id}/retry", headers=second.headers).status == 202

    again = ended_attempt(service, receiver, second.trace)
    assert failed.attributes["asgilook.outcome"] == again.attributes["asgilook.outcome"] == "failed"
    assert failed.attributes["asgilook.why"] == "unreadable-image"
    assert (failed.attributes["asgilook.attempt"], again.attributes["asgilook.attempt"]) == (1, 2)


def test_what_only_reads_is_traced_where_its_client_does(service: Deployed, receiver: Receiver) -> None:
    client = Client.new()

    assert service.get("/images", headers=client.headers).status == 200
    assert service.get("/readyz").status == 200
    assert service.get("/images", headers=client.headers).status == 200
    service.until(lambda: len(receiver.of(client.trace, "GET /images")) == 2, what="the GET in the trace")

    assert [span for span in receiver.spans if "readyz" in span.name] == []


@contextmanager
def mute() -> Iterator[str]:
    """Yield the address of a receiver that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dead() -> Iterator[str]:
    """Yield the address of a receiver that is not there."""
    yield f"http://127.0.0.1:{free_port()}"


@pytest.mark.parametrize("receiver_at", [mute, dead])
def test_nobody_waits_for_a_receiver(services: Services, receiver_at: Any) -> None:
    """Its patience is far longer than the test's: whoever waited for it would be noticed."""
    with receiver_at() as address:
        service = services.deploy(
            OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_BSP_SCHEDULE_DELAY="50", OTEL_EXPORTER_OTLP_TIMEOUT="300"
        )
        statuses = [service.upload(small_picture(), wait=20).status for _ in range(3)]
        for process in (*service.workers, *service.webs):
            process.terminate()
        codes = [process.wait(30) for process in service.workers]

    assert statuses == [201, 201, 201]
    assert codes == [0]
    assert [process.wait(30) for process in service.webs] in ([0], [-15])
