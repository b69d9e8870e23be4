"""Opens the store: SQLite for one server, MariaDB for any number. The URL decides."""

import asyncio
import fcntl
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from asyncmy.constants.CR import CR_SERVER_GONE_ERROR
from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from dane_core.errors import BadSettings, Fault, OutcomeUnknown, StoreTaken, StoreUnreachable
from dane_server.storage import mariadb, sqlite

# It warns of every row that INSERT IGNORE finds to be there already, which is the point of it.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

T = TypeVar("T")
Unit = Callable[[AsyncConnection], Awaitable[T]]

#: Checkread, lock wait, deadlock, table definition changed: the whole unit is run again.
_AGAIN: Final = frozenset({1020, 1205, 1213, 1412})
#: The SQLSTATE of the same: the transaction could not be serialized, and was rolled back.
_SERIALIZATION_FAILURE: Final = "40001"
#: MariaDB's "got error … during COMMIT": nobody knows what it has kept.
_ERROR_DURING_COMMIT: Final = 1180
_TRIES: Final = 8
#: A connection that is lost under a unit, before its COMMIT, is worth another this often: all of a
#: pool may be gone.
_TRIES_OF_A_LOST: Final = 6
_STATEMENT_SECONDS: Final = 15
#: A unit of work takes so long at most, all its tries together, where nothing else is said.
_UNIT_SECONDS: Final = 28
#: Rows that even a busy database writes in a second.
_ROWS_IN_A_SECOND: Final = 1000
_MISSED_SECONDS: Final = 1
#: To have a connection that answers: a place in the pool, a ping, a handshake.
_CONNECT_SECONDS: Final = 10
_POOL_SECONDS: Final = 5
#: A connection that was used within these seconds is not asked whether it lives. Should it be
#: gone, that is found out by the first statement of a unit, which is run again.
_LATELY_SECONDS: Final = 0.5

#: What the driver and the pool raise; the last is of a stream that ended.
_FAULTS: Final = (DBAPIError, PoolTimeout, DisconnectionError, TimeoutError, OSError, EOFError)


def patience_for(rows: int) -> float:
    """The seconds that a unit may take which is known to write so many rows."""
    return _UNIT_SECONDS + rows / _ROWS_IN_A_SECOND


class Store:
    """The database: transactions for those who write, connections for those who read.

    Who uses it waits `connecting` seconds at most for a connection that answers.
    """

    def __init__(
        self, writes: AsyncEngine, reads: AsyncEngine, *, connecting: float = _CONNECT_SECONDS
    ) -> None:
        self._writes = writes
        self._reads = reads
        self._connecting = connecting
        self._under_way: set[asyncio.Task[Any]] = set()

    @property
    def engine(self) -> AsyncEngine:
        """The engine that may write; for migrations and tests."""
        return self._writes

    @property
    def connections(self) -> Mapping[str, int]:
        """How many connections are in use, by what they are for."""
        pools = {"writes": self._writes.pool, "reads": self._reads.pool}
        return {
            use: pool.checkedout() for use, pool in pools.items() if isinstance(pool, sa.QueuePool)
        }

    async def write(self, unit: Unit[T], *, patience: float | None = None) -> T:
        """Run a unit of work in one transaction: all of it happens, or nothing.

        Deadlocks, and a connection lost before the commit, run it again, so it must not have
        effects of its own. A caller that is cancelled leaves it running: a cancelled statement
        would go on in the server anyway, holding its locks. A large one has `patience` seconds
        (`patience_for`); each of its statements, and a silent database, end as soon as others.
        Raises: StoreUnreachable, when nothing was changed; OutcomeUnknown, when the commit was
        not acknowledged; what was deferred to it counts as it.
        """
        seconds = _UNIT_SECONDS if patience is None else patience
        return await self._shielded(self._write(unit, seconds), OutcomeUnknown, seconds)

    async def read(self, unit: Unit[T]) -> T:
        """Run queries that see one state of the store each; again, where a connection is lost.

        Raises: StoreUnreachable.
        """
        return await self._shielded(self._read(unit), StoreUnreachable, _UNIT_SECONDS)

    @asynccontextmanager
    async def apart(self) -> "AsyncIterator[Store]":
        """The same store by connections of its own: nobody else's queries can use them up.

        On SQLite those are for reading; the one connection that may write is shared.
        """
        shared = self._writes.dialect.name == "sqlite"
        url = self._writes.url.render_as_string(hide_password=False)
        if shared:
            store = Store(self._writes, _sqlite(url, reads=True), connecting=self._connecting)
        else:
            store = _on_mariadb(url)
        try:
            yield store
        finally:
            await store.close(keep_writes=shared)

    async def close(self, *, keep_writes: bool = False) -> None:
        """Let what is under way finish, then disconnect; writers may be somebody else's."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if not keep_writes:
            await self._writes.dispose()
        await self._reads.dispose()

    async def _shielded(
        self, work: Awaitable[T], silent: type[StoreUnreachable], seconds: float
    ) -> T:
        task = asyncio.ensure_future(work)
        self._under_way.add(task)
        task.add_done_callback(self._forget)
        # Work that was told to end may miss it: `asyncio.wait_for`, by which the pool waits,
        # loses a cancellation that comes together with what it waits for (Python 3.11).
        await asyncio.wait({task}, timeout=seconds + _MISSED_SECONDS)
        if not task.done() or task.cancelled():
            task.cancel()
            raise silent("the database does not answer: no answer in time")
        return task.result()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also where its caller has gone

    async def _write(self, unit: Unit[T], seconds: float) -> T:
        began = asyncio.get_running_loop().time()
        deadline = began + seconds
        connected_by = deadline
        for tried in range(1, _TRIES + 1):
            stage = _Stage()
            try:
                async with (
                    self._connected(self._writes, deadline, by=connected_by) as connection,
                    connection.begin(),
                ):
                    stage.begun = True
                    result = await unit(connection)
                    stage.committing = True
            except _FAULTS as fault:
                if not stage.is_worth_again(fault, tried):
                    raise stage.explained(fault) from fault
                if stage.is_lost(fault):
                    # Whoever has waited for a silent database does not wait much longer.
                    connected_by = began + _UNIT_SECONDS
            else:
                return result
            # Jittered, so that two that met in a deadlock do not meet again.
            await asyncio.sleep(random.uniform(0.5, 1.0) * 0.005 * 2**tried)  # noqa: S311
        raise AssertionError("unreachable")

    async def _read(self, unit: Unit[T]) -> T:
        deadline = asyncio.get_running_loop().time() + _UNIT_SECONDS
        for tried in range(1, _TRIES + 1):
            stage = _Stage()
            try:
                async with self._connected(self._reads, deadline) as connection:
                    stage.begun = True
                    return await unit(connection)
            except _FAULTS as fault:
                if not stage.is_worth_again(fault, tried):
                    raise stage.explained(fault) from fault
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def _connected(
        self, engine: AsyncEngine, deadline: float, *, by: float = math.inf
    ) -> AsyncIterator[AsyncConnection]:
        """A connection: had soon, or not at all; and given up at the deadline."""
        soon = asyncio.get_running_loop().time() + self._connecting
        async with asyncio.timeout_at(min(soon, by, deadline)) as limit:
            connection = await engine.connect()
            try:
                _prolong(limit, deadline)
                yield connection
            except BaseException:
                # What is broken may take time to close: a second cancellation must not end that.
                await asyncio.shield(asyncio.ensure_future(connection.close()))
                raise
            await connection.close()


def _prolong(limit: asyncio.Timeout, deadline: float) -> None:
    """Give a block until the deadline, unless it is over: it may have missed being told so."""
    if limit.expired():
        raise TimeoutError
    limit.reschedule(deadline)


class _Stage:
    """How far a unit of work came, which decides what a fault means."""

    def __init__(self) -> None:
        self.begun = False
        self.committing = False

    def is_worth_again(self, fault: Exception, tried: int) -> bool:
        """Whether it was rolled back, and may go better now."""
        if not isinstance(fault, DBAPIError) or self._is_unknown(fault):
            return False
        if fault.connection_invalidated:
            return self.begun and tried < _TRIES_OF_A_LOST
        return _is_conflict(fault) and tried < _TRIES

    def is_lost(self, fault: Exception) -> bool:
        """Whether its connection is gone, rather than one of its statements refused."""
        return isinstance(fault, DBAPIError) and fault.connection_invalidated

    def explained(self, fault: Exception) -> Exception:
        if self._is_unknown(fault):
            return OutcomeUnknown(f"the database did not acknowledge a commit: {_reason(fault)}")
        return _explained(fault)

    def _is_unknown(self, fault: Exception) -> bool:
        """An error that the database answers a COMMIT with says no; silence says nothing."""
        if not self.committing:
            return False
        if not isinstance(fault, DBAPIError):
            return True
        if _code(fault) == CR_SERVER_GONE_ERROR:  # so it was not even asked
            return False
        return fault.connection_invalidated or _code(fault) == _ERROR_DURING_COMMIT


def _is_conflict(fault: DBAPIError) -> bool:
    state = getattr(fault.orig, "sqlstate", None)
    return (
        _code(fault) in _AGAIN
        or state == _SERIALIZATION_FAILURE
        or _code(fault) == "database is locked"
    )


def _code(fault: DBAPIError) -> Any:
    return fault.orig.args[0] if fault.orig is not None and fault.orig.args else None


#: What may come of a database that is not in order, and not of a statement of ours.
_NOT_IN_ORDER: Final = (
    sa.exc.OperationalError,
    sa.exc.InterfaceError,
    sa.exc.InternalError,
)


def _explained(fault: Exception) -> Exception:
    """Turn what means "no database" into our word for it; leave bugs as they are."""
    if isinstance(fault, DBAPIError) and not (
        fault.connection_invalidated or isinstance(fault, _NOT_IN_ORDER)
    ):
        return fault
    return StoreUnreachable(f"the database does not answer: {_reason(fault)}")


def _reason(fault: Exception) -> str:
    return str(getattr(fault, "orig", None) or fault) or "no answer in time"


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open the store at an SQLAlchemy URL; its tables are the caller's business.

    Raises: StoreTaken, when another server holds this SQLite file; BadSettings, when it is none.
    """
    if sa.engine.make_url(url).get_backend_name() == "sqlite":
        async with _open_sqlite(url) as store:
            yield store
    else:
        store = _on_mariadb(url)
        try:
            yield store
        finally:
            await store.close()


#: Connections of one pool. A server has two pools for its API and two for its runner.
_WRITERS: Final = 5
_READERS: Final = 10


def _on_mariadb(url: str) -> Store:
    # Under the default, REPEATABLE READ, claiming with SKIP LOCKED blocks inserts. Each query
    # of a reader sees what is committed then, without a transaction as well as within one.
    return Store(
        _mariadb(url, size=_WRITERS, isolation_level="READ COMMITTED"),
        _mariadb(url, size=_READERS, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True),
    )


def _mariadb(url: str, *, size: int, **settings: Any) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=size,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        pool_recycle=1800,
        pool_reset_on_return=None,  # whoever gives a connection back has ended its transaction
        connect_args={
            "connect_timeout": 5,
            "read_timeout": 20,
            "charset": "utf8mb4",
            "async_creator_fn": mariadb.connect,
        },
        **settings,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_session(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute(
            f"SET SESSION max_statement_time={_STATEMENT_SECONDS}, innodb_lock_wait_timeout=3, "
            # A process that is frozen, or cut off unseen, loses its locks.
            f"idle_transaction_timeout={_STATEMENT_SECONDS}, "
            "time_zone='+00:00', sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"
        )
        cursor.close()

    _ping_the_idle(engine.sync_engine)
    return engine


def _ping_the_idle(engine: sa.Engine) -> None:
    """Have connections that were not used for a while answer before somebody relies on them."""

    @event.listens_for(engine, "checkin")
    def note_use(_connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        entry.info["used"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ping(connection: DBAPIConnection, entry: ConnectionPoolEntry, _: object) -> None:
        used = entry.info.get("used", math.inf)  # one that is new has just answered
        if time.monotonic() - used < _LATELY_SECONDS:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as fault:
            raise InvalidatePoolError from fault


@asynccontextmanager
async def _open_sqlite(url: str) -> AsyncIterator[Store]:
    """One connection writes and checkpoints, the others only read.

    SQLite before 3.51.3 can corrupt a WAL file that several connections checkpoint at once
    (sqlite.org/wal.html#walresetbug), hence one writer, and one server on one file.
    """
    database = sa.engine.make_url(url).database or ":memory:"
    if database == ":memory:" or database.startswith("file:"):
        # In memory each connection would have a database of its own, and one for all would
        # undo with one transaction what others have done.
        raise BadSettings([Fault("STORE.URL", "expected the path of a SQLite file")])
    path = Path(database)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        # Writers queue for the one connection, so they wait as long as a unit may take.
        store = Store(_sqlite(url, reads=False), _sqlite(url, reads=True), connecting=_UNIT_SECONDS)
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
        pool_timeout=_POOL_SECONDS if reads else _UNIT_SECONDS,
        connect_args={
            "isolation_level": None,
            "timeout": 5,
            "async_creator_fn": sqlite.connect,
        },
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
