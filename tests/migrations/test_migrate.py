"""Who may change the tables when, and what an operator is told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from dane_core.errors import StoreOutdated, StoreUnreachable
from dane_server.storage import migrate
from dane_server.storage.engine import Store, open_store
from dane_server.storage.tables import metadata
from tests.migrations.inside import definition


async def _say(store: Store, revision: str) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(
            sa.text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision}
        )


# --- what the store is at -----------------------------------------------------------------------


async def test_a_store_that_was_upgraded_passes_the_check(store: Store) -> None:
    await migrate.upgrade(store)

    await migrate.check(store)


async def test_a_store_without_tables_is_refused_with_the_command_that_makes_them(
    store: Store,
) -> None:
    assert await migrate.revision(store) is None
    with pytest.raises(
        StoreOutdated,
        match=r"has no tables yet .*needs revision \d{4}: run `dane db upgrade`",
    ):
        await migrate.check(store)


async def test_an_older_store_is_refused_with_both_revisions_and_the_command(
    store: Store,
) -> None:
    await migrate.upgrade(store, "0003")

    assert await migrate.revision(store) == "0003"
    with pytest.raises(
        StoreOutdated, match=r"at revision 0003, .*needs revision \d{4}: run `dane db upgrade`"
    ):
        await migrate.check(store)


@pytest.mark.parametrize("act", [migrate.check, migrate.upgrade, migrate.downgrade])
async def test_a_store_of_a_newer_dane_is_left_alone(
    store: Store, act: Callable[[Store], Awaitable[None]]
) -> None:
    """An old server would not know what its new columns are for."""
    await migrate.upgrade(store)
    tables = await definition(store)
    await _say(store, "4711")

    with pytest.raises(
        StoreOutdated,
        match=r"revision 4711, which .* not know \(it needs revision \d{4}\).*`dane db upgrade`",
    ):
        await act(store)

    assert await migrate.revision(store) == "4711"
    assert await definition(store) == tables


async def test_an_upgrade_keeps_what_is_stored(store: Store) -> None:
    """Each start of an embedded DANE upgrades."""
    await migrate.upgrade(store)
    async with store.engine.begin() as connection:
        await connection.execute(sa.text("INSERT INTO secret VALUES ('token', 'x')"))

    await migrate.upgrade(store)

    async with store.engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT value FROM secret")) == "x"


# --- one at a time ------------------------------------------------------------------------------


async def test_two_stores_are_upgraded_at_once_in_one_process(store: Store, tmp_path: Path) -> None:
    """Alembic's globals belong to one migration; the other must not end up on its connection."""
    async with open_store(f"sqlite+aiosqlite:///{tmp_path / 'second.sqlite'}") as second:
        await asyncio.gather(migrate.upgrade(store), migrate.upgrade(second))

        await migrate.check(store)
        await migrate.check(second)
        assert len(await definition(store)) >= len(metadata.tables)
        assert len(await definition(second)) >= len(metadata.tables)


@pytest.mark.services
async def test_on_mariadb_an_upgrade_waits_while_another_server_migrates(mariadb: Store) -> None:
    async with mariadb.engine.connect() as other:
        await other.execute(sa.text("SELECT GET_LOCK('dane.migrate', 10)"))
        upgrade = asyncio.create_task(migrate.upgrade(mariadb))
        await _waits_for_the_lock(mariadb)

        assert await definition(mariadb) == []
        await other.execute(sa.text("SELECT RELEASE_LOCK('dane.migrate')"))
    await upgrade
    await migrate.check(mariadb)


async def _waits_for_the_lock(store: Store) -> None:
    query = sa.text("SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'")
    async with asyncio.timeout(30), store.engine.connect() as connection:
        while not await connection.scalar(query):
            pass


@pytest.mark.services
async def test_on_mariadb_an_upgrade_gives_up_when_the_other_takes_too_long(
    mariadb: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_SECONDS", 0)
    async with mariadb.engine.connect() as other:
        await other.execute(sa.text("SELECT GET_LOCK('dane.migrate', 10)"))

        with pytest.raises(StoreUnreachable, match="another server has been changing"):
            await migrate.upgrade(mariadb)


@pytest.mark.services
async def test_on_mariadb_the_lock_is_given_back(mariadb: Store) -> None:
    await migrate.upgrade(mariadb)

    async with mariadb.engine.connect() as connection:
        assert await connection.scalar(sa.text("SELECT GET_LOCK('dane.migrate', 10)")) == 1
        await connection.execute(sa.text("SELECT RELEASE_LOCK('dane.migrate')"))


@pytest.mark.services
async def test_on_mariadb_a_statement_may_take_longer_than_that_of_a_request(
    mariadb: Store,
) -> None:
    async with migrate._connection(mariadb) as connection:
        limit = await connection.scalar(sa.text("SELECT @@SESSION.max_statement_time"))

    assert limit == 0


# --- faults -------------------------------------------------------------------------------------


async def test_a_store_that_does_not_answer_is_said_to_be_unreachable() -> None:
    async with open_store("mysql+asyncmy://dane:dane@127.0.0.1:1/dane") as store:
        with pytest.raises(StoreUnreachable, match="does not answer"):
            await migrate.upgrade(store)
        with pytest.raises(StoreUnreachable, match="does not answer"):
            await migrate.check(store)


async def test_a_refused_statement_is_told_with_its_reason_and_the_command(store: Store) -> None:
    """Mostly a database user who may not create tables."""
    async with store.engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE job (id INTEGER)"))

    with pytest.raises(StoreOutdated, match=r"stopped: .*status.*`dane db upgrade`"):
        await migrate.upgrade(store)


# --- manners ------------------------------------------------------------------------------------


async def test_an_upgrade_prints_nothing_and_leaves_logging_as_it_was(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("dane_server.anything")
    before = (logging.root.level, list(logging.root.handlers), log.disabled, log.level)

    await migrate.upgrade(store)

    after = (logging.root.level, list(logging.root.handlers), log.disabled, log.level)
    assert after == before
    assert capsys.readouterr() == ("", "")


def test_the_migrations_are_found_in_a_checkout(tmp_path: Path) -> None:
    assert migrate.find_migrations(tmp_path / "dane_server") == tmp_path / "migrations"


def test_the_migrations_are_found_where_a_wheel_puts_them(tmp_path: Path) -> None:
    """Beside an installed package somebody else's migrations may lie."""
    installed = tmp_path / "dane_server" / "_migrations"
    installed.mkdir(parents=True)
    (tmp_path / "migrations").mkdir()

    assert migrate.find_migrations(tmp_path / "dane_server") == installed
