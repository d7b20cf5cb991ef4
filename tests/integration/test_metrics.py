"""/metrics of two web processes behind one port, and of a worker; dashboard and alerts ask for what is there."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from launch.processes import HERE, free_port
from tests.integration.evidence import rows_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, children_of, ended, host_of

pytestmark = pytest.mark.processes

TOKEN = "scrape-me"
PICTURES, BAD_FILE = 3, b"\xff\xd8\xff\xe0 and nothing else"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Three pictures and a bad file, each picture read twice and one deleted; not a request more is made by tests."""
    with ended(tmp_path_factory.mktemp("metrics")) as services:
        service = services.deploy(
            WEB_CONCURRENCY="2",
            ASGI_LOOK_METRICS_TOKEN=TOKEN,
            ASGI_LOOK_METRICS_PORT=str(free_port()),
            # What a process has in its own memory is no look into the response cache.
            ASGI_LOOK_MEMORY_CACHE_BYTES="0",
        )
        records = [service.upload(small_picture(), wait=20).json for _ in range(PICTURES)]
        assert service.upload(BAD_FILE, wait=20).status == 422
        for record in records:
            assert [service.get(record["image"]).status for _ in range(2)] == [200, 200]
        assert service.request("DELETE", f"/images/{records[0]['id']}").status == 204
        assert service.get("/nowhere").status == 404
        service.until(lambda: all("tokens" not in row["debts"] for row in rows_of(service).values()), what="settling")
        yield service


def scrape(port: int | str, token: str | None = TOKEN) -> tuple[int, str]:
    with closing(http.client.HTTPConnection(host_of(int(port)), int(port), timeout=30)) as connection:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def families(port: int | str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(scrape(port)[1])}


def samples(port: int | str) -> dict[tuple[str, ...], float]:
    """Return the values by their names and the values of their labels, those in order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families(port).values()
        for sample in family.samples
    }


def web_of(service: Deployed) -> int:
    return service.ports[0]


def worker_of(service: Deployed) -> str:
    return service.env["ASGI_LOOK_METRICS_PORT"]


def test_whichever_web_process_is_asked_tells_for_both(service: Deployed) -> None:
    for _ in range(10):  # connections of their own: the kernel gives them to either
        counted = samples(web_of(service))

        assert counted["asgilook_requests_total", "POST", "/images", "201"] == PICTURES
        assert counted["asgilook_requests_total", "POST", "/images", "422"] == 1
        jpeg = "/images/{image_id}.jpeg"
        assert counted["asgilook_requests_total", "GET", jpeg, "200"] == 2 * PICTURES
        assert counted["asgilook_request_seconds_count", "GET", jpeg, "no"] == 2 * PICTURES
        assert counted["asgilook_request_seconds_count", "POST", "/images", "yes"] == PICTURES + 1
        assert counted["asgilook_requests_total", "DELETE", "/images/{image_id}", "204"] == 1
        assert counted["asgilook_requests_total", "GET", "none", "404"] == 1
        assert counted["asgilook_upload_bytes_sum",] == PICTURES * len(small_picture()) + len(BAD_FILE)
        assert counted["asgilook_upload_seconds_count",] == PICTURES + 1
        assert counted["asgilook_ledger_seconds_count", "add"] == PICTURES + 1
        assert counted["asgilook_response_cache_total", "hit"] >= 1
        assert counted["asgilook_response_cache_total", "fill"] >= PICTURES


def test_a_worker_tells_how_its_attempts_ended(service: Deployed) -> None:
    counted = samples(worker_of(service))

    assert counted["asgilook_attempts_total", "published", ""] == PICTURES
    assert counted["asgilook_attempts_total", "failed", "unreadable-image"] == 1
    assert counted["asgilook_attempt_seconds_count",] == PICTURES
    for stage in ("decode", "colour", "scale", "encode"):
        assert counted["asgilook_render_seconds_count", "PNG", stage] == PICTURES
    assert counted["asgilook_ledger_seconds_count", "publish"] == PICTURES
    # One more where this worker was the first to offer the storage's marker.
    assert counted["asgilook_storage_seconds_count", "keep"] in (PICTURES, PICTURES + 1)
    # A web process that reads a row first may pay what it owes.
    assert counted["asgilook_settled_total", "leftovers"] >= 1
    assert counted["process_resident_memory_bytes",] > 0


@pytest.mark.parametrize("port_of", [web_of, worker_of])
def test_each_tells_what_waits(service: Deployed, port_of: Any) -> None:
    counted = samples(port_of(service))

    gauges = ["images_waiting", "images_processing", "oldest_waiting_seconds", "workers_alive"]
    assert [counted[f"asgilook_{gauge}",] for gauge in gauges] == [0, 0, 0, 1]


@pytest.mark.parametrize("port_of", [web_of, worker_of])
def test_who_has_not_the_token_is_told_nothing(service: Deployed, port_of: Any) -> None:
    for token in (None, "guessed"):
        status, text = scrape(port_of(service), token)

        assert status == 401
        assert "asgilook_" not in text


@pytest.mark.parametrize("port_of", [web_of, worker_of])
def test_no_label_holds_anything_of_an_image_or_a_client(service: Deployed, port_of: Any) -> None:
    text = scrape(port_of(service))[1]

    for image_id, row in rows_of(service).items():
        assert image_id not in text
        assert row["original_sha256"] not in text


def queries() -> list[tuple[str, str]]:
    """Return the queries of the dashboard's panels and of the alerts, each with its title."""
    panels = json.loads((HERE / "docs" / "grafana.json").read_text())["panels"]
    rules = yaml.safe_load((HERE / "docs" / "alerts.yml").read_text())["groups"][0]["rules"]
    found = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]
    return found + [(rule["alert"], rule["expr"]) for rule in rules]


def test_every_query_asks_for_what_is_exported(service: Deployed) -> None:
    """Its names, the labels by which it sums up, and the values that it selects."""
    labels: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for family in (*families(web_of(service)).values(), *families(worker_of(service)).values()):
        for sample in family.samples:
            labels[sample.name] |= sample.labels.items()

    wrong = [title for title, query in queries() if not asks_for(query.replace("$__rate_interval", "5m"), labels)]

    assert wrong == []


def asks_for(query: str, labels: Mapping[str, set[tuple[str, str]]]) -> bool:
    """Tell whether a query, which must be one, asks for these names and labels only."""
    promql_parser.parse(query)
    names = set(re.findall(r"\b(?:asgilook|process)_\w+", query))
    known = set().union(*(labels[name] for name in names & labels.keys()))
    summed_by = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    selected = set(re.findall(r'[{,](\w+)!?="([^"]*)"', query))
    return bool(names) and names <= labels.keys() and summed_by <= {name for name, _ in known} and selected <= known


@pytest.mark.parametrize(
    "query",
    [
        "up",
        "asgilook_attempts",
        'asgilook_attempts_total{outcome="lots"}',
        'asgilook_attempts_total{result="lost"}',
        "sum by (result) (asgilook_attempts_total)",
    ],
)
def test_a_query_for_what_is_not_exported_would_be_found(query: str) -> None:
    assert not asks_for(query, {"asgilook_attempts_total": {("outcome", "lost"), ("why", "ChildLost")}})


def test_every_alert_says_what_it_means_and_how_urgent_it_is() -> None:
    (group,) = yaml.safe_load((HERE / "docs" / "alerts.yml").read_text())["groups"]

    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    for rule in group["rules"]:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"].endswith((".", "?"))


def test_panels_have_units_and_do_not_overlap() -> None:
    panels = json.loads((HERE / "docs" / "grafana.json").read_text())["panels"]
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert all(panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_what_a_web_process_has_counted_outlives_it(service: Deployed) -> None:
    """The last test of this service: the supervisor starts another process in its place."""
    before = samples(web_of(service))
    supervisor = service.webs[0].pid
    children = [pid for pid in children_of(supervisor) if b"spawn_main" in command(pid)]

    os.kill(children[0], signal.SIGKILL)
    service.until(lambda: children[0] not in children_of(supervisor), what="its end")
    service.until(service.is_ready, what="an answer")

    after = samples(web_of(service))
    key = ("asgilook_requests_total", "POST", "/images", "201")
    assert after[key] == before[key] == PICTURES


def command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
