"""Logging: lines for people on a terminal, JSON lines elsewhere; one event never looks like two."""

import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final, TextIO

FILE_NAME: Final = "dane-server.log"

#: What every record has; anything else was given as `extra`, and is data.
_USUAL: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
#: Whatever ends a line or steers a terminal, written out.
_ESCAPES: Final = {
    code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)
}
#: Chatty at INFO, about nothing an operator asked for.
_QUIET: Final = ("aio_pika", "aiormq", "httpx", "httpcore", "alembic.runtime", "uvicorn")

#: What asyncio says where no file descriptor is left for a connection, 2,000 times a second.
_NO_FILES: Final = "socket.accept() out of system resource"
#: Once in so many seconds is enough.
_ENOUGH: Final = 10.0


class _Seldom(logging.Filter):
    """Lets what would fill the disk, said so often, through once in a while."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(_NO_FILES):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _ENOUGH
        return True


class JsonLines(logging.Formatter):
    """One JSON object per event: time, level, logger, message, extra fields, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace := _trace(record):
            event["traceback"] = trace
        event = {**event, **_extra(record), **event}  # nothing given as extra hides these
        # ASCII only: no terminal or log shipper finds a line end in it, of whatever alphabet.
        return json.dumps(event, default=str)


class PlainLines(logging.Formatter):
    """A line per event for people; the lines of a traceback stand behind a bar."""

    def format(self, record: logging.LogRecord) -> str:
        clock = _time(record).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname:<7} {record.name}: {record.getMessage()}"
        pairs = "".join(f" {name}={value}" for name, value in _extra(record).items())
        trace = _trace(record).splitlines()
        return "\n".join([printable(line + pairs), *(f"    | {printable(step)}" for step in trace)])


def set_up_logging(
    *, level: str | int = "INFO", folder: Path | None = None, stream: TextIO | None = None
) -> None:
    """Send what is logged to `stream` (standard error), and to a file in `folder` if one is given.

    A terminal gets lines for people, unless a folder was asked for; anything else gets JSON
    lines. The file may be rotated from outside (logrotate); it is opened anew when it has moved.
    """
    stream = stream or sys.stderr
    for_people = stream.isatty() and folder is None
    handlers: list[logging.Handler] = [logging.StreamHandler(stream)]
    handlers[0].setFormatter(PlainLines() if for_people else JsonLines())
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(WatchedFileHandler(folder / FILE_NAME, encoding="utf-8"))
        handlers[1].setFormatter(JsonLines())
    for handler in handlers:
        handler.addFilter(_Seldom())
    logging.basicConfig(level=level, handlers=handlers, force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.captureWarnings(capture=True)


def printable(text: str) -> str:
    """A text in which nothing ends the line or steers the terminal."""
    return text.translate(_ESCAPES)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _extra(record: logging.LogRecord) -> Mapping[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _USUAL}


def _trace(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return record.stack_info or ""
    return "".join(traceback.format_exception(*record.exc_info)).rstrip()
