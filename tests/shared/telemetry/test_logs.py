"""JSON lines on stdout: one object a line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.telemetry.logs import JsonFormatter, JsonHandler, image_id, quoted, request_id, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def context() -> Iterator[None]:
    """A request and an image at hand."""
    request, image = request_id.set("request-1"), image_id.set("image-1")
    yield
    request_id.reset(request)
    image_id.reset(image)


def line_of(message: str, *arguments: object, **parts: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "shared.test", "levelname": "INFO", "msg": message, "args": arguments, "created": 0.25, **parts}
    )
    record.msecs = 250
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_line_has_time_level_logger_and_message() -> None:
    assert line_of("took %d of %s", 3, "four") == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "INFO",
        "logger": "shared.test",
        "message": "took 3 of four",
    }


@pytest.mark.usefixtures("context")
def test_a_line_names_the_request_and_the_image_at_hand() -> None:
    line = line_of("published")

    assert (line["request"], line["image"]) == ("request-1", "image-1")


@pytest.mark.usefixtures("context")
def test_what_a_caller_gives_is_on_the_line_and_goes_before_the_context() -> None:
    line = line_of("swept", image="image-2", seconds=0.5)

    assert (line["request"], line["image"], line["seconds"]) == ("request-1", "image-2", 0.5)


def test_anything_can_be_logged() -> None:
    line = line_of("odd", where=Path("/data"), what={1}, text='quote " newline \n é')

    assert (line["where"], line["what"], line["text"]) == ("/data", "{1}", 'quote " newline \n é')


def test_an_exception_is_on_the_same_line() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        line = line_of("failed", exc_info=sys.exc_info())

    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: bad")


@pytest.mark.usefixtures("context")
def test_a_line_that_is_written_without_a_record_is_the_one_that_info_makes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream, logger = io.StringIO(), logging.getLogger("api.test_logs")
    monkeypatch.setattr(logging.getLogger(), "handlers", [JsonHandler(stream)])
    caplog.set_level(logging.INFO, logger.name)

    write(logger, "answered", f'"path": {quoted("/quote and é")}, "status": 200')
    logger.info("answered", extra={"path": "/quote and é", "status": 200})

    said, logged = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(said) == list(logged)
    assert {**said, "time": ""} == {**logged, "time": ""}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])


def test_ours_speak_from_the_level_set_and_libraries_from_warning_on() -> None:
    program = """
import logging
from shared.telemetry import logs
logs.configure("DEBUG")
for name in ("api.uploads", "worker.sweep", "shared.ledger", "arq.worker", "sqlalchemy"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "said")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    said = [(line["logger"], line["level"]) for line in map(json.loads, done.stdout.splitlines())]
    ours = [(name, level) for name in ("api.uploads", "worker.sweep", "shared.ledger") for level in ("DEBUG", "INFO")]
    assert set(said) == {*ours, *((name, "WARNING") for name, _ in said)}
    assert ("arq.worker", "WARNING") in said
    assert ("sqlalchemy", "WARNING") in said
    assert done.stderr == ""
