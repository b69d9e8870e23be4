"""Connections to SQLite: one trip to their thread for each statement."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.engine import Store, open_store
from dane_server.storage.sqlite import Connection


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite") as store:
        await store.write(
            lambda connection: connection.exec_driver_sql("CREATE TABLE word (text TEXT UNIQUE)")
        )
        yield store


async def test_a_statement_is_one_trip(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trip wakes the event loop once, and the thread."""
    trips = 0
    run = Connection.run

    async def counted(connection: Connection, work: object) -> object:
        nonlocal trips
        trips += 1
        return await run(connection, work)  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "run", counted)
    await store.write(lambda connection: connection.execute(sa.text("SELECT text FROM word")))

    assert trips == len(["BEGIN IMMEDIATE", "SELECT"])


async def test_rows_that_a_change_returns_are_counted(store: Store) -> None:
    async def unit(connection: AsyncConnection) -> tuple[list[str], int]:
        await connection.execute(sa.text("INSERT INTO word VALUES (:text)"), [{"text": "a"}])
        added = await connection.execute(
            sa.text("INSERT INTO word VALUES ('b'), ('c') RETURNING text")
        )
        changed = await connection.execute(sa.text("UPDATE word SET text = text || '!'"))
        return list(added.scalars()), changed.rowcount

    assert await store.write(unit) == (["b", "c"], 3)


async def test_a_statement_that_is_refused_leaves_the_connection_sound(store: Store) -> None:
    async def twice(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("INSERT INTO word VALUES ('a'), ('a')"))

    with pytest.raises(sa.exc.IntegrityError):
        await store.write(twice)

    found = await store.read(
        lambda connection: connection.scalar(sa.text("SELECT COUNT(*) FROM word"))
    )
    assert found == 0
