"""What operators and owners do to tasks, jobs and keys, and what they find afterwards."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import IllegalMove, NotFound
from dane_core.job import JobId, TaskId
from dane_core.states import JobStatus, TaskState
from dane_server.storage import acts as acts_module
from dane_server.storage import tables
from dane_server.storage.acts import Acts
from dane_server.storage.engine import Store
from dane_server.storage.writer import Writer
from tests.server.audit import audit, rows_left
from tests.server.crash import Crash, Crashing, Holding
from tests.server.ledger import (
    LEASE,
    Ledger,
    answer,
    ask,
    graph,
    keys_of,
    parallel,
    sequence,
    started,
    task,
    ticket_of,
)

BLOCKED, HELD, READY = TaskState.BLOCKED, TaskState.HELD, TaskState.READY
QUEUED, RUNNING, FAILED = TaskState.QUEUED, TaskState.RUNNING, TaskState.FAILED
SUCCEEDED, CANCELLED = TaskState.SUCCEEDED, TaskState.CANCELLED


async def act_on(ledger: Ledger, job: JobId, name: str, act: str) -> None:
    await getattr(ledger.acts, act)((await ledger.task(job, name)).id)


async def answer_one(ledger: Ledger, job: JobId, name: str, state: int = 200) -> None:
    recorded = await ledger.record(answer(ticket_of(await ledger.task(job, name)), state))
    assert recorded.settled


# --- retry a task -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [404, 500, 499])
async def test_a_task_that_ended_badly_is_run_again(ledger: Ledger, number: int) -> None:
    job = await ledger.submit("A")
    await ledger.answer_all(number)

    await act_on(ledger, job, "A", "retry_task")
    [claim] = await ledger.claim()

    assert claim.attempt == 2
    assert await ledger.status(job) is JobStatus.RUNNING
    assert await audit(ledger.store, job) == []


async def test_a_retry_leaves_alone_what_is_done_or_on_its_way(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B", "C"))
    sent = {claim.key: claim for claim in await ledger.send()}
    await ledger.record(answer(sent["A"]))
    await ledger.writer.note_reports([started(sent["C"])], [], [])

    for key in "ABC":
        await act_on(ledger, job, key, "retry_task")

    assert await ledger.states(job) == {"A": SUCCEEDED, "B": QUEUED, "C": RUNNING}
    assert [one.attempt for one in await ledger.tasks(job)] == [1, 1, 1]


async def test_a_retry_counts_tries_from_the_start(ledger: Ledger) -> None:
    """A person has looked at it: it may fail for now as often as in the beginning."""
    job = await ledger.submit(task("A", retry={"limit": 1, "delay": 0}))
    for _ in range(2):
        await ledger.answer_all(503)
        await ledger.sweep()
    exhausted = await ledger.states(job)

    await act_on(ledger, job, "A", "retry_task")
    await ledger.answer_all(503)

    assert exhausted == {"A": FAILED}
    assert await ledger.states(job) == {"A": TaskState.BACKOFF}


async def test_a_retried_task_whose_predecessor_is_not_done_waits(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    await ledger.acts.cancel_job(job)

    await act_on(ledger, job, "B", "retry_task")
    waiting = await ledger.states(job)
    await act_on(ledger, job, "A", "retry_task")
    await ledger.answer_all()

    assert waiting == {"A": CANCELLED, "B": BLOCKED}
    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY}


@pytest.mark.parametrize("redo", ["running", "failed"])
async def test_a_retried_task_waits_for_a_predecessor_that_is_done_over(
    ledger: Ledger, redo: str
) -> None:
    """Otherwise it would run beside it, on an answer that is about to be replaced."""
    job = await ledger.submit(sequence("A", "B"))
    await ledger.answer_all()
    await ledger.answer_all(500)
    await act_on(ledger, job, "A", "force_task")
    await ledger.send()
    if redo == "failed":
        await answer_one(ledger, job, "A", 500)

    await ledger.acts.retry_job(job)
    during = (await ledger.states(job))["B"]
    await ledger.send()
    await answer_one(ledger, job, "A")

    assert during is BLOCKED
    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY}
    assert await audit(ledger.store, job) == []


# --- retry by force ---------------------------------------------------------------------------


async def test_a_forced_task_runs_whatever_it_waits_for(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))

    await act_on(ledger, job, "B", "force_task")

    assert sorted(keys_of(await ledger.send())) == ["A", "B"]
    await answer_one(ledger, job, "B")
    await answer_one(ledger, job, "A")
    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("stage", ["ready", "claimed", "queued", "running", "done", "failed"])
async def test_force_fences_off_the_attempt_before(ledger: Ledger, stage: str) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.claim() if stage != "ready" else [None]
    if stage in ("queued", "running"):
        assert claim
        await ledger.mark(queued=[claim])
    if stage == "running":
        assert claim
        await ledger.writer.note_reports([started(claim)], [], [])
    if stage in ("done", "failed"):
        assert claim
        await ledger.record(answer(claim, 200 if stage == "done" else 500))

    old = await ledger.acts.force_task((await ledger.task(job, "A")).id)
    late = await ledger.record(answer(claim)) if claim else None
    [again] = await ledger.claim()

    assert old == 1
    assert late is None or len(late.late) == 1
    assert again.attempt == 2
    assert await audit(ledger.store, job) == []


async def test_an_attempt_that_force_ended_is_in_the_history(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim, "w7")], [], [])

    await act_on(ledger, job, "A", "force_task")

    [ended] = (await ledger.reader.task(claim.task_id)).attempts
    assert (ended.number, ended.worker, ended.outcome) == (1, "w7", 499)


async def test_successors_that_have_not_gone_wait_for_a_forced_task(ledger: Ledger) -> None:
    job = await ledger.submit(graph(a="A", b="B", c=("C", "a", "b")))
    await ledger.send()
    await answer_one(ledger, job, "A")

    await act_on(ledger, job, "A", "force_task")
    await answer_one(ledger, job, "B")
    waiting = (await ledger.states(job))["C"]
    await ledger.send()
    await answer_one(ledger, job, "A")

    assert waiting is BLOCKED
    assert (await ledger.states(job))["C"] is READY
    assert await audit(ledger.store, job) == []


async def test_successors_that_have_gone_are_not_run_again(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B", "C"))
    await ledger.finish(job)

    await act_on(ledger, job, "A", "force_task")
    await ledger.answer_all()

    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await ledger.claim() == []


async def test_a_forced_task_replaces_its_answer(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.answer_all(response={"n": 1})
    await act_on(ledger, job, "A", "force_task")

    await ledger.answer_all(response={"n": 2})

    assert list((await ledger.answers_of(job)).values()) == [{"n": 2}]


# --- reset ------------------------------------------------------------------------------------


async def test_a_reset_task_stays_until_its_job_is_retried(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.send()

    await act_on(ledger, job, "A", "reset_task")
    found = await ledger.task(job, "A")
    held = await ledger.claim()
    await ledger.acts.retry_job(job)

    assert (found.state, found.number, found.text) == (HELD, 201, "Reset")
    assert held == []
    assert keys_of(await ledger.claim()) == ["A"]


async def test_a_reset_task_runs_once_its_predecessor_finishes_again(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel("B", "C")))
    await ledger.finish(job)

    await act_on(ledger, job, "B", "reset_task")
    await act_on(ledger, job, "A", "force_task")
    during = await ledger.states(job)
    await ledger.answer_all()

    assert during == {"A": READY, "B": HELD, "C": SUCCEEDED}
    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY, "C": SUCCEEDED}
    assert await audit(ledger.store, job) == []


async def test_a_reset_task_behind_joins_waits_for_all_that_are_done_over(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D"), parallel("E", "F")))
    await ledger.finish(job)
    for key in "AC":
        await act_on(ledger, job, key, "force_task")
    await act_on(ledger, job, "E", "reset_task")

    await ledger.send()
    await answer_one(ledger, job, "A")
    early = (await ledger.states(job))["E"]
    await answer_one(ledger, job, "C")

    assert early is HELD
    assert (await ledger.states(job))["E"] is READY
    assert await audit(ledger.store, job) == []


async def test_a_blocked_task_that_is_reset_goes_on_waiting(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))

    await act_on(ledger, job, "B", "reset_task")
    found = await ledger.task(job, "B")
    await ledger.answer_all()

    assert (found.state, found.text) == (BLOCKED, "Reset")
    assert (await ledger.states(job))["B"] is READY


async def test_a_reset_makes_a_succeeded_job_need_a_person(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    await ledger.finish(job)

    await act_on(ledger, job, "A", "reset_task")

    head = await ledger.reader.job(job)
    assert (head.status, head.state, head.counts.held) == (JobStatus.FAILED, 201, 1)


# --- retry a job ------------------------------------------------------------------------------


async def test_a_job_is_retried_where_it_ended_and_keeps_what_succeeded(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B", sequence("C", "D")))
    sent = {claim.key: claim for claim in await ledger.send()}
    await ledger.record(answer(sent["A"]), answer(sent["B"], 500), answer(sent["C"], 404))

    await ledger.acts.retry_job(job)

    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY, "C": READY, "D": BLOCKED}
    await ledger.finish(job)
    assert [one.attempt for one in await ledger.tasks(job)] == [1, 2, 2, 1]


async def test_a_retried_job_has_no_end_until_it_ends_again(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.answer_all(500)
    ended = (await ledger.reader.job(job)).finished_at

    await ledger.acts.retry_job(job)
    during = (await ledger.reader.job(job)).finished_at
    await ledger.answer_all()

    assert ended is not None
    assert during is None
    assert (await ledger.reader.job(job)).finished_at is not None


async def test_retrying_a_job_meets_each_task_once_however_fast_they_fail(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the request goes on for as long as its tasks fail faster than it walks."""
    monkeypatch.setattr(acts_module, "_SOME", 2)
    await ledger.submit(parallel(*["A"] * 7))
    await ledger.answer_all(500)
    failing = Acts(_Reacting(ledger.store, lambda: ledger.answer_all(500)))

    retried = await asyncio.wait_for(failing.retry_key("A", 500), 20)

    assert retried == 7


class _Reacting(Store):
    """Between any two transactions somebody else is quicker."""

    def __init__(self, store: Store, react: Callable[[], Awaitable[Any]]) -> None:
        self._store = store
        self._react = react

    async def write(self, unit: Any, *, patience: float | None = None) -> Any:
        result = await self._store.write(unit, patience=patience)
        await self._react()
        return result

    async def read(self, unit: Any) -> Any:
        return await self._store.read(unit)


# --- cancel -----------------------------------------------------------------------------------


async def test_a_cancelled_job_settles_everything_that_was_not(ledger: Ledger) -> None:
    job = await ledger.submit(
        parallel("A", "B", sequence("C", "D"), "E", task("F", retry={"delay": 60}))
    )
    sent = {claim.key: claim for claim in await ledger.send()}
    await ledger.record(answer(sent["A"]), answer(sent["B"], 500), answer(sent["F"], 503))
    await ledger.writer.note_reports([started(sent["C"])], [], [])

    await ledger.acts.cancel_job(job)

    states = await ledger.states(job)
    head = await ledger.reader.job(job)
    late = await ledger.record(answer(sent["C"]), answer(sent["E"]))
    assert states == {
        "A": SUCCEEDED,
        "B": FAILED,
        **dict.fromkeys("CDEF", CANCELLED),
    }
    assert (head.status, head.counts.cancelled) == (JobStatus.CANCELLED, 4)
    assert head.finished_at is not None
    assert len(late.late) == 2
    assert await ledger.claim() == []
    assert await audit(ledger.store, job) == []


async def test_a_cancelled_task_is_499(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.acts.cancel_job(job)

    found = await ledger.task(job, "A")

    assert (found.number, found.text) == (499, "Cancelled")
    assert found.finished_at is not None


async def test_a_job_that_is_over_cannot_be_cancelled_or_paused(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.finish(job)

    for act in (ledger.acts.cancel_job, ledger.acts.pause_job):
        with pytest.raises(IllegalMove):
            await act(job)


async def test_a_cancelled_job_can_be_run_again(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), "C"))
    await ledger.send()
    await ledger.acts.cancel_job(job)

    await ledger.finish(job)

    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


async def test_a_cancellation_cut_short_is_finished_by_the_sweeper(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts_module, "_SOME", 2)
    job = await ledger.submit(parallel(*["A"] * 5, sequence("B", "C")))

    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, after=2)).cancel_job(job)
    cut_short = {one.state for one in await ledger.tasks(job)}
    claimed = await ledger.claim()
    await ledger.acts.finish_walks()

    assert cut_short > {CANCELLED}
    assert claimed == []
    assert set((await ledger.states(job)).values()) == {CANCELLED}
    assert await audit(ledger.store, job) == []


async def test_a_deletion_in_the_middle_of_a_cancellation_is_fine(ledger: Ledger) -> None:
    """The sweeper finds the flag, and then no job."""
    job = await ledger.submit("A")
    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, after=1)).cancel_job(job)
    deleting = Acts(_Reacting(ledger.store, lambda: asyncio.sleep(0)))
    sweeping = Acts(_Once(ledger.store, lambda: deleting.delete_job(job)))

    await sweeping.finish_walks()

    assert await rows_left(ledger.store, job) == {}


class _Once(Store):
    """After the first thing it reads, something happens."""

    def __init__(self, store: Store, then: Callable[[], Awaitable[Any]]) -> None:
        self._store = store
        self._then: Callable[[], Awaitable[Any]] | None = then

    async def write(self, unit: Any, *, patience: float | None = None) -> Any:
        return await self._store.write(unit, patience=patience)

    async def read(self, unit: Any) -> Any:
        result = await self._store.read(unit)
        then, self._then = self._then, None
        if then is not None:
            await then()
        return result


# --- pause and resume ---------------------------------------------------------------------------


async def test_a_pause_takes_back_what_lies_in_queues_and_leaves_what_runs(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B"))
    sent = {claim.key: claim for claim in await ledger.send()}
    await ledger.writer.note_reports([started(sent["A"])], [], [])

    await ledger.acts.pause_job(job)
    paused = await ledger.reader.job(job)
    [objection] = await ledger.writer.judge([ask(sent["B"])])

    assert (paused.status, paused.paused) == (JobStatus.PAUSED, True)
    assert await ledger.states(job) == {"A": RUNNING, "B": READY}
    assert objection
    await ledger.acts.resume_job(job)
    [again] = await ledger.claim()
    assert (again.key, again.attempt) == ("B", 1)
    assert again.dispatch > sent["B"].dispatch


async def test_a_running_task_of_a_paused_job_is_recorded(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    claims = await ledger.send()
    await ledger.writer.note_reports(list(map(started, claims)), [], [])
    await ledger.acts.pause_job(job)

    await ledger.record(*map(answer, claims))

    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY}
    assert await ledger.status(job) is JobStatus.PAUSED
    assert await ledger.claim() == []


async def test_a_paused_job_that_finishes_has_succeeded(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    claims = await ledger.send()
    await ledger.acts.pause_job(job)

    await ledger.record(*map(answer, claims))

    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_a_paused_key_takes_back_what_lies_in_its_queue(ledger: Ledger) -> None:
    await ledger.submit(parallel(task("A", priority=0), task("A", priority=10), "B"))
    sent = await ledger.send()

    await ledger.acts.pause_key("A")
    objections = await ledger.writer.judge([ask(claim) for claim in sent])
    await ledger.acts.resume_key("A")

    stale = [claim.key for claim, why in zip(sent, objections, strict=True) if why]
    assert stale == ["A", "A"]
    assert keys_of(await ledger.claim()) == ["A", "A"]


async def test_a_worker_that_asks_in_a_pause_loses_nothing(ledger: Ledger) -> None:
    """Its worker died, and the message came back: it is dropped, so the task must be sent again."""
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim)], [], [])
    await ledger.acts.pause_job(job)

    [objection] = await ledger.writer.judge([ask(claim)])
    await ledger.acts.resume_job(job)
    again = await ledger.claim()

    assert objection
    assert [(one.task_id, one.attempt) for one in again] == [(claim.task_id, 1)]


async def test_tasks_that_stray_into_queues_in_a_pause_are_taken_back(ledger: Ledger) -> None:
    """A claim may have been under way when the pause came."""
    job = await ledger.submit("A")
    await ledger.submit("B", source_id="S2")
    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, after=1)).pause_job(job)
    await _set(ledger, job, state=QUEUED)
    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, after=1)).pause_key("B")

    await ledger.acts.finish_walks()

    assert await ledger.states(job) == {"A": READY}


async def _set(ledger: Ledger, job: JobId, **values: Any) -> None:
    async def unit(connection: AsyncConnection) -> None:
        table = tables.tasks
        await connection.execute(sa.update(table).where(table.c.job_id == job).values(**values))

    await ledger.store.write(unit)


async def test_retrying_a_key_takes_those_that_failed_with_that_number(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "A", "A", "B"))
    sent = await ledger.send()
    numbers = [500, 404, 200, 500]
    await ledger.record(*(answer(one, n) for one, n in zip(sent, numbers, strict=True)))

    retried = await ledger.acts.retry_key("A", 500)

    assert retried == 1
    assert [one.state for one in await ledger.tasks(job)] == [READY, FAILED, SUCCEEDED, FAILED]
    assert await audit(ledger.store, job) == []


# --- delete -----------------------------------------------------------------------------------


async def test_a_deleted_job_leaves_nothing_behind(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D"), "E"))
    kept = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D"), "E"))
    await ledger.answer_all(response={"n": 1})
    claims = await ledger.send()

    await ledger.acts.delete_job(job)
    late = await ledger.record(*(answer(one) for one in claims if one.job_id == job))

    assert await rows_left(ledger.store, job) == {}
    assert len(late.late) == 2
    with pytest.raises(NotFound):
        await ledger.reader.job(job)
    await ledger.finish(kept)
    assert await ledger.status(kept) is JobStatus.SUCCEEDED


async def test_a_deleted_job_is_gone_at_once_even_if_its_tasks_are_not(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()
    with pytest.raises(Crash):
        await Acts(Crashing(ledger.store, after=1)).delete_job(job)

    for ask_for in (ledger.reader.job, ledger.reader.job_view, ledger.reader.tasks):
        with pytest.raises(NotFound):
            await ask_for(job)
    with pytest.raises(NotFound):
        await ledger.reader.task(claim.task_id)
    for act in ("retry_task", "force_task", "reset_task"):
        with pytest.raises(NotFound):
            await getattr(ledger.acts, act)(claim.task_id)
    [objection] = await ledger.writer.judge([ask(claim)])
    assert objection
    assert (await ledger.record(answer(claim))).settled == {}
    assert await ledger.claim() == []
    await ledger.acts.finish_walks()
    assert await rows_left(ledger.store, job) == {}


async def test_an_answer_under_way_while_its_job_is_deleted_leaves_nothing(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()
    holding = Holding(ledger.store)
    recording = asyncio.create_task(
        Writer(holding).record([answer(claim, response={"n": 1})], window=9, lease=LEASE)
    )
    await holding.reached.wait()
    deletion = asyncio.create_task(ledger.acts.delete_job(job))
    await asyncio.wait({deletion}, timeout=0.3)

    holding.go_on.set()
    await asyncio.gather(recording, deletion)

    assert await rows_left(ledger.store, job) == {}


@pytest.mark.parametrize(
    "act", ["retry_job", "cancel_job", "pause_job", "resume_job", "delete_job"]
)
async def test_acts_on_a_job_that_is_not_there_say_so(ledger: Ledger, act: str) -> None:
    with pytest.raises(NotFound):
        await getattr(ledger.acts, act)(JobId(404))


@pytest.mark.parametrize("act", ["retry_task", "force_task", "reset_task"])
async def test_acts_on_a_task_that_is_not_there_say_so(ledger: Ledger, act: str) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    join = max(one.id for one in await ledger.tasks(job)) + 1

    for missing in (join, 10**9):
        with pytest.raises(NotFound):
            await getattr(ledger.acts, act)(TaskId(missing))


# --- two at once --------------------------------------------------------------------------------


async def test_a_reset_that_meets_the_end_of_a_redo_does_not_wait_for_ever(ledger: Ledger) -> None:
    """The reset must see that its predecessor is done, or be seen by it; nothing in between."""
    job = await ledger.submit(sequence("A", "B"))
    await ledger.finish(job)
    await act_on(ledger, job, "A", "force_task")
    [claim] = await ledger.send()
    holding = Holding(ledger.store)
    recording = asyncio.create_task(Writer(holding).record([answer(claim)], window=0, lease=LEASE))
    await holding.reached.wait()
    reset = asyncio.create_task(act_on(ledger, job, "B", "reset_task"))
    await asyncio.wait({reset}, timeout=0.3)

    holding.go_on.set()
    await asyncio.gather(recording, reset)

    assert await audit(ledger.store, job) == []
    await ledger.finish(job)
    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_two_retries_in_front_of_one_join_are_waited_for_once_each(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    await ledger.finish(job)
    await act_on(ledger, job, "C", "reset_task")
    a, b = await ledger.task(job, "A"), await ledger.task(job, "B")
    holding = Holding(ledger.store)
    first = asyncio.create_task(Acts(holding).force_task(a.id))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.acts.force_task(b.id))
    await asyncio.wait({second}, timeout=0.3)

    holding.go_on.set()
    await asyncio.gather(first, second)

    assert await audit(ledger.store, job) == []
    await ledger.answer_all()
    assert (await ledger.states(job))["C"] is READY
