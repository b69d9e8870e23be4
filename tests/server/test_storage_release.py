"""A task that many wait for lets them go in many transactions, and each of them once."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from dane_core.job import JobId
from dane_core.states import JobStatus, TaskState
from dane_server.storage import mariadb, release
from dane_server.storage.acts import Acts
from dane_server.storage.doctor import Examiner
from dane_server.storage.engine import Store
from dane_server.storage.mending import Mending
from tests.server.audit import audit, rows_left
from tests.server.crash import Crash, Crashing
from tests.server.ledger import Ledger, answer, parallel, sequence

MANY = 40


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that forty are many."""
    monkeypatch.setattr(release, "_AT_ONCE", 4)
    monkeypatch.setattr(release, "_STEP", 10)


def _crowd(size: int = MANY) -> Any:
    return sequence("A", parallel(*["B"] * size))


async def _begun(ledger: Ledger) -> JobId:
    """A job whose first task is done, with nobody let go yet."""
    job = await ledger.submit(_crowd())
    await ledger.answer_all()
    return job


async def _ready(ledger: Ledger, job: JobId) -> int:
    return sum(one.state is TaskState.READY for one in await ledger.tasks(job))


# --- how much at once -------------------------------------------------------------------------


async def test_no_transaction_lets_thousands_go(ledger: Ledger) -> None:
    """It would hold their locks, and everybody's answers, for many seconds."""
    job = await ledger.submit(_crowd(3500))
    [first] = await ledger.send()

    with _rows_changed(ledger.store) as changed:
        recorded = await ledger.record(answer(first))
        await ledger.acts.finish_walks()

    assert recorded.walks
    assert max(changed) < 2.5 * release._STEP
    assert await _ready(ledger, job) == 3500
    assert await audit(ledger.store, job) == []


async def test_many_answers_at_once_let_no_more_go_in_a_transaction(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has few behind it, and all of them together have many."""
    monkeypatch.setattr(release, "_AT_ONCE", 12)
    jobs = [await ledger.submit(_crowd(5)) for _ in range(10)]

    with _rows_changed(ledger.store) as changed:
        await ledger.answer_all()
        await ledger.acts.finish_walks()

    assert max(changed) < 10 * 6 + 2 * 12
    for job in jobs:
        assert await _ready(ledger, job) == 5
        assert await audit(ledger.store, job) == []


@contextmanager
def _rows_changed(store: Store) -> Iterator[list[int]]:
    """How many rows each transaction changes."""
    changed = [0]
    engine = store.engine.sync_engine

    def count(_: Any, cursor: Any, statement: str, *_others: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "SET", "PRAGMA")):
            changed[-1] += max(cursor.rowcount, 0)

    def end(_: sa.Connection) -> None:
        changed.append(0)

    event.listen(engine, "after_cursor_execute", count)
    event.listen(engine, "commit", end)
    try:
        with patch.object(mariadb.Connection, "keep", lambda *_: False), _rows_of_asked(changed):
            yield changed
    finally:
        event.remove(engine, "after_cursor_execute", count)
        event.remove(engine, "commit", end)


@contextmanager
def _rows_of_asked(changed: list[int]) -> Iterator[None]:
    """Count what goes past SQLAlchemy to MariaDB, too."""
    ask = mariadb.Connection.ask

    async def counting(self: Any, statements: Sequence[str]) -> list[Sequence[Any]]:
        found = await ask(self, statements)
        if not statements[-1].startswith("SELECT"):
            changed[-1] += self._affected_rows
        return found

    with patch.object(mariadb.Connection, "ask", counting):
        yield


# --- while it lasts ---------------------------------------------------------------------------


@pytest.mark.usefixtures("few_at_once")
async def test_a_job_that_is_being_let_go_is_not_over(ledger: Ledger) -> None:
    """Nothing of it can be sent for a moment, and it would seem to have failed."""
    job = await _begun(ledger)

    assert await ledger.status(job) is JobStatus.RUNNING
    assert await _ready(ledger, job) == 0
    assert await audit(ledger.store, job) == []

    await ledger.acts.release_some()

    assert await _ready(ledger, job) == 10
    assert await audit(ledger.store, job) == []


@pytest.mark.usefixtures("few_at_once")
async def test_each_goes_once_whoever_walks_and_whoever_dies(ledger: Ledger) -> None:
    job = await _begun(ledger)

    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, 2)).finish_walks()
    await asyncio.gather(*(ledger.acts.finish_walks() for _ in range(3)))

    assert await _ready(ledger, job) == MANY
    assert await audit(ledger.store, job) == []


@pytest.mark.usefixtures("few_at_once")
async def test_a_join_that_many_wait_behind_lets_them_go_some_at_a_time(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel("B", "B"), parallel(*["C"] * MANY)))
    for _ in range(2):
        await ledger.answer_all()

    assert await _ready(ledger, job) == 0
    assert await audit(ledger.store, job) == []

    await ledger.acts.finish_walks()

    assert await _ready(ledger, job) == MANY
    assert await audit(ledger.store, job) == []


# --- what people do meanwhile -----------------------------------------------------------------


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize("act", ["force_task", "reset_task"])
async def test_one_that_begins_anew_lets_nobody_go_until_it_is_done(
    ledger: Ledger, act: str
) -> None:
    """Those that were let go by then run; the others wait for it once more."""
    job = await _begun(ledger)
    await ledger.acts.release_some()
    task = await ledger.task(job, "A")

    await getattr(ledger.acts, act)(task.id)
    await ledger.acts.finish_walks()

    ready = 11 if act == "force_task" else 10
    assert await _ready(ledger, job) == ready
    assert await audit(ledger.store, job) == []

    await ledger.finish(job)

    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


@pytest.mark.usefixtures("few_at_once")
async def test_what_is_cancelled_meanwhile_is_not_let_go(ledger: Ledger) -> None:
    job = await _begun(ledger)
    await ledger.acts.release_some()

    await ledger.acts.cancel_job(job)
    await ledger.acts.finish_walks()

    assert await _ready(ledger, job) == 0
    assert await ledger.status(job) is JobStatus.CANCELLED
    assert await audit(ledger.store, job) == []


@pytest.mark.usefixtures("few_at_once")
async def test_nothing_is_left_of_a_job_that_is_deleted_meanwhile(ledger: Ledger) -> None:
    job = await _begun(ledger)

    await ledger.acts.delete_job(job)
    await ledger.acts.finish_walks()

    assert await rows_left(ledger.store, job) == {}
    assert await ledger.acts.nodes_releasing() == []


# --- the doctor -------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize("again", [False, True])
async def test_the_doctor_finds_nothing_wrong_with_it_and_breaks_nothing(
    ledger: Ledger, *, again: bool
) -> None:
    job = await _begun(ledger)
    await ledger.acts.release_some()
    if again:
        await ledger.acts.force_task((await ledger.task(job, "A")).id)
        await ledger.record(*(answer(one) for one in await ledger.send() if one.key == "A"))
    examiner = Examiner(ledger.store)

    [facts] = await examiner.jobs([job])
    nodes = await examiner.nodes([job])

    assert {name: facts.counted.get(name, 0) for name in facts.kept} == facts.kept
    assert [node for node in nodes if node.in_vain or node.pending != node.counted] == []

    await Mending(ledger.store).recount(job)
    assert await audit(ledger.store, job) == []
    await ledger.acts.finish_walks()

    assert await audit(ledger.store, job) == []
    assert await ledger.acts.nodes_releasing() == []
    await ledger.finish(job)
    assert await ledger.status(job) is JobStatus.SUCCEEDED
