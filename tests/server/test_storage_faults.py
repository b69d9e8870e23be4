"""A database that forgets to answer, falls silent, takes no writes, or has no place left."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import InternalError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import BadSettings, DaneError, OutcomeUnknown, StoreUnreachable
from dane_core.exchange.memory import MemoryExchange
from dane_core.states import JobStatus
from dane_server.graph import Graph
from dane_server.runner import submit
from dane_server.runner.arguments import Arguments
from dane_server.runner.runner import Runner
from dane_server.runner.submit import Folders
from dane_server.storage import engine, tables
from dane_server.storage.access import Access
from dane_server.storage.engine import Store, open_store
from dane_server.storage.view import Once, Submitted
from tests.server.audit import audit
from tests.server.ledger import Ledger, answer, parallel, sequence, spec
from tests.server.scripted import HASTY, PATIENT, at_work
from tests.server.stores import empty_store
from tests.server.transactions import none_holds_rows
from tests.services.mariadb import execute
from tests.services.proxy import Proxy, proxy_to

SECRETS = tables.secrets
#: In every transaction that stores a job.
NEW_JOB = b"INSERT INTO job"


async def add(connection: AsyncConnection, name: str) -> None:
    await connection.execute(sa.insert(SECRETS).values(name=name, value="0"))


async def names(store: Store) -> list[str]:
    async def unit(connection: AsyncConnection) -> list[str]:
        return sorted(await connection.scalars(sa.select(SECRETS.c.name)))

    return await store.read(unit)


@pytest.fixture
async def wire(mysql_url: str) -> AsyncIterator[Proxy]:
    async with proxy_to(mysql_url) as proxy:
        yield proxy


@pytest.fixture
async def wired(wire: Proxy, mariadb_url: str) -> AsyncIterator[Store]:
    """An empty store behind the wire. Nobody waits long for it."""
    del mariadb_url  # has the tables
    async with empty_store(wire.url, tables=True) as store:
        yield store


# --- a commit that nobody acknowledged --------------------------------------------------------


@pytest.mark.services
async def test_a_commit_that_is_not_acknowledged_is_neither_yes_nor_no(
    wire: Proxy, wired: Store
) -> None:
    """It is not run again either: only its author knows whether that is harmless."""
    runs = 0

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await add(connection, "a")

    wire.drop_after_commit()
    with pytest.raises(OutcomeUnknown, match="did not acknowledge"):
        await wired.write(unit)

    assert runs == 1
    assert await names(wired) == ["a"]


@pytest.mark.services
async def test_a_connection_that_is_cut_before_its_commit_is_tried_again(
    wire: Proxy, wired: Store
) -> None:
    """The database rolls back what it held; the second try happens, once."""
    runs = 0

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await add(connection, "a")
        if runs == 1:
            wire.cut()
        await add(connection, "b")

    await wired.write(unit)

    assert runs == 2
    assert await names(wired) == ["a", "b"]


def runner_on(store: Store) -> Runner:
    return Runner(
        access=Access.to(store),
        exchange=MemoryExchange(),
        folders=Folders(temp=Path("/srv/TEMP"), out=Path("/srv/OUT")),
        pace=PATIENT,
    )


async def submit_all(runner: Runner, *keys: str | None) -> list[Submitted | DaneError]:
    """Submit a job for each, all at once: they go into one transaction, but for the first."""

    async def one(place: int, key: str | None) -> Submitted | DaneError:
        once = Once(key=key, digest="0" * 64) if key else None
        try:
            return await runner.submit(spec("A", source_id=f"S{place}"), once=once)
        except DaneError as error:
            return error

    return await asyncio.gather(*(one(place, key) for place, key in enumerate(keys)))


async def count_jobs(store: Store) -> int:
    async def unit(connection: AsyncConnection) -> int:
        found = await connection.scalars(sa.select(sa.func.count()).select_from(tables.jobs))
        return int(found.one())

    return await store.read(unit)


@pytest.mark.services
async def test_a_job_with_a_key_is_stored_once_whatever_became_of_its_commit(
    wire: Proxy, wired: Store
) -> None:
    """And its sender learns which job it is, as if nothing had happened."""
    runner = runner_on(wired)

    wire.drop_after_commit(NEW_JOB)
    [told] = await submit_all(runner, "k")
    [again] = await submit_all(runner, "k")

    assert wire.dropped.is_set()
    assert isinstance(told, Submitted)
    assert isinstance(again, Submitted)
    assert again.job_id == told.job_id
    assert await count_jobs(wired) == 1


@pytest.mark.services
async def test_a_job_without_a_key_is_not_stored_twice_and_its_sender_is_told_so(
    wire: Proxy, wired: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside one with a key, in the same transaction: they were ready to be stored at once."""
    runner = runner_on(wired)
    await submit_all(runner, None)
    ready = asyncio.Barrier(3)

    async def check(_: Arguments, graphs: Sequence[Graph]) -> list[None]:
        await ready.wait()
        return [None for _ in graphs]

    monkeypatch.setattr(Arguments, "check", check)
    wire.drop_after_commit(b"S1")
    _, keyed, bare = await submit_all(runner, "first", "k", None)

    assert isinstance(keyed, Submitted)
    assert isinstance(bare, OutcomeUnknown)
    assert await count_jobs(wired) == 4  # it was kept, and nobody made a second of it


@pytest.mark.services
async def test_a_store_that_stays_away_after_a_commit_leaves_it_unknown(
    wire: Proxy, wired: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "_PATIENCE", 0.3)
    monkeypatch.setattr(submit, "_PAUSE", 0.05)
    runner = runner_on(wired)
    wire.drop_after_commit(NEW_JOB)

    asking = asyncio.create_task(submit_all(runner, "k"))
    await wire.dropped.wait()
    wire.refuse()
    [told] = await asking
    wire.mend()
    [again] = await submit_all(runner, "k")

    assert isinstance(told, OutcomeUnknown)
    assert isinstance(again, Submitted)
    assert await count_jobs(wired) == 1


@pytest.mark.services
@pytest.mark.parametrize("act", ["record", "claim", "cancel", "delete"])
async def test_work_whose_commit_was_not_acknowledged_can_be_done_again(
    act: str, wire: Proxy, wired: Store
) -> None:
    """Every unit says which state it believes in, so its second time changes nothing."""
    ledger = Ledger.of(wired)
    job = await ledger.submit(sequence(parallel("A", "B"), "C"))
    claims = await ledger.send()

    async def do() -> None:
        if act == "record":
            await ledger.record(*map(answer, claims), window=10)
        elif act == "claim":
            await ledger.record(*map(answer, claims))
            await ledger.claim()
        elif act == "cancel":
            await ledger.acts.cancel_job(job)
        else:
            await ledger.acts.delete_job(job)

    if act == "claim":
        await ledger.record(*map(answer, claims))
    wire.drop_after_commit()
    with pytest.raises(OutcomeUnknown):
        await do()
    await ledger.acts.finish_walks()
    with suppress(DaneError):
        await do()

    if act == "delete":
        assert await count_jobs(wired) == 0
        return
    assert await audit(wired, job) == []
    await ledger.finish(job)
    assert await audit(wired, job) == []
    assert await ledger.status(job) is JobStatus.SUCCEEDED


# --- silence ----------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.parametrize("where", ["idle", "new", "in a statement", "in a long write"])
async def test_silence_is_given_up_and_leaves_a_pool_of_full_size(
    where: str, wire: Proxy, mariadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a ping, in a handshake, while an answer is awaited, while nothing is taken any more."""
    del mariadb_url
    size = engine._WRITERS + engine._READERS
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(wire.url))
        if where != "new":
            await _all_in_use(store)
        usual, store._connecting = store._connecting, 0.5
        monkeypatch.setattr(engine, "_UNIT_SECONDS", 1.5)

        async def unit(connection: AsyncConnection) -> None:
            if where in ("in a statement", "in a long write"):
                wire.silence()
            text = "x" * (12_000_000 if where == "in a long write" else 1)
            await connection.execute(sa.select(sa.func.length(sa.literal(text))))

        if where in ("idle", "new"):
            wire.silence()
        began = asyncio.get_running_loop().time()
        outcomes = await asyncio.gather(
            *(store.read(unit) for _ in range(size)),
            *(store.write(unit) for _ in range(size)),
            return_exceptions=True,
        )
        took = asyncio.get_running_loop().time() - began
        wire.mend()

        assert [o for o in outcomes if not isinstance(o, StoreUnreachable)] == []
        assert took < 5
        store._connecting = usual
        monkeypatch.undo()
        wire.cut()
        await _all_in_use(store)


async def _all_in_use(store: Store) -> None:
    """Use as many connections at once as there may be."""

    async def together(access: Any, size: int) -> None:
        meeting = asyncio.Barrier(size)

        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sa.select(1))
            await meeting.wait()

        await asyncio.gather(*(access(unit) for _ in range(size)))

    async with asyncio.timeout(30):
        await together(store.write, engine._WRITERS)
        await together(store.read, engine._READERS)


async def test_who_asks_is_answered_in_time_even_by_work_that_misses_its_end(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool can lose the cancellation of who waits for it (`asyncio.wait_for`, Python 3.11)."""
    monkeypatch.setattr(engine, "_UNIT_SECONDS", 0.2)
    monkeypatch.setattr(engine, "_MISSED_SECONDS", 0.1)

    async def deaf(connection: AsyncConnection) -> None:
        await connection.execute(sa.select(1))
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    with pytest.raises(StoreUnreachable):
        await store.read(deaf)
    with pytest.raises(OutcomeUnknown):
        await store.write(deaf)

    monkeypatch.setattr(engine, "_UNIT_SECONDS", 5)
    await store.write(lambda connection: add(connection, "a"))
    assert await names(store) == ["a"]


@pytest.mark.services
async def test_a_server_that_is_frozen_in_a_transaction_loses_its_locks(
    mariadb_store: Store, mariadb_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP, or a network that has forgotten it. When it wakes it does its work after all."""
    await mariadb_store.write(lambda connection: add(connection, "x"))
    touch = sa.update(SECRETS).where(SECRETS.c.name == "x")
    held, awake = asyncio.Event(), asyncio.Event()

    async def freeze(connection: AsyncConnection) -> None:
        await connection.execute(touch.values(value="frozen"))
        held.set()
        await awake.wait()
        await connection.execute(touch.values(value="woken"))

    async def read(connection: AsyncConnection) -> str:
        return str((await connection.scalars(sa.select(SECRETS.c.value))).one())

    monkeypatch.setattr(engine, "_STATEMENT_SECONDS", 1)
    async with open_store(mariadb_url) as frozen:
        freezing = asyncio.create_task(frozen.write(freeze))
        await held.wait()

        async with asyncio.timeout(10):
            await mariadb_store.write(lambda c: c.execute(touch.values(value="others")))

        assert await mariadb_store.read(read) == "others"
        awake.set()
        await freezing
        assert await mariadb_store.read(read) == "woken"


@pytest.mark.services
async def test_a_runner_goes_on_when_the_database_is_back(wire: Proxy, wired: Store) -> None:
    ledger = Ledger.of(wired)
    async with at_work(ledger, pace=HASTY) as office:
        await office.hire("A", "B")
        before = await office.submit(sequence(*["A", "B"] * 4))
        wire.refuse()
        with pytest.raises(StoreUnreachable):
            await office.submit("A")
        wire.mend()

        after = await office.submit(sequence("A", "B"))
        await office.ended(after)
        await office.ended(before)

    assert [await audit(wired, job) for job in (before, after)] == [[], []]


# --- faults nobody foresaw -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OperationalError, InternalError])
async def test_a_fault_of_the_database_that_nobody_foresaw_is_no_bug_of_ours(
    kind: type[OperationalError] | type[InternalError], store: Store
) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await connection.execute(sa.select(1))
        raise kind("UPDATE", {}, Exception(1030, "Got error 28 from storage engine"))

    for access in (store.read, store.write):
        with pytest.raises(StoreUnreachable, match="error 28"):
            await access(unit)


async def test_what_cannot_be_serialized_is_run_again_whatever_its_number(store: Store) -> None:
    """SQLSTATE 40001 says so, in words of which there may be new ones."""
    runs = 0

    class Conflict(Exception):
        sqlstate = "40001"

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await add(connection, "a")
        if runs == 1:
            raise OperationalError("UPDATE", {}, Conflict(4999, "again, please"))

    await store.write(unit)

    assert runs == 2
    assert await names(store) == ["a"]


async def test_a_full_sqlite_disk_refuses_writes_and_nothing_else(sqlite_store: Store) -> None:
    ledger = Ledger.of(sqlite_store)
    job = await ledger.submit("A")

    async def limit(pages: int) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        await sqlite_store.write(unit)

    async def fill() -> None:
        for number in range(1000):
            await ledger.submit("A", source_id=f"S{number}")

    await limit(1)
    with pytest.raises(StoreUnreachable, match="full"):
        await fill()
    assert await ledger.status(job) is JobStatus.ACCEPTED
    await limit(1_000_000)

    await ledger.answer_all()
    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(sqlite_store, job) == []


@pytest.mark.services
async def test_a_database_that_is_read_only_is_read_and_written_again_later(
    database: Any,
) -> None:
    """As after a failover. An administrator could still write; DANE should not be one."""
    statements = [
        "CREATE DATABASE IF NOT EXISTS plain CHARACTER SET utf8mb4",
        "CREATE USER IF NOT EXISTS 'plain'@'127.0.0.1' IDENTIFIED BY 'x'",
        "GRANT ALL PRIVILEGES ON plain.* TO 'plain'@'127.0.0.1'",
    ]
    await asyncio.to_thread(execute, database.url, statements)
    url = sa.engine.make_url(database.url).set(username="plain", password="x", database="plain")
    async with empty_store(url.render_as_string(hide_password=False)) as store:
        ledger = Ledger.of(store)
        async with at_work(ledger, pace=PATIENT) as office:
            await office.hire("A")
            job = await office.submit("A")
            await office.ended(job)
            await asyncio.to_thread(execute, database.url, ["SET GLOBAL read_only=1"])

            with pytest.raises(StoreUnreachable, match="read-only"):
                await office.submit("A")
            assert await ledger.status(job) is JobStatus.SUCCEEDED

            await asyncio.to_thread(execute, database.url, ["SET GLOBAL read_only=0"])
            await office.ended(await office.submit("A"))


@pytest.mark.parametrize("place", ["", "/", "/:memory:", "/file::memory:?cache=shared&uri=true"])
async def test_a_database_in_memory_is_refused(place: str) -> None:
    """Each connection would have one of its own, or all would be in one transaction."""
    with pytest.raises(BadSettings, match=r"STORE\.URL"):
        async with open_store(f"sqlite+aiosqlite://{place}"):
            raise AssertionError("opened")


async def test_who_reads_a_sqlite_file_never_checkpoints_it(sqlite_store: Store) -> None:
    """Two connections that do so at once can corrupt it, before SQLite 3.51.3."""

    async def settings(connection: AsyncConnection) -> list[Any]:
        pragmas = ("wal_autocheckpoint", "query_only")
        return [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in pragmas]

    assert await sqlite_store.read(settings) == [0, 1]
    async with sqlite_store.apart() as apart:
        assert await apart.read(settings) == [0, 1]


# --- those who ask too much ------------------------------------------------------------------


async def test_slow_questions_leave_the_runner_its_connections(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks one more is refused soon; jobs go on meanwhile, by connections of their own."""
    monkeypatch.setattr(engine, "_POOL_SECONDS", 0.2)
    url = store.engine.url.render_as_string(hide_password=False)
    if store.engine.dialect.name == "sqlite":
        url = url.replace("dane.sqlite", "other.sqlite")
    go_on = asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        await connection.execute(sa.select(1))
        await go_on.wait()

    async with empty_store(url) as asked, asked.apart() as apart:
        questions = [asyncio.create_task(asked.read(slow)) for _ in range(engine._READERS)]
        with pytest.raises(StoreUnreachable):
            await asyncio.gather(*(names(asked) for _ in range(engine._READERS)))

        ledger = Ledger.of(apart)
        job = await ledger.submit(sequence("A", "B"))
        await ledger.answer_all()
        await ledger.answer_all()
        assert await ledger.status(job) is JobStatus.SUCCEEDED
        go_on.set()
        await asyncio.gather(*questions, return_exceptions=True)


async def test_what_is_apart_shares_the_one_writer_of_a_sqlite_file(sqlite_store: Store) -> None:
    """Two writers could corrupt the file; and closing one must not take it from the other."""
    async with sqlite_store.apart() as apart:
        await apart.write(lambda connection: add(connection, "a"))
        assert apart.engine is sqlite_store.engine

    await sqlite_store.write(lambda connection: add(connection, "b"))
    assert await names(sqlite_store) == ["a", "b"]


@pytest.mark.services
async def test_people_who_hang_up_leave_no_locks_and_get_nobody_elses_rows(
    mariadb_store: Store,
) -> None:
    """Requests that are cancelled at random: between any two steps, or never."""
    ledger = Ledger.of(mariadb_store)
    runner = runner_on(mariadb_store)
    jobs = [await ledger.submit("A", source_id=f"S{n}") for n in range(20)]
    dice = random.Random(1)

    async def ask(place: int) -> bool:
        return (await ledger.reader.job(jobs[place])).source_id == f"S{place}"

    async def post(number: int) -> bool:
        once = Once(key=f"k{number}", digest="0" * 64)
        stored = await runner.submit(spec("A", source_id=f"N{number}"), once=once)
        return (await ledger.reader.job(stored.job_id)).source_id == f"N{number}"

    async def impatient(number: int) -> bool | None:
        asks = post(number) if number % 4 == 0 else ask(number % len(jobs))
        asking = asyncio.create_task(asks)
        for _ in range(dice.randint(0, 30)):
            await asyncio.sleep(0)
        if dice.random() < 0.7:
            asking.cancel()
        with suppress(asyncio.CancelledError):
            return await asking
        return None

    async def one_after_another(numbers: Sequence[int]) -> list[bool | None]:
        return [await impatient(number) for number in numbers]

    numbers = range(600)
    told = await asyncio.gather(*(one_after_another(numbers[n::20]) for n in range(20)))

    outcomes = [outcome for some in told for outcome in some]
    assert False not in outcomes
    assert outcomes.count(True) > 50
    assert outcomes.count(None) > 50
    await _all_in_use(mariadb_store)
    await none_holds_rows(mariadb_store)
    again = [await post(number) for number in numbers[:40:4]]  # by the keys of those who hung up
    assert again == [True] * 10
    assert await count_jobs(mariadb_store) <= len(jobs) + len(numbers) // 4
