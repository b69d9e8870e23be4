"""Statements that wait for the next one: what is sent together, and what becomes of faults."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from asyncmy.errors import OperationalError
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import StoreUnreachable
from dane_server.storage import mariadb
from dane_server.storage.engine import Store, open_store
from dane_server.storage.functions import among, now
from dane_server.storage.trip import ask, defer, read
from tests.server.wire import trips_of
from tests.services.proxy import Way, proxy_to

#: As large as any table, and nobody's.
words = sa.Table(
    "waiting_word",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("word", sa.Text),
    sa.Column("flag", sa.Boolean),
    sa.Column("real", sa.Double),
    sa.Column("large", sa.BigInteger),
    sa.Column("at", sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql")),
    mysql_charset="utf8mb4",
)
add = sa.insert(words)
put = sa.update(words).where(words.c.id == sa.bindparam("number")).values(word=sa.bindparam("new"))
some = sa.select(words).where(among(words.c.id, sa.bindparam("ids"))).order_by(words.c.id)


@asynccontextmanager
async def _with_words(store: Store) -> AsyncIterator[Store]:
    async with store.engine.begin() as connection:
        await connection.run_sync(words.metadata.create_all)
    yield store
    async with store.engine.begin() as connection:
        await connection.run_sync(words.metadata.drop_all)


@pytest.fixture
async def on_mariadb(mariadb_store: Store) -> AsyncIterator[Store]:
    async with _with_words(mariadb_store):
        yield mariadb_store


@pytest.fixture
async def on_each(store: Store) -> AsyncIterator[Store]:
    async with _with_words(store):
        yield store


async def all_words(store: Store) -> list[tuple[int, str]]:
    async def unit(connection: AsyncConnection) -> list[tuple[int, str]]:
        found = await connection.execute(sa.select(words.c.id, words.c.word).order_by(words.c.id))
        return [(row.id, row.word) for row in found]

    return await store.read(unit)


def row(number: int, word: str | None = "") -> dict[str, Any]:
    return {"id": number, "word": word}


# --- what is sent together ----------------------------------------------------------------------


async def test_what_waits_goes_along_with_the_next_question(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> list[str]:
        await defer(connection, add, [row(1, "a"), row(2, "b")])
        await defer(connection, put, {"number": 1, "new": "c"})
        return [found.word for found in await read(connection, some, {"ids": [1, 2]})]

    with trips_of(on_mariadb) as trips:
        found = await on_mariadb.write(unit)

    assert found == ["c", "b"]
    assert [len(trip) for trip in trips] == [3]


async def test_what_waits_goes_along_with_what_sqlalchemy_asks(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> Any:
        await defer(connection, add, row(1, "a"))
        return await connection.scalar(sa.select(words.c.word))

    assert await on_mariadb.write(unit) == "a"


async def test_what_waits_goes_along_with_the_commit(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await defer(connection, add, row(1, "a"))
        await defer(connection, put, {"number": 1, "new": "b"})

    with trips_of(on_mariadb) as trips:
        await on_mariadb.write(unit)

    assert [trip[-1] for trip in trips] == ["COMMIT"]
    assert await all_words(on_mariadb) == [(1, "b")]


async def test_several_questions_are_one_trip(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> Any:
        await defer(connection, add, [row(1, "a"), row(2, "b")])
        return await ask(
            connection, (some, {"ids": [2]}), (some, {"ids": [3]}), (some, {"ids": [1]})
        )

    with trips_of(on_mariadb) as trips:
        found = await on_mariadb.write(unit)

    assert [[one.word for one in rows] for rows in found] == [["b"], [], ["a"]]
    assert len(trips) == 1


async def test_what_is_too_large_to_wait_does_not(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        for number in range(3):
            await defer(connection, add, [row(5 * number + n, "x" * 30_000) for n in range(5)])

    with trips_of(on_mariadb) as trips:
        await on_mariadb.write(unit)

    assert [len(trip) for trip in trips] == [2, 2]
    assert len(await all_words(on_mariadb)) == 15


# --- faults -------------------------------------------------------------------------------------


async def test_what_fails_while_it_waits_fails_all_of_its_transaction(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await defer(connection, add, row(1, "a"))
        await defer(connection, add, row(1, "again"))
        await defer(connection, add, row(2, "b"))

    with pytest.raises(IntegrityError):
        await on_mariadb.write(unit)

    assert await all_words(on_mariadb) == []


async def test_what_fails_with_the_commit_is_undone_before_others_have_the_connection(
    on_mariadb: Store,
) -> None:
    """The text ended where it failed: somebody else would commit what came before that."""

    async def failing(connection: AsyncConnection) -> None:
        await defer(connection, add, row(1, "half"))
        await read(connection, some, {"ids": [1]})
        await defer(connection, add, row(1, "again"))

    with pytest.raises(IntegrityError):
        await on_mariadb.write(failing)
    await asyncio.gather(*[on_mariadb.write(_other(number)) for number in range(2, 12)])

    assert [number for number, _ in await all_words(on_mariadb)] == [*range(2, 12)]


async def test_a_lock_that_is_not_had_for_the_commit_runs_all_of_the_unit_again(
    on_mariadb: Store,
) -> None:
    """MariaDB undoes only the statement that waited: a second try must not see its first half."""
    await on_mariadb.write(_other(1))
    seen = []

    async def unit(connection: AsyncConnection) -> None:
        seen.append([one.id for one in await read(connection, some, {"ids": [1, 2]})])
        await defer(connection, add, row(2))
        await read(connection, some, {"ids": [2]})
        await defer(connection, put, {"number": 1, "new": "mine"})

    async with on_mariadb.engine.begin() as holder:
        await holder.execute(put, {"number": 1, "new": "theirs"})
        waiting = asyncio.create_task(on_mariadb.write(unit))
        while len(seen) < 2:  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.05)
    await waiting

    assert seen[0] == seen[-1] == [1]
    assert await all_words(on_mariadb) == [(1, "mine"), (2, "")]


async def test_a_question_that_is_given_up_leaves_no_dead_connection(on_mariadb: Store) -> None:
    nap = sa.select(sa.func.sleep(30))

    async def unit(connection: AsyncConnection) -> None:
        await read(connection, nap, {})

    for _ in range(3):
        with pytest.raises(StoreUnreachable):
            await on_mariadb.write(unit, patience=0.3)
    await asyncio.gather(*[on_mariadb.write(_other(number)) for number in range(10)])

    assert len(await all_words(on_mariadb)) == 10


async def test_a_connection_that_is_lost_under_a_question_is_worth_another(
    mariadb_url: str,
) -> None:
    tries = 0
    nap = sa.select(sa.func.sleep(5))

    async with proxy_to(mariadb_url) as proxy, open_store(proxy.url) as store:

        async def unit(connection: AsyncConnection) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                asyncio.get_running_loop().call_later(0.1, proxy.cut)
                await read(connection, nap, {})

        await store.write(unit)

    assert tries == 2


async def test_connections_that_were_all_cut_cost_a_unit_nothing(
    mariadb_url: str, on_mariadb: Store
) -> None:
    """Each is found out when it is used next; there are five."""
    async with proxy_to(mariadb_url) as proxy, open_store(proxy.url) as store:
        together = asyncio.Barrier(5)

        def one(number: int) -> Any:
            async def unit(connection: AsyncConnection) -> None:
                await read(connection, some, {"ids": [number]})
                if number < 5:
                    await together.wait()
                await defer(connection, add, row(number))

            return unit

        await asyncio.gather(*[store.write(one(number)) for number in range(5)])
        proxy.cut()
        await store.write(one(5))

    assert len(await all_words(on_mariadb)) == 6


async def test_a_fault_of_a_question_is_one_of_sqlalchemy(on_mariadb: Store) -> None:
    """Whoever runs units again knows those."""
    gone = sa.select(sa.table("nowhere", sa.column("id")).c.id)

    async def unit(connection: AsyncConnection) -> None:
        await read(connection, gone, {})

    with pytest.raises(ProgrammingError):
        await on_mariadb.write(unit)


async def test_what_waits_is_forgotten_with_its_transaction(on_mariadb: Store) -> None:
    """The next user of the connection must not execute it."""

    async def failing(connection: AsyncConnection) -> None:
        await defer(connection, add, row(1, "a"))
        raise OSError(errno.EIO, "it fails")

    for _ in range(6):  # more than there are connections
        with pytest.raises(StoreUnreachable):
            await on_mariadb.write(failing)
    await asyncio.gather(*[on_mariadb.write(_other(number)) for number in range(2, 8)])

    assert [number for number, _ in await all_words(on_mariadb)] == [*range(2, 8)]


def _other(number: int) -> Any:
    async def unit(connection: AsyncConnection) -> None:
        await defer(connection, add, row(number))

    return unit


async def test_a_deadlock_of_what_waited_runs_the_unit_again(on_mariadb: Store) -> None:
    await on_mariadb.write(_other(1))
    await on_mariadb.write(_other(2))
    both = asyncio.Barrier(2)
    tries = 0

    def crossing(first: int, second: int) -> Any:
        async def unit(connection: AsyncConnection) -> None:
            nonlocal tries
            tries += 1
            await defer(connection, put, {"number": first, "new": f"{first}"})
            await read(connection, some, {"ids": [first]})
            if tries <= 2:
                await both.wait()
            await defer(connection, put, {"number": second, "new": f"{first}"})

        return unit

    await asyncio.gather(on_mariadb.write(crossing(1, 2)), on_mariadb.write(crossing(2, 1)))

    assert tries == 3
    [(_, one), (_, other)] = await all_words(on_mariadb)
    assert one == other


async def test_a_database_that_falls_silent_is_lost_after_the_patience_for_a_trip(
    mariadb_url: str,
) -> None:
    async with proxy_to(mariadb_url) as proxy:
        url = make_url(proxy.url)
        connection = await mariadb.connect(
            read_timeout=0.3,
            user=url.username,
            password=url.password or "",
            host=url.host,
            port=url.port,
            db=url.database,
        )
        await connection.query("SELECT 1")
        proxy.silence(Way.DOWN)
        connection.keep("DO 1")

        with pytest.raises(OperationalError, match="silent"):
            await connection.query("SELECT 1")

        assert not connection.connected


async def test_nothing_waits_where_there_is_no_transaction(on_mariadb: Store) -> None:
    """It would wait for whoever uses the connection next."""

    async def unit(connection: AsyncConnection) -> None:
        await defer(connection, add, row(1))

    with pytest.raises(TypeError):
        await on_mariadb.read(unit)


async def test_a_value_that_is_missing_is_found_out(on_mariadb: Store) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await defer(connection, put, {"number": 1})

    with pytest.raises(TypeError, match="new"):
        await on_mariadb.write(unit)


# --- values, on both databases -------------------------------------------------------------------

_NASTY = [
    *("%", "%s", "%(x)s", "a'b", 'a"b', "a\\b", "a\\", ";\n", "-- x", "/*"),
    *("\x00", "\n\r\t\x1a", "😀", "é", ":x", "?"),
]


async def test_values_arrive_as_they_are(on_each: Store) -> None:
    rows = [row(number, word) for number, word in enumerate([*_NASTY, None, ""])]

    async def unit(connection: AsyncConnection) -> Any:
        await defer(connection, add, rows[:5])
        for one in rows[5:]:
            await defer(connection, add, one)
        return await read(connection, some, {"ids": [one["id"] for one in rows]})

    assert [found.word for found in await on_each.write(unit)] == [one["word"] for one in rows]


async def test_values_of_other_kinds_arrive_as_they_are(on_each: Store) -> None:
    given: list[dict[str, Any]] = [
        {"id": 1, "flag": True, "real": 0.1, "large": 2**63 - 1, "at": datetime(2026, 1, 2, 3, 4, 5, 678901)},  # noqa: E501, DTZ001
        {"id": 2, "flag": False, "real": 1e300, "large": -(2**63), "at": None},
        {"id": 3, "flag": None, "real": 1.0, "large": 1, "at": None},
        {"id": 4, "flag": True, "real": 1, "large": 0, "at": datetime(2026, 1, 1)},  # noqa: DTZ001
    ]  # fmt: skip

    async def unit(connection: AsyncConnection) -> Any:
        await defer(connection, add, given)
        return await read(connection, some, {"ids": (1, 2, 3, 4)})

    found = await on_each.write(unit)
    assert [
        {"id": one.id, "flag": one.flag, "real": one.real, "large": one.large, "at": one.at}
        for one in found
    ] == given


async def test_an_insert_gives_what_the_database_made_of_each_row(on_each: Store) -> None:
    made = sa.insert(words).values(at=now()).returning(words.c.id, words.c.at)

    async def unit(connection: AsyncConnection) -> Any:
        return await read(connection, made, [row(1, "(a)"), row(2, ") RETURNING (")])

    found = await on_each.write(unit)
    assert sorted(one.id for one in found) == [1, 2]
    assert None not in [one.at for one in found]


async def test_a_list_may_be_empty_and_of_pairs(on_each: Store) -> None:
    pairs = sa.select(words.c.id).where(
        among(sa.tuple_(words.c.id, words.c.word), sa.bindparam("pairs"))
    )

    async def unit(connection: AsyncConnection) -> Any:
        await defer(connection, add, [row(1, "a"), row(2, "b")])
        return [
            [one.id for one in await read(connection, some, {"ids": []})],
            [one.id for one in await read(connection, pairs, {"pairs": [(1, "a"), (2, "a")]})],
        ]

    assert await on_each.write(unit) == [[], [1]]
