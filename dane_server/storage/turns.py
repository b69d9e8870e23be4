"""Sees to it that one server at a time does what several need not do at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from dane_core.errors import StoreUnreachable
from dane_server.storage.engine import Store

_PATIENCE: Final = {"connect_timeout": 5, "read_timeout": 20, "charset": "utf8mb4"}
#: Locks are named for all databases of a server: each DANE has its own.
_NAMED: Final = "CONCAT('dane.', MD5(DATABASE()), :name)"


class Turns:
    """Turns that servers take. A SQLite file has one server, whose turn it always is."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def take(self, name: str) -> AsyncIterator[bool]:
        """Whether it is ours to do something now; if so, nobody else does it meanwhile.

        The turn ends with the block, or with the connection that holds it: what is done in it
        must not do harm when somebody else has begun it too. Raises: StoreUnreachable.
        """
        if self._store.engine.dialect.name == "sqlite":
            yield True
            return
        engine = create_async_engine(
            self._store.engine.url,
            poolclass=sa.NullPool,
            pool_reset_on_return=None,  # nothing is to be undone, least of all where it is lost
            connect_args=_PATIENCE,
        )
        try:
            try:
                connection = await engine.connect()
                taken = await connection.scalar(
                    sa.text(f"SELECT GET_LOCK({_NAMED}, 0)"), {"name": f".{name}"}
                )
                await connection.commit()
            except (SQLAlchemyError, OSError, TimeoutError, EOFError) as fault:
                raise StoreUnreachable(f"the database does not answer: {fault}") from fault
            try:
                yield bool(taken)
            finally:
                await connection.close()  # which gives the turn back
        finally:
            await engine.dispose()
