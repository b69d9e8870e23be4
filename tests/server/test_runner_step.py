"""From an answer to what it held up: what is read and written on the way, and what is not."""

import asyncio
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.exchange.memory import MemoryExchange
from dane_core.message import Answer, TaskMessage
from dane_core.routing import work_queue
from dane_core.states import TaskState
from dane_server.runner import dispatch
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher, Moment
from dane_server.runner.ticket import Signer, new_secret
from dane_server.storage import engine
from dane_server.storage.engine import Store
from dane_server.storage.tables import task_keys
from dane_server.storage.view import Claim
from dane_server.storage.writer import Writer
from dane_server.supervise import Stopping, keep_running
from tests.server.ledger import Ledger, answer, parallel, sequence
from tests.server.scripted import PATIENT, at_work, done, until
from tests.server.wire import trips_of

NEVER = 3600.0


async def second_step(ledger: Ledger, *keys: str) -> Claim:
    """The second task of a chain, on its way to a worker; with the first, its key is known."""
    await ledger.submit(sequence(*keys))
    [first] = await ledger.send()
    recorded = await ledger.record(answer(first), window=10)
    [second] = recorded.claims or await ledger.send()
    return second


# --- what is recorded ---------------------------------------------------------------------------


async def test_a_step_of_a_chain_is_seven_statements(ledger: Ledger) -> None:
    """To read the task and its successor, to write both, the attempt, the answer and the job.

    MariaDB is asked twice for all of them: to read, and to write and commit.
    """
    claim = await second_step(ledger, "A", "A", "A")

    with trips_of(ledger.store) as trips:
        recorded = await ledger.record(answer(claim, response={"x": 1}), window=10)

    statements = [text for trip in trips for text in trip if text != "COMMIT"]
    assert len(statements) == 7, statements
    assert len(trips) == (2 if ledger.store.engine.dialect.name == "mysql" else 7)
    [third] = recorded.claims
    assert orjson.dumps(third.earlier) == b'[{"A":[{"x":1}]},false]'
    assert not recorded.more


async def test_a_place_that_is_not_passed_on_is_told(ledger: Ledger) -> None:
    """Somebody may have waited for it, and found none."""
    claim = await second_step(ledger, "A", "A")

    recorded = await ledger.record(answer(claim), window=10)

    assert recorded.more


async def test_a_place_is_not_passed_on_while_others_wait_for_one(ledger: Ledger) -> None:
    """A job that is at work would have its place for ever."""
    claim = await second_step(ledger, "A", "A", "A")
    await ledger.submit("A", source_id="S2")

    recorded = await ledger.record(answer(claim), window=10)

    assert recorded.claims == []
    assert recorded.more


async def test_a_place_is_passed_on_where_a_key_has_but_one(ledger: Ledger) -> None:
    claim = await second_step(ledger, "A", "A", "A")
    await ledger.store.write(lambda connection: limit(connection, concurrency=1))

    recorded = await ledger.record(answer(claim), window=1)

    assert len(recorded.claims) == 1


async def test_no_place_is_passed_on_past_a_rate(ledger: Ledger) -> None:
    claim = await second_step(ledger, "A", "A", "A", "A")
    await ledger.store.write(lambda connection: limit(connection, rate=0.001, burst=1))

    one = await ledger.record(answer(claim), window=10)
    other = await ledger.record(answer(one.claims[0]), window=10)

    assert other.claims == []


async def limit(connection: AsyncConnection, **limits: Any) -> None:
    await connection.execute(sa.update(task_keys).values(**limits))


async def test_answers_before_the_last_one_are_read(ledger: Ledger) -> None:
    """What only one task of a job has answered goes along to all behind it."""
    claim = await second_step(ledger, "B", "A", "A")

    recorded = await ledger.record(answer(claim), window=10)

    [third] = recorded.claims
    assert third.earlier is None
    assert set((await ledger.reader.responses([third]))[third.task_id][0]) == {"A", "B"}


async def test_what_was_answered_together_is_seen_by_all_behind_it(ledger: Ledger) -> None:
    """Of tasks whose key occurs once in a job, also where they come in one batch."""
    await ledger.submit(parallel(sequence("A", "C"), sequence("B", "D")))
    claims = await ledger.send()
    for key in ("C", "D"):  # known, so that they are claimed along
        await ledger.submit(key, source_id="S2")
    await ledger.answer_all()
    await ledger.submit(parallel(sequence("A", "C"), sequence("B", "D")), source_id="S3")
    claims = await ledger.send()

    recorded = await ledger.record(
        *(answer(claim, response={"of": claim.key}) for claim in claims), window=10
    )

    assert sorted(claim.key for claim in recorded.claims) == ["C", "D"]
    for claim in recorded.claims:
        known = claim.earlier or (await ledger.reader.responses([claim]))[claim.task_id]
        assert set(known[0]) == {"A", "B"}


# --- what is sent -------------------------------------------------------------------------------


async def test_a_type_that_was_found_out_meanwhile_goes_along(ledger: Ledger) -> None:
    """The rest of what messages of a job carry is kept, and never changes."""

    def script(task: TaskMessage) -> Answer:
        return done(task, **({"file_type": "image"} if task.key == "DOWNLOAD" else {}))

    async with at_work(ledger) as office:
        await office.hire("A", "DOWNLOAD", script=script)
        job = await office.submit(sequence("A", "DOWNLOAD", "A"))
        await office.ended(job)

    assert [task.type for task in office.seen] == [None, None, "image"]


async def test_a_chain_of_one_key_looks_through_the_store_at_its_ends_only(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    claim_ready = Writer.claim_ready

    async def counted(*args: Any, **named: Any) -> Any:
        nonlocal looks
        looks += 1
        return await claim_ready(*args, **named)

    monkeypatch.setattr(Writer, "claim_ready", counted)
    async with at_work(ledger) as office:
        await office.hire("A")
        job = await office.submit(sequence(*["A"] * 20))
        await office.ended(job)

    assert looks < 10


class Troubled(MemoryExchange):
    """Takes nothing while it has trouble."""

    trouble = ""

    @property
    def connected(self) -> bool:
        return self.trouble != "the connection is lost"

    @property
    def blocked(self) -> str:
        return self.trouble if self.trouble == "the broker is blocked" else ""


class Desk:
    """A dispatcher at work, with a task that was handed over to it and sent."""

    def __init__(self, ledger: Ledger) -> None:
        self.stopping = Stopping()
        self.exchange = Troubled()
        self.bell = LocalBell()
        self.dispatcher = Dispatcher(
            writer=ledger.writer,
            reader=ledger.reader,
            exchange=self.exchange,
            bell=self.bell,
            signer=Signer(new_secret()),
            pace=PATIENT,
            stopping=self.stopping,
        )
        self._ledger = ledger

    async def send_along(self) -> None:
        self.job = await self._ledger.submit("A")
        began = Moment()
        self.claims = await self._ledger.claim()
        await self.exchange.declare_queue(work_queue("A"), ["#.A"])
        self._running = asyncio.create_task(
            keep_running("dispatcher", self.dispatcher.run, stopping=self.stopping)
        )
        self.dispatcher.hand_over(self.claims, began)
        async with self.exchange.consume(work_queue("A"), prefetch=1) as queue:
            await queue.take(1)

    async def stop(self) -> dict[str, TaskState]:
        self.stopping.tell()
        await asyncio.wait_for(self._running, 10)
        return await self._ledger.states(self.job)


async def test_what_nobody_answers_soon_is_marked_as_sent(ledger: Ledger) -> None:
    """Otherwise its lease would end, and it would be sent again."""
    desk = Desk(ledger)

    await desk.send_along()

    async def marked() -> bool:
        return await ledger.states(desk.job) == {"A": TaskState.QUEUED}

    await until(marked)
    await desk.stop()


async def test_what_was_answered_at_once_need_not_be_marked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_MARKED_AFTER", NEVER)
    desk = Desk(ledger)
    await desk.send_along()

    desk.dispatcher.note_settled([claim.task_id for claim in desk.claims])

    assert await desk.stop() == {"A": TaskState.DISPATCHING}


async def test_who_stops_marks_what_was_sent(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would afterwards, and its lease would have it sent again."""
    monkeypatch.setattr(dispatch, "_MARKED_AFTER", NEVER)
    desk = Desk(ledger)

    await desk.send_along()

    assert await desk.stop() == {"A": TaskState.QUEUED}


@pytest.mark.parametrize("trouble", ["the connection is lost", "the broker is blocked"])
async def test_what_was_sent_is_marked_before_trouble_is_waited_out(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """It may take longer than the lease of what was sent."""
    monkeypatch.setattr(dispatch, "_MARKED_AFTER", NEVER)
    desk = Desk(ledger)
    await desk.send_along()

    desk.exchange.trouble = trouble
    await desk.bell.ring()

    async def marked() -> bool:
        return await ledger.states(desk.job) == {"A": TaskState.QUEUED}

    await until(marked)
    await desk.stop()


# --- connections --------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.parametrize(("lately", "pings"), [(NEVER, 0), (0.0, 1)])
async def test_a_connection_that_lay_idle_is_asked_whether_it_lives(
    mariadb_store: Store, monkeypatch: pytest.MonkeyPatch, lately: float, pings: int
) -> None:
    """One that was used just now is not: that would cost each unit of work a round trip."""
    asked = 0
    dialect = mariadb_store.engine.dialect
    do_ping = dialect.do_ping

    def ping(connection: Any) -> bool:
        nonlocal asked
        asked += 1
        return do_ping(connection)

    monkeypatch.setattr(dialect, "do_ping", ping)
    monkeypatch.setattr(engine, "_LATELY_SECONDS", lately)

    await mariadb_store.write(_nothing)

    assert asked == pings


@pytest.mark.services
async def test_a_connection_that_was_lost_just_now_costs_one_more_try(
    mariadb_store: Store,
) -> None:
    """Nobody has asked it whether it lives."""
    runs = 0

    async def unit(connection: AsyncConnection) -> None:
        nonlocal runs
        runs += 1
        await connection.execute(sa.select(1))

    number = await mariadb_store.write(_number)
    await mariadb_store.read(lambda reader: reader.exec_driver_sql(f"KILL {number}"))
    await mariadb_store.write(unit)

    assert runs == 2


async def _nothing(connection: AsyncConnection) -> None:
    await connection.execute(sa.select(1))


async def _number(connection: AsyncConnection) -> int:
    return int((await connection.scalars(sa.text("SELECT CONNECTION_ID()"))).one())
