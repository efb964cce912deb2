"""The log: lines for people or for programs, each with the request or the job that it belongs to.

`about` says what is being done from here on, in this thread or task; whatever is logged meanwhile, by any module, carries it.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_subject: ContextVar[Mapping[str, str]] = ContextVar("strongroom_log_subject")

FORMATS = ("text", "json")


@contextmanager
def about(**what: str) -> Iterator[None]:
    """What is logged inside belongs to this `request` or `job`, beside what it belongs to already."""
    token = _subject.set({**_subject.get({}), **what})
    try:
        yield
    finally:
        _subject.reset(token)


def configure(form: str) -> None:
    """Sends the log of this process to standard error, in one of FORMATS."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class Lines(logging.Formatter):
    """Text: time, level, logger, message, and what it belongs to where the message does not say so itself."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the base's name
        line = super().formatMessage(record)
        return line + "".join(f" {name}={value}" for name, value in _subject.get({}).items() if value not in line)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, `request` and `job` where there is one, and `error`."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_subject.get({}),
        }
        if record.exc_info:
            told["error"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return json.dumps(told, ensure_ascii=False)
