"""What lies in a queue and is overtaken there all the time is put forward, in its time."""

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId
from dane_core.states import TaskState
from dane_server.storage.functions import later
from dane_server.storage.tables import tasks
from tests.server.audit import audit
from tests.server.ledger import LEASE, Ledger, answer, parallel, started

AGEING = timedelta(seconds=300)


async def wait(ledger: Ledger, job: JobId, seconds: float) -> None:
    """What is queued of a job has been so for some time."""

    async def unit(connection: AsyncConnection) -> None:
        queued = sa.update(tasks).where(tasks.c.job_id == job, tasks.c.state == TaskState.QUEUED)
        await connection.execute(queued.values(queued_at=later(-seconds)))

    await ledger.store.write(unit)


async def standing(ledger: Ledger, job: JobId) -> list[tuple[TaskState, int]]:
    """The state and the priority of each task of a job."""
    return [(task.state, task.priority) for task in await ledger.tasks(job)]


async def both_queued(ledger: Ledger, spec: Any = "A") -> tuple[JobId, JobId]:
    """A job of priority 0, and one of priority 3 beside it: all of both is in the queue."""
    patient = await ledger.submit(spec, priority=0)
    other = await ledger.submit(parallel(*["A"] * 4), priority=3)
    await ledger.send()
    return patient, other


async def test_one_that_is_overtaken_is_sent_as_of_the_most_urgent_in_the_end(
    ledger: Ledger,
) -> None:
    """It counts as one more urgent for each time of ageing: here three times make it."""
    patient, urgent = await both_queued(ledger)

    await wait(ledger, patient, 899)
    early = await ledger.sweeps.put_forward(AGEING)
    await wait(ledger, patient, 901)
    [forward] = await ledger.sweeps.put_forward(AGEING)
    again = await ledger.sweeps.put_forward(AGEING)
    before = (await ledger.task(patient, "A")).dispatch
    claims = await ledger.writer.claim_ready(window=99, limit=9, lease=LEASE, ageing=AGEING)
    [claim] = claims  # it has waited for this rank already, and not yet as one of it

    assert (early, again) == ([], [])
    assert (claim.task_id, claim.priority) == (forward, 3)
    assert claim.dispatch == before + 1  # the first message is no longer its newest
    assert await standing(ledger, urgent) == [(TaskState.QUEUED, 3)] * 4
    assert await audit(ledger.store, patient) == []


async def test_one_of_each_job_is_put_forward_at_a_time(ledger: Ledger) -> None:
    """A job with ten thousand tasks that are not urgent does not go before what is."""
    patient, _ = await both_queued(ledger, parallel("A", "A", "A"))
    await wait(ledger, patient, 1000)

    [first] = await ledger.sweeps.put_forward(AGEING)
    [claim] = await ledger.send()
    beside_it = await ledger.sweeps.put_forward(AGEING)
    await ledger.writer.note_reports([started(claim)], [], [])
    while_it_runs = await ledger.sweeps.put_forward(AGEING)
    await ledger.record(answer(claim))
    [second] = await ledger.sweeps.put_forward(AGEING)

    assert (beside_it, while_it_runs) == ([], [])
    assert first < second
    assert await audit(ledger.store, patient) == []


async def test_among_those_that_are_alike_nobody_is_put_forward(ledger: Ledger) -> None:
    """A message that is taken back goes to the end of its queue: it would only lose its place."""
    patient = await ledger.submit(parallel("A", "B"), priority=0)
    other = await ledger.submit("A", priority=0)
    await ledger.submit("C", priority=9)  # another queue
    await ledger.send()
    for job in (patient, other):
        await wait(ledger, job, 100_000)

    assert await ledger.sweeps.put_forward(AGEING) == []


async def test_one_that_has_a_reserved_place_is_put_forward_too(ledger: Ledger) -> None:
    """A full window leaves places for new jobs: there their tasks are as far behind as before."""
    urgent = await ledger.submit(parallel(*["A"] * 40), priority=9)
    await ledger.mark(queued=await ledger.claim(window=20))
    patient = await ledger.submit("A", priority=0)
    await ledger.mark(queued=await ledger.claim(window=20))
    placed = await standing(ledger, patient)

    await wait(ledger, patient, 9 * 300 + 1)
    [forward] = await ledger.sweeps.put_forward(AGEING)
    claims = await ledger.claim(window=20)

    assert placed == [(TaskState.QUEUED, 0)]
    assert [(claim.task_id, claim.priority) for claim in claims] == [(forward, 9)]
    assert (TaskState.READY, 9) in await standing(ledger, urgent)
