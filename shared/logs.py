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


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request, image, then what `extra` gave."""

    def format(self, record: logging.LogRecord) -> str:
        line = _begun(record.created, int(record.msecs), record.levelname, record.name, record.getMessage())
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class JsonHandler(logging.StreamHandler[Any]):
    """Writes JSON lines to a stream, those of `say` without a record."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())

    def write(self, logger: str, message: str, extra: dict[str, Any]) -> None:
        now = time.time()
        line = _begun(now, int(now % 1 * 1000), "INFO", logger, message)
        line |= extra
        with self.lock:  # type: ignore[union-attr] # there is one
            try:
                self.stream.write(_encode(line) + self.terminator)
                self.flush()
            except Exception:
                self.handleError(logging.makeLogRecord({"name": logger, "msg": message, **extra}))


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


def say(logger: logging.Logger, message: str, extra: dict[str, Any]) -> None:
    """Log at INFO, as `logger.info` does: what every request says must not cost more than its answer.

    Nothing is asked but whether somebody else listens: no stack is searched for who said it, no record made.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    handler = _only_handler_of(logger)
    if handler is None:
        logger.info(message, extra=extra)
    else:
        handler.write(logger.name, message, extra)


def _only_handler_of(logger: logging.Logger) -> JsonHandler | None:
    """Return the handler of `configure`, unless somebody else listens, or filters what is said."""
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
