"""Transactions whole or not at all, whatever interrupts them: deadlocks, callers, cables, kill."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import NotFound, StoreTaken, StoreUnreachable
from dane_core.job import JobId
from dane_core.states import JobStatus
from dane_server.storage import engine, tables
from dane_server.storage.engine import Store, open_store
from dane_server.storage.view import JobQuery
from tests.server.audit import audit
from tests.server.ledger import Ledger, sequence
from tests.server.stores import empty_store
from tests.services.process import free_port
from tests.services.proxy import Proxy, proxy_to

SECRETS = tables.secrets


async def add(connection: AsyncConnection, name: str) -> None:
    await connection.execute(sa.insert(SECRETS).values(name=name, value="0"))


async def touch(connection: AsyncConnection, name: str) -> None:
    change = sa.update(SECRETS).where(SECRETS.c.name == name)
    await connection.execute(change.values(value=SECRETS.c.value + "1"))


async def names(store: Store) -> list[str]:
    async def unit(connection: AsyncConnection) -> list[str]:
        return sorted(await connection.scalars(sa.select(SECRETS.c.name)))

    return await store.read(unit)


async def values(store: Store) -> dict[str, str]:
    async def unit(connection: AsyncConnection) -> dict[str, str]:
        rows = await connection.execute(sa.select(SECRETS.c.name, SECRETS.c.value))
        return {row.name: row.value for row in rows}

    return await store.read(unit)


# --- one unit ---------------------------------------------------------------------------------


async def test_a_unit_that_raises_leaves_nothing_behind(store: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await add(connection, "a")
        raise NotFound("job", 1)

    with pytest.raises(NotFound):
        await store.write(unit)

    assert await names(store) == []


async def test_a_bug_is_not_taken_for_a_lost_database(store: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await add(connection, "a")
        await add(connection, "a")

    with pytest.raises(IntegrityError):
        await store.write(unit)

    assert await names(store) == []


async def test_nothing_can_be_written_where_one_only_reads(sqlite_store: Store) -> None:
    """A second writer on a SQLite file could corrupt it (see `_open_sqlite`)."""
    with pytest.raises(StoreUnreachable, match="readonly"):
        await sqlite_store.read(lambda connection: add(connection, "a"))


async def test_a_commit_on_sqlite_is_on_the_disk(sqlite_store: Store) -> None:
    async def settings(connection: AsyncConnection) -> list[Any]:
        found = [
            await connection.exec_driver_sql(f"PRAGMA {name}")
            for name in ("journal_mode", "synchronous", "busy_timeout")
        ]
        return [row.scalar() for row in found]

    assert await sqlite_store.write(settings) == ["wal", 2, 5000]


@pytest.mark.services
async def test_mariadb_sessions_are_as_the_statements_expect_them(mariadb_store: Store) -> None:
    async def settings(connection: AsyncConnection) -> tuple[Any, ...]:
        row = await connection.exec_driver_sql(
            "SELECT @@time_zone, @@innodb_lock_wait_timeout, @@max_statement_time > 0, @@sql_mode"
        )
        return (await connection.get_isolation_level(), *row.one())

    strict = "STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION"
    for access in (mariadb_store.write, mariadb_store.read):
        assert await access(settings) == ("READ COMMITTED", "+00:00", 3, 1, strict)


# --- conflicts --------------------------------------------------------------------------------


@pytest.mark.services
async def test_of_two_writers_in_a_deadlock_both_are_done_whole(mariadb_store: Store) -> None:
    """1213 rolls one back; its unit runs again from the start."""
    await mariadb_store.write(lambda connection: add(connection, "x"))
    await mariadb_store.write(lambda connection: add(connection, "y"))
    meeting = asyncio.Barrier(2)
    runs = {"forth": 0, "back": 0}

    async def cross(way: str, first: str, second: str) -> None:
        async def unit(connection: AsyncConnection) -> None:
            runs[way] += 1
            await add(connection, way)
            await touch(connection, first)
            if runs[way] == 1:
                await meeting.wait()
            await touch(connection, second)

        await mariadb_store.write(unit)

    await asyncio.gather(cross("forth", "x", "y"), cross("back", "y", "x"))

    assert sorted(runs.values()) == [1, 2]
    assert await values(mariadb_store) == {"x": "011", "y": "011", "forth": "0", "back": "0"}


@pytest.mark.services
async def test_a_unit_that_waited_too_long_for_a_lock_runs_again_whole(
    mariadb_store: Store,
) -> None:
    """1205 rolls back the statement only: committing then would keep the first half."""
    await mariadb_store.write(lambda connection: add(connection, "x"))
    held, go_on = asyncio.Event(), asyncio.Event()
    runs = 0

    async def hold(connection: AsyncConnection) -> None:
        await touch(connection, "x")
        held.set()
        await go_on.wait()

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await connection.exec_driver_sql("SET innodb_lock_wait_timeout=1")
        await add(connection, "half")
        if runs == 2:
            go_on.set()
        await touch(connection, "x")

    holding = asyncio.create_task(mariadb_store.write(hold))
    await held.wait()
    await mariadb_store.write(unit)
    await holding

    assert runs == 2
    assert await values(mariadb_store) == {"x": "011", "half": "0"}


@pytest.mark.parametrize("code", [1020, 1205, 1213, 1412])
async def test_a_conflict_that_never_ends_is_given_up(store: Store, code: int) -> None:
    runs = 0

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await add(connection, "a")
        raise OperationalError("UPDATE", {}, Exception(code, "conflict"))

    with pytest.raises(StoreUnreachable, match="conflict"):
        await store.write(unit)

    assert runs == 8
    assert await names(store) == []


async def test_writers_that_meet_on_one_row_all_get_their_turn(store: Store) -> None:
    await store.write(lambda connection: add(connection, "x"))

    await asyncio.gather(
        *(store.write(lambda connection: touch(connection, "x")) for _ in range(25))
    )

    assert await values(store) == {"x": "0" + "1" * 25}


# --- callers that go away -----------------------------------------------------------------------


async def test_a_unit_whose_caller_is_cancelled_is_finished(store: Store) -> None:
    """Its statement would run on in the server anyway, with its locks."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def unit(connection: AsyncConnection) -> None:
        await add(connection, "a")
        reached.set()
        await go_on.wait()
        await add(connection, "b")

    caller = asyncio.create_task(store.write(unit))
    await reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    await store.write(lambda connection: add(connection, "c"))
    await store.close()

    assert await names(store) == ["a", "b", "c"]


async def test_callers_that_are_cancelled_leave_every_connection_in_order(store: Store) -> None:
    """A driver that loses count gives the next caller another one's rows."""
    dice = random.Random(0)

    async def echo(number: int) -> int:
        async def unit(connection: AsyncConnection) -> int:
            for _ in range(3):
                await connection.execute(sa.select(sa.literal(-1)))
            return int((await connection.scalars(sa.select(sa.literal(number)))).one())

        return await (store.read if number % 2 else store.write)(unit)

    async def impatient(number: int) -> int | None:
        asking = asyncio.create_task(echo(number))
        if dice.random() < 0.5:
            for _ in range(dice.randint(0, 20)):
                await asyncio.sleep(0)
            asking.cancel()
        with suppress(asyncio.CancelledError):
            return await asking
        return None

    answers = await asyncio.gather(*(impatient(number) for number in range(120)))

    assert {n for n in answers if n is not None} <= set(range(120))
    assert all(n is None or n == place for place, n in enumerate(answers))
    assert answers.count(None) > 10
    await asyncio.gather(*(echo(number) for number in range(40)))
    await _all_returned(store)


async def _all_returned(store: Store) -> None:
    async with asyncio.timeout(5):
        while pools := [
            pool.checkedout()  # type: ignore[attr-defined]
            for pool in (store.engine.sync_engine.pool, store._reads.sync_engine.pool)
            if pool.checkedout()  # type: ignore[attr-defined]
        ]:
            assert pools
            await asyncio.sleep(0.01)


async def test_closing_waits_for_what_is_under_way(store: Store) -> None:
    reached = asyncio.Event()

    async def unit(connection: AsyncConnection) -> None:
        reached.set()
        for _ in range(20):
            await connection.execute(sa.select(1))
        await add(connection, "a")

    writing = asyncio.create_task(store.write(unit))
    await reached.wait()
    await store.close()

    assert writing.done()
    assert await names(store) == ["a"]


# --- databases that go away ---------------------------------------------------------------------


@pytest.fixture
async def wire(mysql_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(mysql_url) as proxy:
        yield proxy


@pytest.mark.services
async def test_a_database_that_is_not_there_is_unreachable() -> None:
    url = f"mysql+asyncmy://dane:x@127.0.0.1:{free_port()}/dane"

    async with open_store(url) as store:
        for access in (store.read, store.write):
            with pytest.raises(StoreUnreachable):
                await access(lambda connection: connection.execute(sa.select(1)))


@pytest.mark.services
async def test_a_wrong_password_is_told_as_it_is(mysql_url: str) -> None:
    url = sa.engine.make_url(mysql_url).set(password="wrong")

    async with open_store(url.render_as_string(hide_password=False)) as store:
        with pytest.raises(StoreUnreachable, match="Access denied"):
            await store.read(lambda connection: connection.execute(sa.select(1)))


@pytest.mark.services
async def test_a_cut_in_the_middle_is_unreachable_and_leaves_nothing(wire: Proxy) -> None:
    async with empty_store(wire.url) as store:

        async def unit(connection: AsyncConnection) -> None:
            await add(connection, "a")
            wire.cut()
            await add(connection, "b")

        with pytest.raises(StoreUnreachable):
            await store.write(unit)

        assert await names(store) == []


@pytest.mark.services
async def test_idle_connections_that_were_cut_are_replaced(wire: Proxy) -> None:
    """A database that was started again is no fault of the next caller."""
    async with empty_store(wire.url) as store:
        await asyncio.gather(*(names(store) for _ in range(5)))
        wire.cut()

        await asyncio.gather(*(names(store) for _ in range(5)))
        await store.write(lambda connection: add(connection, "a"))

        assert await names(store) == ["a"]


@pytest.mark.services
async def test_a_database_that_comes_back_is_used_again(wire: Proxy) -> None:
    async with empty_store(wire.url) as store:
        wire.refuse()
        for access in (store.read, store.write):
            with pytest.raises(StoreUnreachable):
                await access(lambda connection: connection.execute(sa.select(1)))
        wire.mend()

        await store.write(lambda connection: add(connection, "a"))

        assert await names(store) == ["a"]


@pytest.mark.services
async def test_a_silent_database_is_given_up(wire: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    async with empty_store(wire.url) as store:
        monkeypatch.setattr(engine, "_UNIT_SECONDS", 0.5)
        wire.silence()
        for access in (store.read, store.write):
            with pytest.raises(StoreUnreachable, match="in time"):
                await access(lambda connection: connection.execute(sa.select(1)))
        wire.mend()
        wire.cut()
        monkeypatch.setattr(engine, "_UNIT_SECONDS", 30)

        assert await names(store) == []


async def test_a_large_unit_may_take_longer_than_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_UNIT_SECONDS", 0.2)
    monkeypatch.setattr(engine, "_MISSED_SECONDS", 0.1)

    async def slow(connection: AsyncConnection) -> None:
        await connection.execute(sa.select(1))
        with suppress(TimeoutError):
            async with asyncio.timeout(0.6):
                await asyncio.Event().wait()
        await add(connection, "a")

    with pytest.raises(StoreUnreachable):
        await store.write(slow)
    await store.write(slow, patience=engine.patience_for(10_000))

    assert await names(store) == ["a"]


@pytest.mark.services
async def test_a_silent_database_is_given_up_under_a_large_unit_as_early(
    wire: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost connection is worth another only within the time that other units have."""
    async with empty_store(wire.url) as store:
        monkeypatch.setattr(engine, "_UNIT_SECONDS", 0.5)
        store._connecting = 30

        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sa.select(1))
            wire.silence()
            wire.cut()
            await connection.execute(sa.select(1))

        async with asyncio.timeout(5):
            with pytest.raises(StoreUnreachable):
                await store.write(unit, patience=60)
        wire.mend()


@pytest.mark.services
async def test_a_killed_statement_is_no_end_of_the_store(mariadb_store: Store) -> None:
    async def kill_myself(connection: AsyncConnection) -> None:
        await add(connection, "a")
        await connection.exec_driver_sql("KILL CONNECTION_ID()")

    with pytest.raises(StoreUnreachable):
        await mariadb_store.write(kill_myself)

    assert await names(mariadb_store) == []


# --- one SQLite file, one server ------------------------------------------------------------------


async def test_a_second_server_on_one_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite"

    async with open_store(url):
        with pytest.raises(StoreTaken, match="another DANE server"):
            async with open_store(url):
                raise AssertionError("opened twice")

    async with open_store(url) as again:
        await again.read(lambda connection: connection.execute(sa.select(1)))


async def test_another_process_on_one_file_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite"
    program = (
        "import asyncio\n"
        "from dane_server.storage.engine import open_store\n"
        "async def main():\n"
        f"    async with open_store({url!r}): pass\n"
        "asyncio.run(main())\n"
    )
    async with open_store(url):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True
        )

    assert done.returncode != 0
    assert "StoreTaken" in done.stderr


async def test_the_folder_of_the_file_is_made(tmp_path: Path) -> None:
    async with open_store(f"sqlite+aiosqlite:///{tmp_path}/a/b/dane.sqlite"):
        assert (tmp_path / "a" / "b" / "dane.sqlite").exists()


_WRITER = """
import asyncio, sys
from tests.server.ledger import Ledger, answer, sequence, parallel
from tests.server.stores import empty_store
from dane_server.storage.engine import open_store

async def main(url):
    async with open_store(url) as store:
        ledger = Ledger.of(store)
        while True:
            job = await ledger.submit(sequence("A", parallel("B", "C"), parallel("D", "E")))
            print("accepted", job, flush=True)
            for _ in range(2):
                await ledger.answer_all(response={"text": "x" * 2000})
            if job % 3 == 0:
                await ledger.acts.delete_job(job)
                print("deleted", job, flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_a_killed_server_leaves_a_sound_file_with_all_that_was_accepted(
    tmp_path: Path,
) -> None:
    """kill -9 at any moment; three times over one file."""
    url = f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite"
    async with empty_store(url):
        pass
    accepted: set[int] = set()
    deleted: set[int] = set()
    for lines in (2, 6, 10):
        said = await asyncio.to_thread(_write_and_be_killed, url, lines)
        accepted |= {job for word, job in said if word == "accepted"}
        deleted |= {job for word, job in said if word == "deleted"}

        async with open_store(url) as store:
            ledger = Ledger.of(store)
            assert await store.write(_integrity) == "ok"
            await ledger.acts.finish_walks()
            present = {job.id for job in (await ledger.reader.jobs(JobQuery(limit=999))).jobs}
            assert {job for job in accepted if not _is_deleted(job)} <= present
            assert not deleted & present
            assert [await audit(store, job) for job in present] == [[]] * len(present)
            for job in sorted(present)[-3:]:
                await ledger.sweeps.recover_from_lost_exchange()
                await ledger.finish(JobId(job))
                assert await ledger.status(JobId(job)) is JobStatus.SUCCEEDED


def _write_and_be_killed(url: str, lines: int) -> list[tuple[str, int]]:
    """Let a process write jobs, and kill it after some time; return what it said it had done."""
    command = [sys.executable, "-c", _WRITER, url]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout  # what it said before it died
    return [(word, int(job)) for word, job in map(str.split, said)]


def _is_deleted(job: int) -> bool:
    """As the writing process does; it may have died before it could say so."""
    return job % 3 == 0


async def _integrity(connection: AsyncConnection) -> str:
    return str((await connection.exec_driver_sql("PRAGMA integrity_check")).scalar())


async def test_a_ledger_reads_what_it_wrote(ledger: Ledger) -> None:
    """Readers have connections of their own; they must see what was committed a moment ago."""
    for _ in range(20):
        job = await ledger.submit(sequence("A", "B"))
        assert (await ledger.reader.job(job)).id == job
