"""Goes to the database once for several statements, where nobody wants to know of the first.

A statement that is deferred waits for the next one, or for the commit, and is sent in one text
with it. MariaDB does them in their order, and nothing that comes behind one that fails.
"""

from collections.abc import Sequence
from typing import Any, Final, cast

import sqlalchemy as sa
from asyncmy.errors import Error
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_server.storage.mariadb import AND, Connection
from dane_server.storage.text import Parameters, text_of

#: Characters of a text that a fault shows.
_SHOWN: Final = 500


async def defer(
    connection: AsyncConnection,
    statement: sa.Executable,
    parameters: Parameters | Sequence[Parameters] | None = None,
) -> None:
    """Execute a statement together with the next one, with the commit at the latest.

    What is wrong with it comes out of whatever is executed next, a question too: it fails the
    transaction, as it would at once. Of rows each has the same members; without any nothing is
    done. Elsewhere, as on SQLite, which is no trip away, it is executed at once. Meant for
    statements that are made once: their text is kept as long as they are, others are written
    anew each time.
    """
    driver = _driver_of(connection)
    if driver is None:
        await connection.execute(statement, parameters)
        return
    if driver.get_autocommit():
        raise TypeError("there is no transaction to wait in")
    if parameters is not None and not parameters:
        return  # no rows
    text = text_of(statement, parameters, connection.dialect).filled(parameters, driver)
    if not driver.keep(text):
        await _ask(connection, driver, [text])


async def ask(
    connection: AsyncConnection,
    *questions: tuple[sa.Executable, Parameters | Sequence[Parameters]],
) -> list[Sequence[Any]]:
    """Execute statements one after the other, in one trip; the rows that each gave.

    Columns are attributes of rows; flags may be numbers. For statements that are made once, as
    above. Raises: what executing them would.
    """
    driver = _driver_of(connection)
    if driver is None:
        return [(await connection.execute(*question)).all() for question in questions]
    texts = [text_of(*question, connection.dialect) for question in questions]
    filled = [
        text.filled(parameters, driver)
        for text, (_, parameters) in zip(texts, questions, strict=True)
    ]
    found = await _ask(connection, driver, filled)
    return [text.rows(rows) for text, rows in zip(texts, found, strict=True)]


async def read(
    connection: AsyncConnection,
    statement: sa.Executable,
    parameters: Parameters | Sequence[Parameters],
) -> Sequence[Any]:
    """The rows that one statement gives (see `ask`)."""
    [rows] = await ask(connection, (statement, parameters))
    return rows


async def _ask(
    connection: AsyncConnection, driver: Connection, statements: Sequence[str]
) -> list[Sequence[Any]]:
    """What statements gave; faults are SQLAlchemy's, as of all others."""
    try:
        return await driver.ask(statements)
    except BaseException as fault:
        # Lost, or closed by the driver as its answer was not waited for: nobody is to have it next.
        dialect, said = connection.dialect, cast("Any", fault)
        lost = not driver.connected or dialect.is_disconnect(said, None, None)
        if lost:
            await connection.invalidate(fault)
        if not isinstance(fault, Error):
            raise
        base = dialect.loaded_dbapi.Error
        text = AND.join(statements)[:_SHOWN]
        raise DBAPIError.instance(
            text, None, fault, base, connection_invalidated=lost, dialect=dialect
        ) from fault


def _driver_of(connection: AsyncConnection) -> Connection | None:
    """What statements can wait on; nothing where the store did not make the connection so."""
    proxy = connection.sync_connection.connection if connection.sync_connection else None
    driver = proxy.driver_connection if proxy else None
    return driver if isinstance(driver, Connection) else None
