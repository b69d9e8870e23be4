"""Connections to MariaDB on which statements can wait for the next one."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, TypeVar

from asyncmy.connection import Connection as AsyncmyConnection
from asyncmy.constants.CR import CR_SERVER_LOST
from asyncmy.errors import Error, OperationalError

T = TypeVar("T")

#: Between the statements of a text.
AND: Final = ";\n"
#: Characters of statements that wait together, of up to 4 bytes. MariaDB takes 16 MiB in a text by
#: default, of which a statement may be most (see `chunk`).
_MOST: Final = 1 << 18
#: As the driver has it.
_ENCODING: Final = "utf-8"
_ERRORS: Final = "surrogateescape"


async def connect(*, read_timeout: float, **settings: Any) -> "Connection":
    """What `asyncmy.connect` would give, with statements that may wait.

    Here `read_timeout` is of an answer, not of each packet.
    """
    connection = Connection(patience=read_timeout, **settings)
    async with asyncio.timeout(read_timeout):
        await connection.connect()
    return connection


class Connection(AsyncmyConnection):
    """A connection on which statements can wait for the next one.

    The database has `patience` seconds to answer a statement. The driver would have each packet
    watched by a task of its own; so each answer is watched by a timer.
    """

    def __init__(self, *, patience: float, **settings: Any) -> None:
        super().__init__(**settings)
        self._patience = patience
        self._waiting: list[str] = []
        self._size = 0

    def keep(self, statement: str) -> bool:
        """Have a statement wait; false where there is no room for it."""
        if self._size + len(statement) > _MOST:
            return False
        self._waiting.append(statement)
        self._size += len(statement)
        return True

    async def query(self, sql: str | bytes, unbuffered: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Execute what waits and then this, of which the result is."""
        if self._waiting:
            return await self._query_behind(self._let_go(), sql)
        return await self._in_time(super().query(sql, unbuffered))

    async def next_result(self, unbuffered: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The result of the next statement in a text."""
        return await self._in_time(super().next_result(unbuffered))

    async def commit(self) -> None:
        """Execute what waits, and commit it with all that was done before.

        Where something fails, nothing is left: whoever commits takes a transaction for ended then,
        and if it was not the COMMIT that failed, this one is not.
        """
        if not self._waiting:
            await self._in_time(super().commit())
            return
        try:
            await self.query("COMMIT")
        except BaseException:
            if self.connected:
                await self._end()
            raise

    async def _end(self) -> None:
        try:
            await self.rollback()
        except Error:
            self.close()

    async def rollback(self) -> None:
        """Undo what was done, and forget what waits."""
        self._let_go()
        await self._in_time(super().rollback())

    async def ping(self, reconnect: bool = False) -> None:  # noqa: FBT001, FBT002
        """Whether it is there still."""
        await self._in_time(super().ping(reconnect=reconnect))

    async def show_warnings(self) -> Sequence[Any]:
        """None. They are not asked for: each `INSERT IGNORE` that finds a row has some."""
        return ()

    async def ask(self, statements: Sequence[str]) -> list[Sequence[Any]]:
        """The rows that each of these gave."""
        cursor = self.cursor()
        await cursor.execute(AND.join(statements))
        found: list[Sequence[Any]] = [await cursor.fetchall()]
        for _ in statements[1:]:
            await cursor.nextset()
            found.append(await cursor.fetchall())
        await cursor.close()
        return found

    def _let_go(self) -> list[str]:
        waiting, self._waiting, self._size = self._waiting, [], 0
        return waiting

    async def _query_behind(self, waiting: Sequence[str], sql: str | bytes) -> Any:
        own = sql if isinstance(sql, bytes) else sql.encode(_ENCODING, _ERRORS)
        before = [statement.encode(_ENCODING, _ERRORS) for statement in waiting]
        changed = await self._in_time(super().query(AND.encode().join([*before, own])))
        for _ in before:
            changed = await self.next_result()
        return changed

    async def _in_time(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._patience):
                return await answer
        except TimeoutError:
            self.close()
            raise OperationalError(CR_SERVER_LOST, "the database is silent") from None
