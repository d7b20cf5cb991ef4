"""A real Prometheus that scrapes a service to measure; Debian's `prometheus` will do."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.service import end, until
from launch.processes import HERE, Part, free_port

#: Seconds between two scrapes: a run takes minutes, so that a usual 15 s would show little of it.
SCRAPE_SECONDS = 2
#: Grafana's value of `$__rate_interval` for that: four scrapes.
RATE_INTERVAL = f"{4 * SCRAPE_SECONDS}s"
#: The alerts' times in docs/alerts.yml are divided by this.
HURRY = 30


@dataclass(frozen=True)
class Series:
    """A line of a panel: values of a query over time, without gaps."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]


class Prometheus:
    """The server's HTTP API."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def is_up(self) -> bool:
        """Return whether it answers."""
        try:
            with urllib.request.urlopen(f"{self._address}/-/ready", timeout=5):  # noqa: S310 - http, our own
                return True
        except OSError:
            return False

    def query_range(self, query: str, began: float, ended: float) -> list[Series]:
        """Return the lines of a panel's query between two times."""
        arguments = {
            "query": query.replace("$__rate_interval", RATE_INTERVAL).replace("$job", ".+"),
            "start": began,
            "end": ended,
            "step": SCRAPE_SECONDS,
        }
        found = []
        for result in self._ask("query_range", arguments)["result"]:
            points = [(at, float(value)) for at, value in result["values"] if value != "NaN"]
            if points:
                times, values = zip(*points, strict=True)
                found.append(Series(result["metric"], list(times), list(values)))
        return found

    def targets_up(self) -> int:
        """Return how many targets were scraped."""
        return len(self._ask("query", {"query": "up == 1"})["result"])

    def _ask(self, what: str, arguments: dict[str, Any]) -> Any:
        address = f"{self._address}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310 - http, our own
                return json.load(answer)["data"]
        except urllib.error.HTTPError as exc:
            raise SystemExit(f"{arguments}: {exc.read()!r}") from exc


@contextmanager
def run_prometheus(folder: Path, targets: Sequence[int]) -> Iterator[Prometheus]:
    """Run a Prometheus for the block that scrapes these ports and has the alerts of docs/alerts.yml, shortened."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise SystemExit("prometheus is not installed (on Debian and Ubuntu: apt install prometheus)")
    (folder / "alerts.yml").write_text(_in_a_hurry((HERE / "docs" / "alerts.yml").read_text()))
    configuration = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": "asgilook", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in targets]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML
    port = free_port()
    options = {
        "config.file": folder / "prometheus.yml",
        "storage.tsdb.path": folder / "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "error",
    }
    part = Part("Prometheus", [binary, *(f"--{name}={value}" for name, value in options.items())], {}).start()
    prometheus = Prometheus(port)
    try:
        until(prometheus.is_up, "Prometheus does not start")
        yield prometheus
    finally:
        end([part])


def _in_a_hurry(rules: str) -> str:
    return re.sub(r"\b(\d+)m\b", lambda minutes: f"{int(minutes[1]) * 60 // HURRY}s", rules)
