"""What MariaDB reads for each statement of a store: its plan, and the rows it has touched."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from unittest.mock import patch

from asyncmy.connection import Connection as AsyncmyConnection

from dane_server.storage import mariadb

#: Statements whose plan MariaDB explains.
_EXPLAINED: Final = ("SELECT", "UPDATE", "DELETE", "WITH")
#: Of a plan: every row of a table, or of an index, from its first to its last.
_WHOLE: Final = ("ALL", "index")


@dataclass(frozen=True, kw_only=True)
class Read:
    """One statement that was executed, and what it took."""

    during: str  # what the store was asked for
    statement: str
    rows: int  # read from tables and indexes, be they used then or not
    scans: tuple[str, ...]  # the tables that its plan reads whole, expecting many rows

    def __str__(self) -> str:
        scans = f", and scans {', '.join(self.scans)}" if self.scans else ""
        return f"{self.during}: {self.rows} rows{scans}: {' '.join(self.statement.split())}"


class Reads:
    """Watches the statements of stores. `few` rows of a table may be read whole."""

    def __init__(self, *, few: int) -> None:
        self._few = few
        self.all: list[Read] = []

    @contextmanager
    def during(self, act: str) -> Iterator[None]:
        """Whatever is read in this block is read for that; each statement by itself."""
        query, ask = mariadb.Connection.query, mariadb.Connection.ask

        async def watched(self: Any, sql: str | bytes, *args: Any) -> Any:
            statement = sql if isinstance(sql, str) else sql.decode()
            scans = await watcher._scans(self, statement)
            before = await _count(self)
            result = await query(self, sql, *args)
            after = self._result  # of that statement; counting has one of its own
            rows = await _count(self) - before
            self._result = after
            watcher.all.append(Read(during=act, statement=statement, rows=rows, scans=scans))
            return result

        async def one_by_one(
            self: mariadb.Connection, statements: Sequence[str]
        ) -> list[Sequence[Any]]:
            return [(await ask(self, [statement]))[0] for statement in statements]

        watcher = self
        with (
            patch.object(mariadb.Connection, "query", watched),
            patch.object(mariadb.Connection, "ask", one_by_one),
            patch.object(mariadb.Connection, "keep", lambda *_: False),
        ):
            yield

    async def _scans(self, connection: Any, statement: str) -> tuple[str, ...]:
        if not statement.lstrip(" (").startswith(_EXPLAINED):
            return ()
        plan = await _asked(connection, f"EXPLAIN {statement}")
        return tuple(
            str(table)
            for _, _, table, kind, _, _, _, _, rows, _ in plan
            if kind in _WHOLE and not str(table).startswith("<") and int(rows) > self._few
        )


async def _count(connection: Any) -> int:
    """Rows that this session has read, those of its own temporary tables left out.

    With those that an index condition has sorted out before they were rows.
    """
    asked = "SHOW SESSION STATUS WHERE Variable_name IN ('Rows_read', 'Handler_icp_attempts')"
    return sum(int(number) for _, number in await _asked(connection, asked))


async def _asked(connection: Any, statement: str) -> Sequence[Any]:
    """Rows that the driver itself is given."""
    query: Any = AsyncmyConnection.query
    await query(connection, statement)
    return cast("Sequence[Any]", connection._result.rows)
