"""Brings the tables of a store to the revision that this version of DANE knows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from dane_core.errors import StoreOutdated, StoreUnreachable
from dane_server.storage.engine import Store

Act = Callable[[Config, str], None]

#: Held on the connection that migrates a MariaDB: one server at a time changes tables.
_LOCK: Final = "dane.migrate"
_LOCK_SECONDS: Final = 60
#: An index over a million tasks takes longer than any request may: four hours.
_PATIENT: Final = {"connect_timeout": 5, "read_timeout": 14_400, "charset": "utf8mb4"}
#: Alembic keeps the migration under way in globals: one at a time in an event loop.
_TURNS: Final = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]()


async def upgrade(store: Store, to: str = "head") -> None:
    """Run the migrations up to a revision; what a killed run left half done is completed.

    On SQLite all of them happen, or none; on MariaDB each statement stands by itself.
    Raises: StoreOutdated, when a newer DANE made the tables, or a statement was refused;
    StoreUnreachable, also when another server has been migrating for a minute.
    """
    await _run(store, command.upgrade, to)


async def downgrade(store: Store, to: str = "base") -> None:
    """Undo the migrations down to a revision, with the rows they made room for.

    Raises as `upgrade` does.
    """
    await _run(store, command.downgrade, to)


async def check(store: Store) -> None:
    """See that the tables are the ones this version of DANE knows, else raise StoreOutdated."""
    found = await revision(store)
    scripts = ScriptDirectory.from_config(_config())
    expected = scripts.get_current_head()
    if found == expected:
        return
    _refuse_unknown(found, scripts)
    state = f"is at revision {found}" if found else "has no tables yet (no revision)"
    raise StoreOutdated(
        f"the store {state}, and this version of DANE needs revision {expected}: "
        "run `dane db upgrade`"
    )


async def revision(store: Store) -> str | None:
    """The revision the store's tables are at; None before the first."""

    async def unit(connection: AsyncConnection) -> str | None:
        return await connection.run_sync(_revision)

    return await store.read(unit)


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_unknown(found: str | None, scripts: ScriptDirectory) -> None:
    if found is None or any(script.revision == found for script in scripts.walk_revisions()):
        return
    raise StoreOutdated(
        f"the store is at revision {found}, which this version of DANE does not know (it needs "
        f"revision {scripts.get_current_head()}): a newer DANE ran `dane db upgrade` here, so "
        "start that version"
    )


async def _run(store: Store, act: Act, to: str) -> None:
    turn = _TURNS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn, AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(_connection(store))
        except (SQLAlchemyError, OSError, TimeoutError) as fault:
            raise StoreUnreachable(f"the database does not answer: {_reason(fault)}") from fault
        try:
            await connection.run_sync(_migrate, act, to)
            await connection.commit()
        except DBAPIError as fault:
            kind = StoreUnreachable if fault.connection_invalidated else StoreOutdated
            raise kind(
                f"a migration of the store stopped: {_reason(fault)}; "
                "once that is mended, `dane db upgrade` goes on from there"
            ) from fault


def _migrate(connection: sa.Connection, act: Act, to: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    found = _revision(connection)
    _refuse_unknown(found, scripts)
    if found is not None and act is command.upgrade:
        _repeat(connection, scripts, found)
    act(config, to)


def _repeat(connection: sa.Connection, scripts: ScriptDirectory, found: str) -> None:
    """Run the store's last migration again, which does no harm: every one may run twice.

    A downgrade that was killed has undone it, perhaps, and not yet said so.
    """
    with Operations.context(MigrationContext.configure(connection)):
        scripts.get_revision(found).module.upgrade()


def _reason(fault: Exception) -> str:
    return str(getattr(fault, "orig", None) or fault) or "no answer in time"


@asynccontextmanager
async def _connection(store: Store) -> AsyncIterator[AsyncConnection]:
    """Connect as one who changes tables: alone, and with time."""
    if store.engine.dialect.name == "sqlite":
        async with store.engine.connect() as connection:
            await connection.begin()
            yield connection
        return
    engine = create_async_engine(store.engine.url, poolclass=sa.NullPool, connect_args=_PATIENT)
    try:
        async with engine.connect() as connection:
            await _lock(connection)
            yield connection  # closing it gives the lock back, however we end
    finally:
        await engine.dispose()


async def _lock(connection: AsyncConnection) -> None:
    # lock_wait_timeout: a table that somebody reads all day must not stop everybody behind us.
    await connection.exec_driver_sql(
        "SET SESSION max_statement_time=0, lock_wait_timeout=60, time_zone='+00:00', "
        "sql_mode='STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"
    )
    taken = await connection.scalar(sa.select(sa.func.get_lock(_LOCK, _LOCK_SECONDS)))
    await connection.commit()
    if not taken:
        raise StoreUnreachable(
            f"another server has been changing the store's tables for {_LOCK_SECONDS} s: "
            "wait until it is done, then run `dane db upgrade` again"
        )


def _config() -> Config:
    config = Config()
    folder = find_migrations(Path(__file__).parents[1])
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    return config


def find_migrations(package: Path) -> Path:
    """The folder of migrations: in the package when installed, beside it in a checkout."""
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"
