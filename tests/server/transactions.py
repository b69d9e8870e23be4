"""What MariaDB tells of the transactions that are open in a store's database.

Its picture is one for all databases, and is made anew only when nobody has looked at it for a tenth
of a second: whoever looks more often sees the same for ever.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.engine import Store

_OURS: Final = (
    "FROM information_schema.innodb_trx JOIN information_schema.processlist"
    " ON trx_mysql_thread_id = id WHERE db = DATABASE()"
)
_PAUSE: Final = 0.2
_PATIENCE: Final = 10.0


async def one_waits_for_a_lock(store: Store) -> None:
    """Return once somebody does. Raises: TimeoutError."""
    await _until(lambda number: number > 0, store, "trx_state = 'LOCK WAIT'")


async def none_holds_rows(store: Store) -> None:
    """Return once no transaction has rows locked. Raises: TimeoutError."""
    await _until(lambda number: number == 0, store, "trx_rows_locked > 0")


async def rows_changed(store: Store) -> int:
    """By the largest transaction that is open."""
    await asyncio.sleep(_PAUSE)
    return await _ask(store, f"SELECT MAX(trx_rows_modified) {_OURS}")


async def _until(holds: Callable[[int], bool], store: Store, condition: str) -> None:
    """Wait for a number of transactions."""
    async with asyncio.timeout(_PATIENCE):
        while not holds(await _ask(store, f"SELECT COUNT(*) {_OURS} AND {condition}")):  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE)  # the database tells nobody


async def _ask(store: Store, question: str) -> int:
    async def unit(connection: AsyncConnection) -> int:
        return int((await connection.exec_driver_sql(question)).scalar_one() or 0)

    return await store.read(unit)
