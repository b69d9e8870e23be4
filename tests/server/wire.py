"""What a store says to its database, trip by trip."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import event

from dane_server.storage import mariadb
from dane_server.storage.engine import Store


@contextmanager
def trips_of(store: Store) -> Iterator[list[list[str]]]:
    """The statements that are executed meanwhile, those together that are sent together.

    On SQLite each is by itself. Commits are among them only if they go along with something.
    """
    seen: list[list[str]] = []
    if store.engine.dialect.name == "sqlite":

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if not statement.startswith("BEGIN"):
                seen.append([statement])

        engines = [each.sync_engine for each in (store._writes, store._reads)]
        for engine in engines:
            event.listen(engine, "before_cursor_execute", note)
        yield seen
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)
        return
    query = mariadb.Connection.query

    async def noting(self: mariadb.Connection, sql: str | bytes, *args: Any) -> Any:
        seen.append(statements_of(self, sql))
        return await query(self, sql, *args)

    with patch.object(mariadb.Connection, "query", noting):
        yield seen


def statements_of(connection: mariadb.Connection, sql: str | bytes) -> list[str]:
    """What a connection sends for this, with what waits on it."""
    text = sql if isinstance(sql, str) else sql.decode()
    return [*connection._waiting, *text.split(mariadb.AND)]
