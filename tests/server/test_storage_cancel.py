"""Until when work that was taken away from its worker may go on, as the store tells it."""

from datetime import timedelta

from dane_core.states import TaskState
from dane_server.storage.reader import Reader
from tests.server.ledger import Ledger, answer, parallel, sequence, started

GRACE = timedelta(seconds=30)


def reader_of(ledger: Ledger, grace: timedelta = GRACE) -> Reader:
    return Reader(ledger.store, cancel_grace=grace)


async def test_a_job_that_is_cancelled_while_it_runs_tells_when_that_ends(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), "C"))
    claims = await ledger.send()
    await ledger.writer.note_reports([started(claims[0])], [], [])

    await ledger.acts.cancel_job(job)

    reader = reader_of(ledger)
    told = (await reader.job(job)).cancel
    assert told is not None
    assert told.ended_by - told.requested_at == GRACE
    running, never_sent = (await reader.task(claims[0].task_id)), await ledger.task(job, "C")
    assert running.cancel == told
    assert (await reader.task(never_sent.id)).cancel is None
    assert (await reader_of(ledger, timedelta(0)).job(job)).cancel is None  # it is over by now
    assert (await reader_of(ledger, timedelta(0)).task(claims[0].task_id)).cancel is None


async def test_a_job_of_which_nothing_was_sent_has_nothing_to_end(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))

    await ledger.acts.cancel_job(job)

    assert (await reader_of(ledger).job(job)).cancel is None


async def test_an_attempt_that_is_superseded_while_it_runs_has_a_deadline(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B"))
    forced, reset = await ledger.send()

    await ledger.acts.force_task(forced.task_id)
    await ledger.acts.reset_task(reset.task_id)

    reader = reader_of(ledger)
    for claim in (forced, reset):
        told = (await reader.task(claim.task_id)).cancel
        assert told is not None
        assert told.ended_by - told.requested_at == GRACE
    assert (await reader.job(job)).cancel is None


async def test_what_a_worker_itself_called_cancelled_has_no_deadline(ledger: Ledger) -> None:
    """It is at it no longer."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.record(answer(claim, 499))

    view = await reader_of(ledger).task(claim.task_id)

    assert (view.task.state, view.cancel) == (TaskState.CANCELLED, None)
