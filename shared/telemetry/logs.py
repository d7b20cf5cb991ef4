"""Logs: JSON lines on stdout, each with the ids of its request and its image."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

#: The id of the current request, or of the request that uploaded the current image.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
#: The id of the current image.
image_id: ContextVar[str | None] = ContextVar("image_id", default=None)

#: The attributes that every LogRecord has. Any other attribute comes from `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


#: One encoder for all lines: `json.dumps` would make one for each line.
_encode = json.JSONEncoder(default=str).encode
#: Returns a text as a JSON string.
quoted = json.encoder.encode_basestring_ascii


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON: time, level, logger, message, request, image, then the fields of `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = _begun(record.created, int(record.msecs), record.levelname, record.name, record.getMessage())
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class JsonHandler(logging.StreamHandler[Any]):
    """Writes JSON lines to a stream."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())

    def write(self, logger: str, message: str, fields: str) -> None:
        """Write a line at INFO without a LogRecord. `fields` is the JSON of its `extra`, without the braces."""
        now = time.time()
        request, image = request_id.get(), image_id.get()
        about = "" if request is None else f'"request": {quoted(request)}, '
        if image is not None:
            about += f'"image": {quoted(image)}, '
        moment = f"{_second(int(now))}.{int(now % 1 * 1000):03d}Z"
        line = (
            f'{{"time": "{moment}", "level": "INFO", "logger": "{logger}", "message": "{message}", {about}{fields}}}\n'
        )
        self.acquire()
        try:
            self.stream.write(line)
            self.stream.flush()
        except Exception:
            self.handleError(logging.makeLogRecord({"name": logger, "msg": message}))
        finally:
            self.release()


def _begun(created: float, milliseconds: int, level: str, logger: str, message: str) -> dict[str, Any]:
    line: dict[str, Any] = {
        "time": f"{_second(int(created))}.{milliseconds:03d}Z",
        "level": level,
        "logger": logger,
        "message": message,
    }
    if (request := request_id.get()) is not None:
        line["request"] = request
    if (image := image_id.get()) is not None:
        line["image"] = image
    return line


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def write(logger: logging.Logger, message: str, fields: str) -> None:
    """Write a line by `JsonHandler.write`. Other handlers and the filters of loggers are skipped."""
    for handler in logging.root.handlers:
        if isinstance(handler, JsonHandler):
            handler.write(logger.name, message, fields)


def configure(level: str) -> None:
    """Send the lines of every logger to stdout as JSON. Libraries log from WARNING on."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler(sys.stdout)]
    root.setLevel(logging.WARNING)
    for ours in ("api", "worker", "shared"):
        logging.getLogger(ours).setLevel(level)
