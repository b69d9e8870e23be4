"""Priorities that are changed while work waits: what was not begun goes by the new ones."""

import pytest

from dane_core.errors import NotFound
from dane_core.job import JobId, TaskId
from dane_core.states import TaskState
from dane_server.storage import acts as acts_module
from tests.server.audit import audit, rows_left
from tests.server.ledger import (
    Ledger,
    answer,
    ask,
    keys_of,
    parallel,
    sequence,
    started,
    task,
    ticket_of,
)

READY, QUEUED, RUNNING = TaskState.READY, TaskState.QUEUED, TaskState.RUNNING


async def priorities(ledger: Ledger, job: JobId) -> list[int]:
    return [one.priority for one in await ledger.tasks(job)]


async def test_a_job_that_is_made_urgent_goes_before_what_was_there_first(ledger: Ledger) -> None:
    await ledger.submit(parallel("A", "A"))
    late = await ledger.submit(parallel("A", "A"), source_id="S2")

    await ledger.acts.prioritize_job(late, 7)
    claims = await ledger.claim(limit=2)

    assert {claim.job_id for claim in claims} == {late}
    assert {claim.priority for claim in claims} == {7}
    assert (await ledger.reader.job(late)).priority == 7


async def test_a_priority_of_its_own_stays_with_a_task(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", task("B", priority=9), "C"))

    await ledger.acts.prioritize_job(job, 4)

    assert await priorities(ledger, job) == [4, 9, 4]


async def test_what_lies_in_a_queue_is_taken_back_and_what_runs_goes_on(ledger: Ledger) -> None:
    """Else the order of the queue would stay, whatever the priority."""
    job = await ledger.submit(parallel("A", "B"))
    claims = {claim.key: claim for claim in await ledger.send()}
    await ledger.writer.note_reports([started(claims["B"])], [], [])

    await ledger.acts.prioritize_job(job, 7)

    assert await ledger.states(job) == {"A": READY, "B": RUNNING}
    assert [bool(one) for one in await ledger.writer.judge([ask(claims["A"])])] == [True]
    assert (await ledger.record(answer(claims["B"]))).settled
    assert await audit(ledger.store, job) == []


async def test_what_comes_later_in_the_job_goes_by_it_too(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))

    await ledger.acts.prioritize_job(job, 0)
    await ledger.answer_all()

    assert [claim.priority for claim in await ledger.claim()] == [0]


async def test_one_task_is_given_a_priority_of_its_own(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "A", "A"))
    claims = await ledger.send()
    last = max(claim.task_id for claim in claims)

    await ledger.acts.prioritize_task(last, 10)
    [claim] = await ledger.claim()

    assert (claim.task_id, claim.priority, claim.attempt) == (last, 10, 1)
    assert sorted(await priorities(ledger, job)) == [1, 1, 10]
    assert await audit(ledger.store, job) == []


async def test_changes_of_a_large_job_follow_each_other(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one begins while the first is under way, and sees no task in between."""
    monkeypatch.setattr(acts_module, "_SOME", 2)
    job = await ledger.submit(parallel("A", "A", "A", task("A", priority=5), "A"))
    await ledger.acts.begin_prioritizing(job, 7)
    await ledger.acts.rerank_some(job)

    await ledger.acts.begin_prioritizing(job, 3)
    await ledger.acts.finish_walks()

    assert await priorities(ledger, job) == [3, 3, 3, 5, 3]
    assert await ledger.acts.jobs_reranking() == []


async def test_what_a_crash_left_is_finished_by_whoever_finds_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts_module, "_SOME", 2)
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.acts.begin_prioritizing(job, 7)
    await ledger.acts.rerank_some(job)
    begun = await priorities(ledger, job)

    await ledger.acts.finish_walks()

    assert begun == [7, 7, 1, 1, 1]
    assert await priorities(ledger, job) == [7] * 5


async def test_nothing_is_left_of_a_change_when_its_job_is_deleted(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.acts.begin_prioritizing(job, 7)

    await ledger.acts.delete_job(job)

    assert await ledger.acts.jobs_reranking() == []
    assert await rows_left(ledger.store, job) == {}


async def test_what_is_not_there_has_no_priority(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        await ledger.acts.prioritize_job(JobId(9), 1)
    with pytest.raises(NotFound):
        await ledger.acts.prioritize_task(TaskId(9), 1)


async def test_of_a_claim_that_is_taken_back_the_message_counts_no_more(ledger: Ledger) -> None:
    """It may be on its way to the exchange at this moment."""
    job = await ledger.submit("A")
    claims = await ledger.claim()

    await ledger.acts.prioritize_task(claims[0].task_id, 3)
    await ledger.mark(queued=claims)

    assert await ledger.states(job) == {"A": READY}
    assert keys_of(await ledger.claim()) == ["A"]
    assert ticket_of(await ledger.task(job, "A")).dispatch > claims[0].dispatch
