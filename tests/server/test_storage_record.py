"""Answers are recorded once, together with what they let go; what comes late changes nothing."""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import Retry, TaskId
from dane_core.message import Ticket
from dane_core.states import JobStatus, TaskState
from dane_server.storage import tables
from dane_server.storage.acts import Acts
from dane_server.storage.recording import retry_delay
from dane_server.storage.view import Rejected, Rejection
from dane_server.storage.writer import Writer
from tests.server.audit import audit, read_books
from tests.server.crash import Crash, Crashing, Holding
from tests.server.ledger import (
    LEASE,
    Ledger,
    answer,
    graph,
    keys_of,
    parallel,
    progress,
    sequence,
    started,
    task,
    ticket,
)

BLOCKED, READY, QUEUED = TaskState.BLOCKED, TaskState.READY, TaskState.QUEUED
BACKOFF, FAILED, SUCCEEDED = TaskState.BACKOFF, TaskState.FAILED, TaskState.SUCCEEDED

LONG_AGO = datetime(2001, 1, 1)  # noqa: DTZ001 - the store keeps UTC without saying so


async def test_an_answer_settles_its_task_and_readies_the_next(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()

    recorded = await ledger.record(
        answer(claim, message="Done ✓", response={"n": [1, "ü"]}, worker="w1", runtime=0.5)
    )

    view = await ledger.reader.task(claim.task_id)
    assert recorded.settled == {claim.task_id: SUCCEEDED}
    assert await ledger.states(job) == {"A": SUCCEEDED, "B": READY}
    assert (view.task.number, view.task.text, view.task.worker) == (200, "Done ✓", "w1")
    assert view.answer == {"n": [1, "ü"]}
    [attempt] = view.attempts
    assert (attempt.number, attempt.outcome, attempt.message) == (1, 200, "Done ✓")
    assert (attempt.worker, attempt.runtime) == ("w1", 0.5)
    assert await audit(ledger.store, job) == []


async def test_the_start_is_reckoned_from_the_run_time(ledger: Ledger) -> None:
    """Clocks of workers and server are never compared."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.record(answer(claim, runtime=100.0, started_at="1970-01-01T00:00:00Z"))

    found = (await ledger.reader.task(claim.task_id)).task

    assert found.started_at is not None
    assert found.finished_at is not None
    assert (found.finished_at - found.started_at).total_seconds() == pytest.approx(100, abs=1)


@pytest.mark.parametrize("runtime", [0.0, 1e9])
async def test_any_run_time_that_passes_the_wire_can_be_recorded(
    ledger: Ledger, runtime: float
) -> None:
    job = await ledger.submit(parallel("A", "B"))
    claims = {claim.key: claim for claim in await ledger.send()}
    await ledger.writer.note_reports([started(claims["A"])], [], [])

    await ledger.record(answer(claims["A"], runtime=runtime), answer(claims["B"]))

    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_a_failure_keeps_its_number_message_and_response(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    await ledger.answer_all(404, message="no such film", response={"tried": 3})

    found = await ledger.task(job, "A")
    head = await ledger.reader.job(job)

    assert (found.state, found.number, found.text) == (FAILED, 404, "no such film")
    assert await ledger.answers_of(job) == {found.id: {"tried": 3}}
    assert (head.status, head.state) == (JobStatus.FAILED, 404)
    assert head.finished_at is not None
    assert (await ledger.states(job))["B"] is BLOCKED


async def test_a_number_nobody_knows_is_a_failure(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.answer_all(102)

    found = await ledger.task(job, "A")

    assert (found.state, found.number) == (FAILED, 500)
    assert (await ledger.reader.job(job)).state == 500


# --- once -------------------------------------------------------------------------------------


async def test_an_answer_that_comes_twice_counts_once(ledger: Ledger) -> None:
    """The broker delivers it again when an ack is lost."""
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()

    first = await ledger.record(answer(claim, response={"n": 1}))
    again = await ledger.record(answer(claim, response={"n": 2}))

    assert (len(first.settled), len(again.settled)) == (1, 0)
    assert len(again.late) == 1
    assert list((await ledger.answers_of(job)).values()) == [{"n": 1}]
    assert await audit(ledger.store, job) == []


async def test_of_two_answers_in_one_batch_the_first_counts(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()

    recorded = await ledger.record(answer(claim), answer(claim, 500), answer(claim))

    assert recorded.settled == {claim.task_id: SUCCEEDED}
    assert len(recorded.late) == 2
    assert await audit(ledger.store, job) == []


async def test_an_answer_recorded_by_two_runners_at_once_counts_once(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel("B", "C"), parallel("D", "E")))
    [claim] = await ledger.send()

    outcomes = await asyncio.gather(*(ledger.record(answer(claim)) for _ in range(5)))

    assert sorted(len(outcome.settled) for outcome in outcomes) == [0, 0, 0, 0, 1]
    assert await audit(ledger.store, job) == []


async def test_an_answer_that_did_not_commit_is_taken_the_second_time(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel("B", "C"), parallel("D", "E")))
    [claim] = await ledger.send()
    before = await read_books(ledger.store, [job])

    with pytest.raises(Crash):
        await Writer(Crashing(ledger.store)).record([answer(claim)], window=9, lease=LEASE)
    after_crash = await read_books(ledger.store, [job])
    await ledger.record(answer(claim))

    assert after_crash == before
    assert (await ledger.states(job))["B"] is READY
    assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("act", ["cancel_job", "delete_job"])
async def test_an_answer_after_the_job_was_taken_away_changes_nothing(
    ledger: Ledger, act: str
) -> None:
    job = await ledger.submit(sequence("A", "B"))
    claims = await ledger.send()
    await getattr(ledger.acts, act)(job)

    recorded = await ledger.record(*map(answer, claims))

    assert (recorded.settled, len(recorded.late)) == ({}, 1)
    assert await ledger.claim() == []


async def test_an_answer_for_a_task_that_never_was_is_late(ledger: Ledger) -> None:
    unknown = Ticket(task_id=TaskId(2**62), attempt=1, dispatch=1, token="")
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    recorded = await ledger.record(answer(unknown), answer(claim))

    assert len(recorded.late) == 1
    assert await ledger.status(job) is JobStatus.SUCCEEDED


@pytest.mark.parametrize("attempt", [0, 2, 99])
async def test_an_answer_of_another_attempt_is_late(ledger: Ledger, attempt: int) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    recorded = await ledger.record(answer(ticket(claim, attempt=attempt)))

    assert len(recorded.late) == 1
    assert (await ledger.states(job)) == {"A": QUEUED}


async def test_an_answer_is_taken_from_a_message_thought_lost(ledger: Ledger) -> None:
    """Ready again after its lease, or without a queue: it had reached a worker all the same."""
    job = await ledger.submit(parallel("A", "B"))
    claims = {claim.key: claim for claim in await ledger.claim()}
    await ledger.mark(unroutable=[claims["B"]])
    await ledger.acts.pause_job(job)
    before = await ledger.states(job)

    await ledger.record(*map(answer, claims.values()))

    assert before == {"A": READY, "B": TaskState.UNROUTABLE}
    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


# --- what is not recorded ---------------------------------------------------------------------


async def rejections_of(ledger: Ledger, task_id: int) -> list[tuple[int, str, int, str | None]]:
    async def unit(connection: AsyncConnection) -> list[tuple[int, str, int, str | None]]:
        rows = await connection.execute(
            sa.select(tables.rejected).where(tables.rejected.c.task_id == task_id)
        )
        return sorted((row.attempt, row.reason, row.times, row.worker) for row in rows)

    return await ledger.store.read(unit)


async def test_a_hundred_copies_of_an_answer_are_one_answer_and_99_rejections(
    ledger: Ledger,
) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    first = await ledger.record(*[answer(claim, worker="w1")] * 60)
    second = await ledger.record(*[answer(claim, worker="w2")] * 40)

    assert (len(first.late), len(second.late)) == (59, 40)
    assert second.reasons == {Rejected.SETTLED: 40}
    assert await rejections_of(ledger, claim.task_id) == [(1, "settled", 99, "w2")]
    [attempt] = (await ledger.reader.task(claim.task_id)).attempts
    assert attempt.worker == "w1"
    assert await audit(ledger.store, job) == []


async def test_each_answer_that_is_not_recorded_is_counted_with_its_reason(
    ledger: Ledger,
) -> None:
    """Together in one batch, with one that is."""
    job = await ledger.submit(parallel("A", "B", "C"))
    stale, cancelled, good = await ledger.send()
    other = await ledger.submit("A")
    [deleted] = await ledger.send()
    await ledger.acts.force_task(stale.task_id)
    await ledger.acts.retry_task(cancelled.task_id)
    await ledger.record(answer(cancelled, 499))
    await ledger.acts.delete_job(other)

    recorded = await ledger.record(
        answer(stale), answer(cancelled), answer(deleted, worker="w9"), answer(good)
    )

    assert set(recorded.settled) == {good.task_id}
    assert recorded.reasons == {Rejected.STALE: 1, Rejected.SETTLED: 1, Rejected.GONE: 1}
    assert await rejections_of(ledger, stale.task_id) == [(1, "stale", 1, None)]
    assert await rejections_of(ledger, cancelled.task_id) == [(1, "settled", 1, None)]
    assert await rejections_of(ledger, deleted.task_id) == []
    assert await rejections_of(ledger, 0) == [(0, "gone", 1, "w9")]
    assert await audit(ledger.store, job) == []


async def test_rejections_go_with_their_task(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.record(answer(claim), answer(claim))

    await ledger.acts.delete_job(job)

    assert await rejections_of(ledger, claim.task_id) == []


async def test_forgeries_cannot_fill_the_store(ledger: Ledger) -> None:
    """Attempts and tasks that never were are counted as one."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    tickets = [ticket(claim, attempt=n) for n in range(1, 50)]
    unknown = [replace(one, task_id=TaskId(10**6 + one.attempt)) for one in tickets]

    await ledger.writer.count_forged(
        [Rejection(ticket=one, worker="x", reason=Rejected.FORGED) for one in [*tickets, *unknown]]
    )

    assert await rejections_of(ledger, claim.task_id) == [
        (0, "forged", 48, "x"),
        (1, "forged", 1, "x"),
    ]
    assert await rejections_of(ledger, 0) == [(0, "forged", 49, "x")]


# --- again by itself --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [502, 503, 504])
async def test_a_task_that_failed_for_now_is_tried_again_when_due(
    ledger: Ledger, number: int
) -> None:
    job = await ledger.submit(sequence(task("A", retry={"delay": 0}), "B"))
    [first] = await ledger.send()
    await ledger.record(answer(first, number, message="busy", response={"x": 1}, worker="w1"))
    waiting = await ledger.task(job, "A")

    due = await ledger.sweep()
    [second] = await ledger.send()
    late = await ledger.record(answer(first))

    assert (waiting.state, waiting.number, waiting.text) == (BACKOFF, number, "busy")
    assert due == 1
    assert (second.task_id, second.attempt) == (first.task_id, 2)
    assert len(late.late) == 1
    await ledger.record(answer(second, response={"x": 2}))
    view = await ledger.reader.task(first.task_id)
    assert [(one.number, one.outcome) for one in view.attempts] == [(1, number), (2, 200)]
    assert view.answer == {"x": 2}
    assert (await ledger.states(job))["B"] is READY
    assert await audit(ledger.store, job) == []


async def test_a_task_fails_for_good_when_it_was_tried_often_enough(ledger: Ledger) -> None:
    job = await ledger.submit(task("A", retry={"limit": 2, "delay": 0}))

    states = []
    for _ in range(3):
        await ledger.answer_all(503)
        states.append((await ledger.states(job))["A"])
        await ledger.sweep()

    assert states == [BACKOFF, BACKOFF, FAILED]
    assert (await ledger.task(job, "A")).number == 503
    assert await ledger.status(job) is JobStatus.FAILED
    assert await audit(ledger.store, job) == []


async def test_a_task_that_may_not_be_tried_again_fails_at_once(ledger: Ledger) -> None:
    job = await ledger.submit(task("A", retry={"limit": 0}))

    await ledger.answer_all(503)

    assert await ledger.states(job) == {"A": FAILED}


async def test_a_task_in_backoff_waits_its_time(ledger: Ledger) -> None:
    await ledger.submit(task("A", retry={"delay": 100, "factor": 2, "limit": 3}))
    waits = []
    for _ in range(3):
        await ledger.answer_all(503)
        due = await ledger.sweeps.next_due()
        assert due is not None
        waits.append(due)
        assert await ledger.sweep() == 0
        assert await ledger.claim() == []
        await _make_due(ledger)
        await ledger.sweep()

    assert waits == [pytest.approx(wait, abs=20) for wait in (100, 200, 400)]


async def _make_due(ledger: Ledger) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await connection.execute(sa.update(tables.tasks).values(due_at=LONG_AGO))

    await ledger.store.write(unit)


@pytest.mark.parametrize(
    ("retry", "waits"),
    [
        (Retry(delay=2, factor=2, max_delay=600), [2, 4, 8, 16]),
        (Retry(delay=1, factor=1, max_delay=600), [1, 1, 1, 1]),
        (Retry(delay=0, factor=10, max_delay=600), [0, 0, 0, 0]),
        (Retry(delay=100, factor=3, max_delay=250), [100, 250, 250, 250]),
        (Retry(delay=5, factor=2, max_delay=0), [0, 0, 0, 0]),
    ],
)
def test_the_delay_grows_up_to_its_bound(retry: Retry, waits: list[float]) -> None:
    assert [retry_delay(retry, tries) for tries in range(4)] == waits


def test_the_delay_can_be_reckoned_for_any_retry_that_may_be_asked_for() -> None:
    """The bounds of a specification: a hundred tries, each ten times later than the last."""
    assert retry_delay(Retry(limit=100, delay=86_400, factor=10, max_delay=604_800), 99) == 604_800


# --- what is let go ---------------------------------------------------------------------------


async def test_a_task_that_was_allowed_to_fail_lets_its_successors_go(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(task("A", allow_failure=True), "B"))

    await ledger.answer_all(500)
    during = await ledger.reader.job(job)
    await ledger.answer_all()
    after = await ledger.reader.job(job)

    assert (during.status, during.counts.forgiven) == (JobStatus.RUNNING, 1)
    assert (after.status, after.state) == (JobStatus.SUCCEEDED, 200)
    assert await audit(ledger.store, job) == []


async def test_a_task_that_may_fail_is_tried_again_first(ledger: Ledger) -> None:
    retry = {"limit": 1, "delay": 0}
    job = await ledger.submit(sequence(task("A", allow_failure=True, retry=retry), "B"))

    await ledger.answer_all(503)
    waiting = await ledger.states(job)
    await ledger.sweep()
    await ledger.answer_all(503)

    assert waiting == {"A": BACKOFF, "B": BLOCKED}
    assert await ledger.states(job) == {"A": FAILED, "B": READY}


async def test_a_cancelled_task_lets_nothing_go_even_if_it_may_fail(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(task("A", allow_failure=True), "B"))

    await ledger.answer_all(499)

    assert (await ledger.states(job))["B"] is BLOCKED
    assert await ledger.status(job) is JobStatus.CANCELLED
    assert await audit(ledger.store, job) == []


async def test_what_waits_behind_a_join_goes_when_the_last_is_done(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B", "C"), parallel("D", "E")))
    a, b, c = await ledger.send()

    await ledger.record(answer(a), answer(c))
    early = await ledger.states(job)
    recorded = await ledger.record(answer(b))

    assert early["D"] is early["E"] is BLOCKED
    assert len(recorded.ready) == 2
    assert await audit(ledger.store, job) == []


async def test_joins_behind_joins_are_passed_in_one_go(ledger: Ledger) -> None:
    """No task lies between them, so nobody else would pass the second one."""
    inner = graph(a=parallel("A", "B"), b=(parallel("C", "D"), "a"))
    tasks = graph(x=inner, y=(parallel("E", "F"), "x"), z=(parallel("G", "H"), "x", "y"))
    job = await ledger.submit(sequence(tasks, parallel("I", "J")))

    order = []
    while claims := await ledger.send():
        order.append("".join(sorted(keys_of(claims))))
        await ledger.record(*map(answer, claims))

    assert order == ["AB", "CD", "EF", "GH", "IJ"]
    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


async def test_a_thousand_answers_in_one_batch_release_what_waits_for_them_once(
    ledger: Ledger,
) -> None:
    job = await ledger.submit(sequence(parallel(*["A"] * 1000), parallel("B", "C")))
    claims = await ledger.send(limit=1000)

    recorded = await ledger.record(*(answer(c, response={"n": c.task_id}) for c in claims))

    assert len(recorded.settled) == 1000
    assert len(recorded.ready) == 2
    assert len(await ledger.answers_of(job)) == 1000
    assert await audit(ledger.store, job) == []


async def test_a_thousand_tasks_wait_for_one_and_go_together(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel(*["B"] * 1000)))

    recorded = await ledger.answer_all()

    assert len(recorded.ready) == 1000
    assert (await ledger.reader.job(job)).counts.active == 1000
    assert await audit(ledger.store, job) == []


async def test_answers_of_many_jobs_in_one_batch_keep_each_in_order(ledger: Ledger) -> None:
    specs = [sequence("A", "B"), parallel("A", "A"), sequence(parallel("A", "A"), "B"), "A"]
    jobs = [await ledger.submit(spec, source_id=f"S{n}") for n, spec in enumerate(specs)]
    claims = await ledger.send()

    numbers = [200, 500, 503, 404, 200, 200]
    await ledger.record(*(answer(one, n) for one, n in zip(claims, numbers, strict=True)))

    assert [await audit(ledger.store, job) for job in jobs] == [[]] * 4
    for job in jobs:
        await ledger.finish(job)
        assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_two_runners_that_finish_the_last_two_of_a_join_release_it_once(
    ledger: Ledger,
) -> None:
    """Each alone would see that the other is not done."""
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    a, b = await ledger.send()
    holding = Holding(ledger.store)
    first = asyncio.create_task(Writer(holding).record([answer(a)], window=0, lease=LEASE))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.record(answer(b)))
    await asyncio.wait({second}, timeout=0.3)

    holding.go_on.set()
    outcomes = await asyncio.gather(first, second)

    assert sorted(len(outcome.ready) for outcome in outcomes) == [0, 2]
    assert await audit(ledger.store, job) == []


# --- DOWNLOAD tells the type --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "learned"),
    [
        ("video", "video"),
        ("Video", "video"),
        ("a.b", None),
        ("", None),
        (7, None),
        ("x" * 33, None),
        ("image\n", None),
    ],
)
async def test_the_type_that_download_found_is_learned(
    ledger: Ledger, said: Any, learned: str | None
) -> None:
    """What would break routing is not."""
    job = await ledger.submit(sequence("DOWNLOAD", "A"))

    await ledger.answer_all(response={"file_type": said})

    assert (await ledger.reader.job(job)).type == learned


async def test_the_type_the_submitter_gave_stays(ledger: Ledger) -> None:
    job = await ledger.submit("DOWNLOAD", type="image")

    await ledger.answer_all(response={"file_type": "video"})

    assert (await ledger.reader.job(job)).type == "image"


async def test_only_download_tells_the_type(ledger: Ledger) -> None:
    job = await ledger.submit("A")

    await ledger.answer_all(response={"file_type": "video"})

    assert (await ledger.reader.job(job)).type is None


# --- how it goes --------------------------------------------------------------------------------


async def test_a_worker_that_has_begun_and_gets_on_is_seen(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    await ledger.writer.note_reports(
        [started(claim, "w9")], [progress(claim, 0.25), progress(claim, 0.5, "halfway")], []
    )

    found = await ledger.task(job, "A")
    assert (found.state, found.worker, found.progress) == (TaskState.RUNNING, "w9", 0.5)
    assert (found.number, found.text, found.message) == (102, "Queued", "halfway")
    assert found.started_at is not None
    assert await audit(ledger.store, job) == []


async def test_news_of_an_attempt_that_is_over_is_not_taken(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B"))
    claims = {claim.key: claim for claim in await ledger.send()}
    await ledger.record(answer(claims["A"]))
    await ledger.acts.force_task(claims["B"].task_id)
    before = await read_books(ledger.store, [job])

    for claim in claims.values():
        await ledger.writer.note_reports([started(claim)], [progress(claim, 0.9)], [])

    assert await read_books(ledger.store, [job]) == before


async def test_a_start_that_comes_before_the_confirmation_is_not_undone_by_it(
    ledger: Ledger,
) -> None:
    job = await ledger.submit("A")
    claims = await ledger.claim()
    await ledger.writer.note_reports(list(map(started, claims)), [], [])

    await ledger.mark(queued=claims)

    assert await ledger.states(job) == {"A": TaskState.RUNNING}


async def test_the_answer_to_a_task_forced_in_between_is_late(ledger: Ledger) -> None:
    """Record and force wait for each other; whoever is second sees what the first did."""
    job = await ledger.submit(sequence("A", "B"))
    [claim] = await ledger.send()
    holding = Holding(ledger.store)
    forcing = asyncio.create_task(Acts(holding).force_task(claim.task_id))
    await holding.reached.wait()
    recording = asyncio.create_task(ledger.record(answer(claim)))
    await asyncio.wait({recording}, timeout=0.3)

    holding.go_on.set()
    await forcing

    assert len((await recording).late) == 1
    assert await ledger.states(job) == {"A": READY, "B": BLOCKED}
    assert await audit(ledger.store, job) == []
