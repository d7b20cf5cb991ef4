"""JSON lines on stdout, each with the request and the image it is about."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

#: The request that is being answered, or that uploaded the image at hand.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
#: The image at hand.
image_id: ContextVar[str | None] = ContextVar("image_id", default=None)

#: What every LogRecord has; anything beyond was given by the caller as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


#: Made once: `json.dumps` makes another for each line.
_encode = json.JSONEncoder(default=str).encode
#: A text as JSON has it.
quoted = json.encoder.encode_basestring_ascii


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request, image, then what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        line = _begun(record.created, int(record.msecs), record.levelname, record.name, record.getMessage())
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class JsonHandler(logging.StreamHandler[Any]):
    """Writes JSON lines to a stream, some of them without a record."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())

    def write(self, logger: str, message: str, fields: str) -> None:
        """Write a line at INFO; `fields` is the JSON of what `extra` would give, without its braces."""
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


def direct_handler(logger: logging.Logger) -> JsonHandler | None:
    """Return the handler of `configure`, unless somebody else listens to this logger, or filters what is said.

    What every request says must not cost more than its answer: written straight to the handler, a line needs no search
    of the stack for who said it, and no record.
    """
    each = logger
    while each.parent is not None:
        if each.handlers or each.filters or not each.propagate:
            return None
        each = each.parent
    handlers = each.handlers
    if len(handlers) == 1 and isinstance(handlers[0], JsonHandler) and not handlers[0].filters:
        return handlers[0]
    return None


def configure(level: str) -> None:
    """Send every logger's lines to stdout as JSON. Libraries speak from WARNING on."""
    root = logging.getLogger()
    root.handlers[:] = [JsonHandler(sys.stdout)]
    root.setLevel(logging.WARNING)
    for ours in ("api", "worker", "shared"):
        logging.getLogger(ours).setLevel(level)
