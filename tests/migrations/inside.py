"""What is in a store, and a way to die between two of the statements that put it there."""

from collections.abc import Iterator
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
    statements = [" ".join(sql.split()) for sql in rows]
    return sorted(sql for sql in statements if "alembic_version" not in sql)


async def _in_mariadb(connection: AsyncConnection) -> list[str]:
    statements = []
    for name in sorted(await connection.scalars(sa.text("SHOW TABLES"))):
        if name == "alembic_version":
            continue
        sql = (await connection.execute(sa.text(f"SHOW CREATE TABLE `{name}`"))).one()[1]
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


_LOOKS = ("SELECT", "SHOW", "PRAGMA", "SET")


class Killed(BaseException):
    """The process ended here."""


class Life:
    """Statements still to come before the process is killed; `ended` once it was."""

    def __init__(self, statements: int) -> None:
        self.left = statements
        self.ended = False

    def spend(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.left -= not statement.lstrip().startswith(_LOOKS)
        if self.left == 0:
            self.ended = True
            raise Killed


@contextmanager
def killed_after(statements: int) -> Iterator[Life]:
    """Die as soon as the database has carried out so many statements that change something."""
    life = Life(statements)
    event.listen(sa.Engine, "after_cursor_execute", life.spend)
    try:
        yield life
    except Killed:
        pass
    finally:
        event.remove(sa.Engine, "after_cursor_execute", life.spend)
