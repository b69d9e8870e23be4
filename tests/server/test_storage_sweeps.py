"""What the sweeper does in the store: it ends what is over, once, and nothing else."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId, Task
from dane_core.message import Heartbeat, Leased, Released, Started
from dane_core.states import JobStatus, TaskState
from dane_server.storage import tables
from dane_server.storage.statements import sweep
from dane_server.storage.sweeps import Running
from tests.server.audit import audit
from tests.server.clock import clock_put
from tests.server.ledger import LEASE, Ledger, answer, ask, parallel, sequence, task, ticket_of

BACKOFF, FAILED, QUEUED, READY, RUNNING = (
    TaskState.BACKOFF,
    TaskState.FAILED,
    TaskState.QUEUED,
    TaskState.READY,
    TaskState.RUNNING,
)
HOUR = timedelta(hours=1)


async def begin(ledger: Ledger, job: JobId, name: str = "A", worker: str = "w1") -> Task:
    """A worker says that it has begun a task."""
    one = await ledger.task(job, name)
    await ledger.writer.note_reports(
        [Started(ticket=ticket_of(one), worker=worker, runtime=1.0)], [], []
    )
    return await ledger.task(job, name)


async def lease(ledger: Ledger, job: JobId, name: str = "A", worker: str = "w1") -> Task:
    """A worker runs a task on a lease."""
    one = await begin(ledger, job, name, worker)
    leased = Leased(ticket=ticket_of(one), worker=worker, runtime=1.0, lease=60.0)
    await ledger.writer.note_reports([], [], [], leased=[leased])
    return one


async def running(ledger: Ledger) -> Sequence[Running]:
    return (await ledger.sweeps.look()).running


async def lose(ledger: Ledger, over: Sequence[Running]) -> bool:
    return await ledger.sweeps.lose(over, "was not heard of for 60 s", limit=3)


# --- leases -----------------------------------------------------------------------------------


async def test_a_lease_that_is_over_gives_the_task_a_new_attempt(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    await ledger.send()
    first = await lease(ledger, job)
    over = await running(ledger)

    with clock_put(ledger.store, 61):
        lost = await lose(ledger, over)
        [claim] = await ledger.send()

    assert lost
    assert (claim.task_id, claim.attempt) == (first.id, 2)
    view = await ledger.reader.task(first.id)
    [attempt] = view.attempts
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, 500, "w1")
    assert attempt.message == "worker w1 was not heard of for 60 s"
    assert await audit(ledger.store, job) == []


async def test_the_answer_of_a_worker_that_was_given_up_is_rejected(ledger: Ledger) -> None:
    """It was only cut off, and comes back with the result of an attempt that is over."""
    job = await ledger.submit("A")
    await ledger.send()
    first = await lease(ledger, job)
    over = await running(ledger)
    with clock_put(ledger.store, 61):
        await lose(ledger, over)

        late = await ledger.record(answer(ticket_of(first), response={"x": 1}))
        await ledger.answer_all(response={"x": 2})

    assert len(late.late) == 1
    assert (await ledger.reader.task(first.id)).answer == {"x": 2}
    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


async def test_a_lease_that_is_renewed_in_the_same_moment_goes_on(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.send()
    one = await lease(ledger, job)
    over = await running(ledger)

    with clock_put(ledger.store, 61):
        beat = Heartbeat(worker="w1", running=(ticket_of(one),), lease=60.0)
        await ledger.writer.note_reports([], [], [], heartbeats=[beat])
        await lose(ledger, over)

    assert (await ledger.states(job)) == {"A": RUNNING}
    assert (await ledger.task(job, "A")).attempt == 1


async def test_a_task_that_moved_on_is_not_given_another_attempt(ledger: Ledger) -> None:
    """Between the look at it and its end another server, or its answer, was quicker."""
    job = await ledger.submit(parallel("A", "B"))
    await ledger.send()
    answered, taken = await lease(ledger, job, "A"), await lease(ledger, job, "B")
    over = await running(ledger)
    await ledger.record(answer(ticket_of(answered)))

    with clock_put(ledger.store, 61):
        await lose(ledger, [one for one in over if one.task_id == taken.id])
        await ledger.send()
        await lease(ledger, job, "B", worker="w2")
    with clock_put(ledger.store, 3600):
        again = await lose(ledger, over)

    assert not again
    assert (await ledger.states(job)) == {"A": TaskState.SUCCEEDED, "B": RUNNING}
    assert (await ledger.task(job, "B")).attempt == 2


async def test_what_runs_on_a_message_for_long_goes_onto_a_lease(ledger: Ledger) -> None:
    """Its queue may be gone: then nobody but its worker knows of it."""
    job = await ledger.submit(parallel("A", "B"))
    await ledger.claim()
    await begin(ledger, job, "A")
    with clock_put(ledger.store, 3600):
        await begin(ledger, job, "B")

        await ledger.sweeps.watch_unwatched(LEASE)

        [one] = await running(ledger)
    assert one.task_id == (await ledger.task(job, "A")).id
    assert 50 < one.left <= 60 + 3600


# --- deadlines --------------------------------------------------------------------------------


async def test_an_attempt_that_ran_too_long_is_tried_again_as_after_a_504(ledger: Ledger) -> None:
    job = await ledger.submit(task("A", timeout=60, retry={"limit": 1, "delay": 0}))
    await ledger.send()
    first = await begin(ledger, job)

    ended = await ledger.sweeps.time_out(await running(ledger))
    waiting = await ledger.task(job, "A")
    await ledger.sweep()
    await ledger.send()
    await begin(ledger, job)
    await ledger.sweeps.time_out(await running(ledger))

    assert ended
    assert (waiting.state, waiting.number, waiting.attempt) == (BACKOFF, 504, 2)
    assert waiting.text == "it ran longer than its timeout of 60 s, and its worker did not end it"
    assert (await ledger.states(job)) == {"A": FAILED}
    assert [one.outcome for one in (await ledger.reader.task(first.id)).attempts] == [504, 504]
    assert await audit(ledger.store, job) == []


async def test_a_forgiven_task_that_ran_too_long_lets_others_go(ledger: Ledger) -> None:
    job = await ledger.submit(
        sequence(task("A", timeout=60, retry={"limit": 0}, allow_failure=True), "B")
    )
    await ledger.send()
    await begin(ledger, job)

    await ledger.sweeps.time_out(await running(ledger))

    assert (await ledger.states(job)) == {"A": FAILED, "B": READY}
    assert await audit(ledger.store, job) == []


async def test_an_answer_is_quicker_than_the_deadline(ledger: Ledger) -> None:
    job = await ledger.submit(task("A", timeout=60))
    await ledger.send()
    await begin(ledger, job)
    over = await running(ledger)
    await ledger.answer_all()
    await ledger.record(answer(ticket_of(await ledger.task(job, "A"))))

    assert not await ledger.sweeps.time_out(over)
    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_who_was_let_start_the_same_attempt_since_has_all_of_its_time(
    ledger: Ledger,
) -> None:
    job = await ledger.submit(task("A", timeout=60))
    [claim] = await ledger.send()
    await begin(ledger, job)
    over = await running(ledger)
    with clock_put(ledger.store, 90):
        await ledger.writer.judge([ask(claim, "w2", redelivered=True)])

        assert not await ledger.sweeps.time_out(over)
    assert await ledger.states(job) == {"A": RUNNING}


async def test_only_what_has_a_lease_or_a_timeout_is_watched(ledger: Ledger) -> None:
    job = await ledger.submit(parallel(task("A", timeout=60), "B", "C"))
    await ledger.send()
    await begin(ledger, job, "A")
    await begin(ledger, job, "B")
    await lease(ledger, job, "C")

    seen = {one.task_id: (one.leased, one.timeout) for one in await running(ledger)}

    assert seen == {
        (await ledger.task(job, "A")).id: (False, 60.0),
        (await ledger.task(job, "C")).id: (True, None),
    }


# --- clocks -----------------------------------------------------------------------------------


async def test_after_a_step_back_nothing_waits_for_the_time_to_come_round_again(
    ledger: Ledger,
) -> None:
    job = await ledger.submit(
        parallel(task("BACK", retry={"delay": 30}), "LOST", "SENT", "RUNS", "UNBOUND", "REFUSED")
    )
    with clock_put(ledger.store, 3600):
        claims = {claim.key: claim for claim in await ledger.claim(lease=timedelta(seconds=15))}
        await ledger.mark(
            queued=[claims[key] for key in ("BACK", "SENT", "RUNS", "REFUSED")],
            unroutable=[claims["UNBOUND"]],
        )
        await lease(ledger, job, "RUNS")
        await ledger.record(answer(claims["BACK"], 503))
        await ledger.writer.note_reports([], [], [_refused(await ledger.task(job, "REFUSED"))])

    before = await ledger.sweep()
    moved = await ledger.sweeps.look_sooner(
        {
            READY: timedelta(0),
            BACKOFF: timedelta(0),
            TaskState.UNROUTABLE: timedelta(0),
            TaskState.DISPATCHING: timedelta(seconds=15),
            QUEUED: HOUR,
            RUNNING: timedelta(seconds=60),
        }
    )
    await ledger.sweep()

    assert (before, moved) == (0, 6)
    assert (await ledger.states(job)) == {
        "BACK": READY,
        "LOST": TaskState.DISPATCHING,
        "SENT": QUEUED,
        "RUNS": RUNNING,
        "UNBOUND": READY,
        "REFUSED": READY,
    }
    [leased] = await running(ledger)
    assert 50 < leased.left <= 60
    sent = {claim.key for claim in await ledger.claim()}
    assert sent == {"BACK", "UNBOUND", "REFUSED"}
    due = await ledger.sweeps.next_due()
    assert due is not None
    assert due <= 15


def _refused(one: Task) -> Released:
    return Released(ticket=ticket_of(one), worker="w1", delay=10.0)


async def test_claims_can_be_left_alone_for_a_while(ledger: Ledger) -> None:
    """After a start: what was being sent as the server died may have been answered since."""
    job = await ledger.submit(parallel("A", task("B", retry={"delay": 0})))
    claims = {one.key: one for one in await ledger.claim(lease=timedelta(0))}
    await ledger.record(answer(claims["B"], 503))

    patient = await ledger.sweeps.sweep(silence=LEASE, patient_with_sendings=True)
    states = await ledger.states(job)
    await ledger.sweeps.sweep(silence=LEASE)

    assert patient == 1
    assert states == {"A": TaskState.DISPATCHING, "B": READY}
    assert (await ledger.states(job)) == {"A": READY, "B": READY}


# --- plans ------------------------------------------------------------------------------------


@pytest.mark.services
async def test_sweeping_reads_no_more_rows_than_it_takes(mariadb_store: Any) -> None:
    """Tens of thousands wait, whether for workers or for a time: looking must stay cheap."""
    store = mariadb_store
    state = sa.case(
        (tables.tasks.c.seq % 4 == 0, TaskState.READY.value),
        (tables.tasks.c.seq % 4 == 1, TaskState.UNROUTABLE.value),
        (tables.tasks.c.seq % 4 == 2, TaskState.QUEUED.value),
        else_=TaskState.SUCCEEDED.value,
    )

    async def fill(connection: AsyncConnection) -> None:
        rows = [{"job_id": 1, "seq": seq, "task_key": f"K{seq % 40}"} for seq in range(20_000)]
        await connection.execute(sa.insert(tables.tasks), rows)
        await connection.execute(
            sa.update(tables.tasks).values(
                state=state,
                due_at=sa.func.timestampadd(
                    sa.text("SECOND"), tables.tasks.c.seq - 10_000, sa.func.utc_timestamp(6)
                ),
            )
        )
        await connection.execute(sa.text("ANALYZE TABLE task"))

    async def read_by(connection: AsyncConnection, statement: sa.Select[Any]) -> int:
        """How many rows a query makes the database touch."""
        await connection.execute(sa.text("FLUSH STATUS"))
        await connection.execute(statement)
        status = await connection.execute(sa.text("SHOW SESSION STATUS LIKE 'Handler_read%'"))
        return sum(int(value) for _, value in status)

    async def look(connection: AsyncConnection) -> dict[str, int]:
        return {
            "overdue": await read_by(connection, sweep.overdue(TaskState.UNROUTABLE, 500)),
            "next_due": await read_by(connection, sweep.next_due()),
            "too late": await read_by(connection, sweep.due_too_late(TaskState.BACKOFF, 0, 500)),
            "running": await read_by(connection, sweep.running()),
            "unwatched": await read_by(connection, sweep.runs_unwatched(500)),
            "keys": await read_by(connection, sweep.keys_queued()),
            "horizon": await read_by(connection, sweep.past_horizon(500)),
        }

    await store.write(fill)
    read = await store.write(look)

    most = {
        "overdue": 1100,
        "next_due": 20,
        "too late": 20,
        "running": 20,
        "unwatched": 20,
        "keys": 5100,  # what lies in queues, which the windows bound; from the index alone
        "horizon": 1100,
    }
    assert {name: rows for name, rows in read.items() if rows > most[name]} == {}
