"""Opens the store: SQLite for one server, MariaDB for any number. The URL decides."""

import asyncio
import fcntl
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from dane_core.errors import StoreTaken, StoreUnreachable

# It warns of every row that INSERT IGNORE finds to be there already, which is the point of it.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

T = TypeVar("T")
Unit = Callable[[AsyncConnection], Awaitable[T]]

#: Checkread, lock wait, deadlock, table definition changed: the whole unit is run again.
_AGAIN: Final = frozenset({1020, 1205, 1213, 1412})
_TRIES: Final = 8
_STATEMENT_SECONDS: Final = 15
_UNIT_SECONDS: Final = 30


class Store:
    """The database: transactions for those who write, connections for those who read."""

    def __init__(self, writes: AsyncEngine, reads: AsyncEngine) -> None:
        self._writes = writes
        self._reads = reads
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> AsyncEngine:
        """The engine that may write; for migrations and tests."""
        return self._writes

    async def write(self, unit: Unit[T]) -> T:
        """Run a unit of work in one transaction: all of it happens, or nothing.

        Deadlocks and the like run it again, so it must not have effects of its own. A caller
        that is cancelled leaves it running: a cancelled statement would go on in the server
        anyway, holding its locks. Raises: StoreUnreachable, when the outcome is unknown.
        """
        return await self._shielded(self._write(unit))

    async def read(self, unit: Unit[T]) -> T:
        """Run queries that see one state of the store each. Raises: StoreUnreachable."""
        return await self._shielded(self._read(unit))

    async def close(self) -> None:
        """Let what is under way finish, then disconnect."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._writes.dispose()
        await self._reads.dispose()

    async def _shielded(self, work: Awaitable[T]) -> T:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def _write(self, unit: Unit[T]) -> T:
        for tried in range(_TRIES):
            try:
                async with asyncio.timeout(_UNIT_SECONDS), self._writes.begin() as connection:
                    return await unit(connection)
            except (DBAPIError, PoolTimeout, TimeoutError, OSError) as fault:
                if not _worth_again(fault) or tried == _TRIES - 1:
                    raise _explained(fault) from fault
            # Jittered, so that two that met in a deadlock do not meet again.
            await asyncio.sleep(random.uniform(0.5, 1.0) * 0.005 * 2**tried)  # noqa: S311
        raise AssertionError("unreachable")

    async def _read(self, unit: Unit[T]) -> T:
        try:
            async with asyncio.timeout(_UNIT_SECONDS), self._reads.connect() as connection:
                return await unit(connection)
        except (DBAPIError, PoolTimeout, TimeoutError, OSError) as fault:
            raise _explained(fault) from fault


def _worth_again(fault: Exception) -> bool:
    if not isinstance(fault, DBAPIError):
        return False
    code = fault.orig.args[0] if fault.orig is not None and fault.orig.args else None
    return code in _AGAIN or code == "database is locked"


def _explained(fault: Exception) -> Exception:
    """Turn what means "no database" into our word for it; leave bugs as they are."""
    lost = isinstance(fault, DBAPIError) and (
        fault.connection_invalidated or isinstance(fault, sa.exc.OperationalError)
    )
    if lost or isinstance(fault, PoolTimeout | TimeoutError | OSError | DisconnectionError):
        reason = str(getattr(fault, "orig", None) or fault) or "no answer in time"
        return StoreUnreachable(f"the database does not answer: {reason}")
    return fault


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open the store at an SQLAlchemy URL; its tables are the caller's business.

    Raises: StoreTaken, when another server holds this SQLite file.
    """
    if sa.engine.make_url(url).get_backend_name() == "sqlite":
        async with _open_sqlite(url) as store:
            yield store
    else:
        store = Store(_mariadb(url, size=5), _mariadb(url, size=10))
        try:
            yield store
        finally:
            await store.close()


def _mariadb(url: str, *, size: int) -> AsyncEngine:
    engine = create_async_engine(
        url,
        # Under the default, REPEATABLE READ, claiming with SKIP LOCKED blocks inserts.
        isolation_level="READ COMMITTED",
        pool_size=size,
        max_overflow=0,
        pool_timeout=5,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={"connect_timeout": 5, "read_timeout": 20, "charset": "utf8mb4"},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_session(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(
            f"SET SESSION max_statement_time={_STATEMENT_SECONDS}, innodb_lock_wait_timeout=3, "
            "time_zone='+00:00', sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"
        )
        cursor.close()

    return engine


@asynccontextmanager
async def _open_sqlite(url: str) -> AsyncIterator[Store]:
    """One connection writes and checkpoints, the others only read.

    SQLite before 3.51.3 can corrupt a WAL file that several connections checkpoint at once
    (sqlite.org/wal.html#walresetbug), hence one writer, and one server on one file.
    """
    path = Path(sa.engine.make_url(url).database or "dane.sqlite")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        store = Store(_sqlite(url, reads=False), _sqlite(url, reads=True))
        try:
            async with store.engine.connect():  # makes the file before a reader asks for it
                pass
            yield store
        finally:
            await store.close()


def _sqlite(url: str, *, reads: bool) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=4 if reads else 1,
        max_overflow=0,
        pool_timeout=_UNIT_SECONDS,
        connect_args={"isolation_level": None, "timeout": 5},
        poolclass=sa.AsyncAdaptedQueuePool,
    )
    # FULL: what was answered with 201 is on the disk. A deferred transaction that later
    # writes would fail at once when another has written: writers begin as writers.
    settings = (
        ["query_only=1", "wal_autocheckpoint=0"]
        if reads
        else ["journal_mode=WAL", "synchronous=FULL", "foreign_keys=1"]
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for setting in ["busy_timeout=5000", *settings]:
            cursor.execute(f"PRAGMA {setting}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock beside the file for as long as this process uses it."""
    with path.with_name(path.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreTaken(str(path)) from None
        yield
