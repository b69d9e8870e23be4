"""Stores for tests, with empty tables."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.engine import Store, open_store
from dane_server.storage.tables import metadata


@asynccontextmanager
async def empty_store(url: str, *, tables: bool = False) -> AsyncIterator[Store]:
    """Open a store and empty its tables. They are made first, unless the store has `tables`."""
    async with open_store(url) as store:
        if not tables:
            await store.write(_make_tables)
        await store.write(_empty_tables)
        yield store


async def _make_tables(connection: AsyncConnection) -> None:
    await connection.run_sync(metadata.create_all)


async def _empty_tables(connection: AsyncConnection) -> None:
    for table in metadata.tables.values():
        await connection.execute(sa.delete(table))
