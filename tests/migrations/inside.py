"""What is in a store, and a way to die between two of the statements that put it there."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.engine import Store


async def definition(store: Store) -> list[str]:
    """The statements that would make the store's tables, as the database itself writes them."""
    async with store.engine.connect() as connection:
        if store.engine.dialect.name == "sqlite":
            return await _in_sqlite(connection)
        return await _in_mariadb(connection)


async def _in_sqlite(connection: AsyncConnection) -> list[str]:
    rows = await connection.scalars(
        sa.text("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    )
    # A column that was added later is written with other blanks around it.
    statements = [" ".join(sql.split()).replace(" ,", ",").replace(" )", ")") for sql in rows]
    return sorted(sql for sql in statements if "alembic_version" not in sql)


async def _in_mariadb(connection: AsyncConnection) -> list[str]:
    statements = []
    for name in sorted(await connection.scalars(sa.text("SHOW TABLES"))):
        if name == "alembic_version":
            continue
        sql = (await connection.execute(sa.text(f"SHOW CREATE TABLE `{name}`"))).one()[1]
        # The number of the next row is not part of a table's definition.
        sql = re.sub(r" AUTO_INCREMENT=\d+", "", sql)
        lines = [line.rstrip(",") for line in sql.splitlines()]
        # Columns in their order, but SQLAlchemy makes indexes in any.
        indexes = sorted(line for line in lines if line.startswith("  KEY"))
        statements.append("\n".join([line for line in lines if line not in indexes] + indexes))
    return statements


async def empty(store: Store) -> None:
    """Drop every table, as if nobody had ever been here."""
    async with store.engine.begin() as connection:
        await connection.run_sync(_drop_all)


def _drop_all(connection: sa.Connection) -> None:
    tables = sa.MetaData()
    tables.reflect(connection)
    tables.drop_all(connection)


_CHANGES = ("CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE")


class Killed(BaseException):
    """The process ended here."""


class Killer:
    """Ends whoever changes the store in a way that nobody has before.

    What it does again, because it had been killed, it may do. So a migration that starts over
    until it gets through has been killed after each of its statements; `kills` counts them.
    """

    def __init__(self) -> None:
        self.kills = 0
        self._seen: set[str] = set()

    def watch(
        self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any
    ) -> None:
        done = f"{statement.strip()} {parameters}"
        if done in self._seen or not done.startswith(_CHANGES):
            return
        self._seen.add(done)
        self.kills += 1
        raise Killed

    async def until_through(self, migration: Callable[[], Awaitable[None]]) -> None:
        """Start a migration again each time it was killed."""
        with self.at_large():
            while await self._kills(migration):
                pass

    @staticmethod
    async def _kills(migration: Callable[[], Awaitable[None]]) -> bool:
        try:
            await migration()
        except Killed:
            return True
        return False

    @contextmanager
    def at_large(self) -> Iterator[None]:
        event.listen(sa.Engine, "after_cursor_execute", self.watch)
        try:
            yield
        finally:
            event.remove(sa.Engine, "after_cursor_execute", self.watch)
