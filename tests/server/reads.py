"""What MariaDB reads for each statement of a store: its plan, and the rows it has touched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event

from dane_server.storage.engine import Store

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
    """Watches the statements of a store. `few` rows of a table may be read whole."""

    def __init__(self, store: Store, *, few: int) -> None:
        self._few = few
        self._during = ""
        self._before = 0
        self._scans: tuple[str, ...] = ()
        self.all: list[Read] = []
        for engine in (store._writes, store._reads):
            event.listen(engine.sync_engine, "before_cursor_execute", self._begin)
            event.listen(engine.sync_engine, "after_cursor_execute", self._end)

    @contextmanager
    def during(self, act: str) -> Iterator[None]:
        """Whatever is read in this block is read for that."""
        self._during = act
        yield
        self._during = ""

    def _begin(
        self,
        connection: sa.Connection,
        _cursor: object,
        statement: str,
        parameters: Any,
        _context: object,
        executemany: bool,  # noqa: FBT001  given by place
    ) -> None:
        self._scans = ()
        if statement.lstrip(" (").startswith(_EXPLAINED) and not executemany:
            plan = self._ask(connection, f"EXPLAIN {statement}", parameters)
            self._scans = tuple(
                str(table)
                for _, _, table, kind, _, _, _, _, rows, _ in plan
                if kind in _WHOLE and not str(table).startswith("<") and int(rows) > self._few
            )
        self._before = self._count(connection)

    def _end(
        self,
        connection: sa.Connection,
        _cursor: object,
        statement: str,
        _parameters: object,
        _context: object,
        _executemany: bool,  # noqa: FBT001
    ) -> None:
        if self._during:
            rows = self._count(connection) - self._before
            read = Read(during=self._during, statement=statement, rows=rows, scans=self._scans)
            self.all.append(read)

    def _count(self, connection: sa.Connection) -> int:
        """Rows that this session has read, those of its own temporary tables left out.

        With those that an index condition has sorted out before they were rows.
        """
        asked = "SHOW SESSION STATUS WHERE Variable_name IN ('Rows_read', 'Handler_icp_attempts')"
        return sum(int(number) for _, number in self._ask(connection, asked, ()))

    def _ask(self, connection: sa.Connection, statement: str, parameters: Any) -> list[Any]:
        cursor = connection.connection.cursor()
        cursor.execute(statement, parameters)
        found = list(cursor.fetchall())
        cursor.close()
        return found
