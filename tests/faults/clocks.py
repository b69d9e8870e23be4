"""Clocks that a row puts forward or back: the database's, at any time, and that of new workers.

The product knows nothing of it: `tests.faults.server` and `tests.faults.worker` install these.
"""

import datetime as dt
import importlib
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from dane_server.storage import mariadb
from tests.faults.history import FOLDER_VARIABLE

_DATABASE: Final = "clock-of-the-database"
_WORKERS: Final = "clock-of-workers"
#: How MariaDB is asked for the time; every comparison of the product is made with it.
_ASKED: Final = "UTC_TIMESTAMP(6)"


def put_database_clock(folder: Path, seconds: int) -> None:
    """From their next statement on, servers see a database that is so much fast; or slow."""
    _put(folder / _DATABASE, seconds)


def put_worker_clock(folder: Path, seconds: int) -> None:
    """Workers that start from now on have a clock that is so much fast; or slow."""
    _put(folder / _WORKERS, seconds)


def _put(path: Path, seconds: int) -> None:
    part = path.with_suffix(".part")
    part.write_text(str(seconds))
    part.rename(path)  # read by others at any moment


def database_is_ahead(folder: Path) -> int:
    """By how many seconds servers see a database that is fast; or slow."""
    return _read(folder / _DATABASE)


def _seconds(name: str) -> int:
    return _read(Path(os.environ[FOLDER_VARIABLE]) / name)


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0


def install_database_clock() -> None:
    """Have every statement of this process ask the clock of the row."""
    query = mariadb.Connection.query

    async def ask(self: mariadb.Connection, sql: str | bytes, *args: Any) -> Any:
        self._waiting = [_shifted(one) for one in self._waiting]
        text = sql if isinstance(sql, str) else sql.decode("utf-8", "surrogateescape")
        return await query(self, _shifted(text), *args)

    setattr(mariadb.Connection, "query", ask)  # noqa: B010 - replaced on purpose


def _shifted(statement: str) -> str:
    by = _seconds(_DATABASE) if _ASKED in statement else 0
    return statement.replace(_ASKED, f"({_ASKED} + INTERVAL {by} SECOND)") if by else statement


def install_worker_clock() -> None:
    """Have this process read its own clock wrong."""
    by = _seconds(_WORKERS)
    if not by:
        return
    for room in ("dane_core.worker.serve", "dane_core.exchange.amqp"):  # and what they import
        importlib.import_module(room)
    right = time.time
    setattr(time, "time", lambda: right() + by)  # noqa: B010 - replaced on purpose

    class Wrong(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Wrong":
            return super().now(tz) + dt.timedelta(seconds=by)

    for name, module in [*sys.modules.items()]:
        if name.startswith("dane_core") and getattr(module, "datetime", None) is dt.datetime:
            setattr(module, "datetime", Wrong)  # noqa: B010
