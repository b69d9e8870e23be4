"""Walks through large jobs: in force at once, finished by whoever is left, none before others."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from dane_core.errors import IllegalMove, NotFound, StoreUnreachable
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_core.message import Control, Envelope, open_control
from dane_core.states import JobStatus, TaskState
from dane_server.runner import walk
from dane_server.runner.bell import LocalBell
from dane_server.runner.walk import Walker, Walks
from dane_server.storage import acts as acts_module
from dane_server.storage.acts import Acts
from dane_server.storage.turns import Turns
from tests.server.audit import audit, rows_left
from tests.server.ledger import Ledger, ask, parallel
from tests.server.scripted import HASTY, PATIENT, Office, at_work, new_runner, until

CANCELLED, QUEUED = TaskState.CANCELLED, TaskState.QUEUED
#: The acts that walk, and what workers are told of each.
WORDS = {"cancel_job": "cancel", "pause_job": "recall", "delete_job": "cancel"}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of five tasks is a large one: whoever acts on it waits for two of its tasks."""
    monkeypatch.setattr(acts_module, "_SOME", 2)
    monkeypatch.setattr(walk, "AT_ONCE", 1)


class Hearing(MemoryExchange):
    """Notes each word to the workers, and how things stood when it was said."""

    def __init__(self, look: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._look = look
        self.heard: list[tuple[Control, Any]] = []

    async def broadcast(self, envelope: Envelope) -> None:
        self.heard.append((open_control(envelope), await self._look()))


def walker_of(ledger: Ledger, exchange: MemoryExchange, acts: Acts | None = None) -> Walker:
    return Walker(
        walks=Walks.of(acts or ledger.acts, cancel_grace=timedelta(seconds=10)),
        exchange=exchange,
        bell=LocalBell(),
        turns=Turns(ledger.store),
        every=timedelta(hours=1),
    )


async def states(ledger: Ledger, job: JobId) -> list[TaskState]:
    return [one.state for one in await ledger.tasks(job)]


async def queued_job(ledger: Ledger) -> JobId:
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.send()
    return job


# --- in force at once -------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["cancel_job", "pause_job"])
async def test_workers_are_told_before_the_first_task_is_taken_from_them(
    ledger: Ledger, act: str
) -> None:
    """The walk takes long; what lies in queues would be begun, and recorded, meanwhile."""
    job = await queued_job(ledger)
    exchange = Hearing(lambda: states(ledger, job))

    await getattr(new_runner(ledger, exchange), act)(job)

    [(word, when)] = exchange.heard
    assert (word.act, word.job_id, when) == (WORDS[act], job, [QUEUED] * 5)
    assert (await states(ledger, job)).count(QUEUED) == 3


async def test_who_asks_in_the_middle_of_a_cancellation_is_told_of_it(ledger: Ledger) -> None:
    job = await ledger.submit(parallel(*["A"] * 5))
    claims = await ledger.send()

    await new_runner(ledger, MemoryExchange()).cancel_job(job)

    objections = await ledger.writer.judge([ask(one, redelivered=True) for one in claims])
    head = await ledger.reader.job(job)
    assert objections == ["the job is being cancelled"] * 5
    assert (head.cancelling, head.status) == (True, JobStatus.RUNNING)


async def test_a_deleted_job_is_gone_before_workers_are_told_and_its_tasks_after(
    ledger: Ledger,
) -> None:
    job = await queued_job(ledger)
    exchange = Hearing(lambda: rows_left(ledger.store, job))

    await new_runner(ledger, exchange).delete_job(job)

    [(word, left)] = exchange.heard
    assert (word.act, word.job_id, left["task"]) == ("cancel", job, 5)
    with pytest.raises(NotFound):
        await ledger.reader.job(job)


async def test_a_large_job_is_retried_behind_the_answer_by_whoever_is_there(
    ledger: Ledger,
) -> None:
    """The one who asked does not wait for it, and need not live to see it."""
    job = await queued_job(ledger)
    await ledger.acts.cancel_job(job)

    await new_runner(ledger, MemoryExchange()).retry_job(job)

    assert (await states(ledger, job)).count(TaskState.READY) == 2
    await walker_of(ledger, MemoryExchange()).finish()
    assert await states(ledger, job) == [TaskState.READY] * 5
    assert await ledger.acts.jobs_retrying() == []


async def test_what_fails_again_is_not_retried_once_more(ledger: Ledger) -> None:
    """It could fail faster than the walk goes on, and for ever."""
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.answer_all(500)
    await ledger.acts.begin_retrying(job)
    while await ledger.acts.retry_some(job):
        await ledger.answer_all(500)

    assert [one.attempt for one in await ledger.tasks(job)] == [2] * 5


@pytest.mark.parametrize("act", ["cancel_job", "delete_job"])
async def test_a_later_act_ends_a_retry_that_is_under_way(ledger: Ledger, act: str) -> None:
    """What was asked for last is what happens."""
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.acts.cancel_job(job)
    await ledger.acts.begin_retrying(job)
    await ledger.acts.retry_some(job)

    await getattr(ledger.acts, act)(job)

    assert not await ledger.acts.retry_some(job)
    assert await ledger.acts.jobs_retrying() == []
    assert TaskState.READY not in await states_left(ledger, job)


async def states_left(ledger: Ledger, job: JobId) -> list[TaskState]:
    try:
        return await states(ledger, job)
    except NotFound:
        return []


async def test_what_is_in_force_does_not_fail_with_the_store(ledger: Ledger) -> None:
    """The mark is there: the one who asked need not ask again."""
    job = await queued_job(ledger)
    runner = new_runner(ledger, MemoryExchange())
    runner._walks = Walks.of(_Away(ledger, job), cancel_grace=timedelta(0))

    await runner.cancel_job(job)

    assert (await ledger.reader.job(job)).cancelling


class _Away(Acts):
    """The store fails whenever it is to do something about one job."""

    def __init__(self, ledger: Ledger, job: JobId) -> None:
        super().__init__(ledger.store)
        self._job = job

    async def cancel_some(self, job_id: JobId) -> bool:
        if job_id == self._job:
            raise StoreUnreachable("no answer")
        return await super().cancel_some(job_id)


# --- finished by whoever is left --------------------------------------------------------------


@pytest.mark.parametrize("act", ["cancel_job", "pause_job", "delete_job"])
async def test_what_a_server_left_is_finished_by_another_and_told_by_it(
    ledger: Ledger, act: str
) -> None:
    """It may have died before it could tell anybody: who goes on says it first, and at the end."""
    job = await queued_job(ledger)
    await getattr(new_runner(ledger, MemoryExchange()), act)(job)
    exchange = Hearing(lambda: rows_left(ledger.store, job))

    await walker_of(ledger, exchange).finish()

    assert [word.act for word, _ in exchange.heard] == [WORDS[act]] * 2
    if act == "delete_job":
        assert await rows_left(ledger.store, job) == {}
    else:
        wanted = {"cancel_job": CANCELLED, "pause_job": TaskState.READY}[act]
        assert set(await states(ledger, job)) == {wanted}
        assert not (await ledger.reader.job(job)).cancelling
        assert await audit(ledger.store, job) == []


async def test_the_last_word_is_said_before_the_job_can_be_run_again(ledger: Ledger) -> None:
    """Said after it, it would stop what somebody has just started."""
    job = await queued_job(ledger)
    exchange = Hearing(lambda: ledger.reader.job(job))
    await new_runner(ledger, exchange).cancel_job(job)

    await walker_of(ledger, exchange).finish()

    assert len(exchange.heard) == 3
    assert all(head.cancelling for _, head in exchange.heard)
    await ledger.acts.retry_job(job)


@pytest.mark.parametrize("act", ["cancel_job", "delete_job"])
async def test_what_was_left_over_wakes_the_walker(ledger: Ledger, act: str) -> None:
    """It looks by itself only once an hour here."""
    async with at_work(ledger, pace=PATIENT) as office:
        job = await _begun(office)

        await getattr(office.runner, act)(job)

        async def is_over() -> bool:
            if act == "delete_job":
                return await rows_left(ledger.store, job) == {}
            head = await ledger.reader.job(job)
            return head.counts.cancelled == 5 and not head.cancelling

        await until(is_over)


async def test_what_another_process_left_over_is_found(ledger: Ledger) -> None:
    job = await queued_job(ledger)
    await new_runner(ledger, MemoryExchange(), remote=True).cancel_job(job)

    async with at_work(ledger, pace=HASTY) as office:
        await office.ended(job, JobStatus.CANCELLED)


async def _begun(office: Office) -> JobId:
    await office.hire("A", script=lambda _: None)
    job = await office.submit(parallel(*["A"] * 5))

    async def are_there() -> bool:
        return len(office.seen) == 5

    await until(are_there)
    return job


# --- none before others -----------------------------------------------------------------------


async def test_walks_take_turns(ledger: Ledger) -> None:
    """A small cancellation does not wait for a large deletion that was begun before it."""
    large = await ledger.submit(parallel(*["A"] * 12))
    small = await ledger.submit(parallel(*["A"] * 3))
    await ledger.acts.begin_cancelling(large)
    await ledger.acts.begin_cancelling(small)
    exchange = Hearing(lambda: states(ledger, large))

    await walker_of(ledger, exchange).finish()

    said = [(word.job_id, when.count(CANCELLED)) for word, when in exchange.heard]
    assert [job for job, _ in said] == [large, small, small, large]
    assert said[2][1] < 12


async def test_a_walk_that_always_fails_holds_up_no_other_and_is_said_once(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = await queued_job(ledger), await queued_job(ledger)
    await ledger.acts.begin_cancelling(stuck)
    await ledger.acts.begin_cancelling(other)
    walker = walker_of(ledger, MemoryExchange(), _Away(ledger, stuck))

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await walker.finish()

    assert set(await states(ledger, other)) == {CANCELLED}
    assert set(await states(ledger, stuck)) == {QUEUED}
    assert [one.message for one in caplog.records if "fails" in one.message] == [
        f"cancel job {stuck} fails, and is tried again every 3600 s: no answer"
    ]
    await walker_of(ledger, MemoryExchange()).finish()
    assert set(await states(ledger, stuck)) == {CANCELLED}


async def test_two_walkers_at_once_do_no_harm(ledger: Ledger) -> None:
    """A turn ends with the connection that holds it, and its holder may not have noticed."""
    job = await ledger.submit(parallel(*["A"] * 9))
    await ledger.send()
    await ledger.acts.begin_cancelling(job)

    await asyncio.gather(*(walker_of(ledger, MemoryExchange()).finish() for _ in range(3)))

    assert set(await states(ledger, job)) == {CANCELLED}
    assert await audit(ledger.store, job) == []


async def test_nothing_is_started_over_while_its_job_is_being_cancelled(ledger: Ledger) -> None:
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.answer_all(500)
    await ledger.acts.retry_job(job)
    await new_runner(ledger, MemoryExchange()).cancel_job(job)
    [first, *_] = await ledger.tasks(job)
    before = await states(ledger, job)

    for act, one in [
        ("retry_job", job),
        ("pause_job", job),
        ("retry_task", first.id),
        ("force_task", first.id),
        ("reset_task", first.id),
    ]:
        with pytest.raises(IllegalMove, match="being cancelled"):
            await getattr(ledger.acts, act)(one)
    retried = await ledger.acts.retry_key("A", 499)

    assert retried == 0
    assert await states(ledger, job) == before
    assert await audit(ledger.store, job) == []
