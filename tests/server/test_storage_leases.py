"""What runs is known: by its message, or by a lease that its worker renews."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import NotFound
from dane_core.message import Gone
from dane_core.states import JobStatus, TaskState
from dane_server.storage import tables
from dane_server.storage.functions import later
from dane_server.storage.leasing import lose_attempts
from dane_server.storage.statements import lease
from dane_server.storage.tally import Tally
from dane_server.storage.view import Claim
from tests.server.audit import audit
from tests.server.clock import clock_put
from tests.server.ledger import (
    Ledger,
    answer,
    ask,
    heartbeat,
    hello,
    leased,
    parallel,
    progress,
    released,
    sequence,
    started,
    task,
    ticket,
)

READY, QUEUED, RUNNING = TaskState.READY, TaskState.QUEUED, TaskState.RUNNING
FAILED, SUCCEEDED = TaskState.FAILED, TaskState.SUCCEEDED


async def row(ledger: Ledger, task_id: int) -> Any:
    """A task as it stands in the store, with the seconds its lease has to go."""

    async def unit(connection: AsyncConnection) -> Any:
        query = sa.select(tables.tasks, later(0.0).label("time"))
        return (await connection.execute(query.where(tables.tasks.c.id == task_id))).one()

    return await ledger.store.read(unit)


async def seconds_left(ledger: Ledger, task_id: int) -> float:
    found = await row(ledger, task_id)
    return float((found.due_at - found.time).total_seconds())


async def let_leases_end(ledger: Ledger) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await connection.execute(sa.update(tables.tasks).values(due_at=later(-1.0)))

    await ledger.store.write(unit)


async def lease_to(ledger: Ledger, claim: Claim, worker: str = "w1") -> None:
    await ledger.writer.see_workers([hello("A", worker=worker)])
    await ledger.writer.note_reports([], [], [], leased=[leased(claim, worker)])


async def die(ledger: Ledger, worker: str, reason: str = "ended by SIGKILL") -> int:
    return await ledger.writer.lose_workers([Gone(worker=worker, reason=reason)])


# --- hand-off and heartbeats --------------------------------------------------------------------


@pytest.mark.parametrize("before", ["queued", "running"])
async def test_a_handed_off_attempt_runs_on_a_lease(ledger: Ledger, before: str) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    if before == "running":
        await ledger.writer.note_reports([started(claim)], [progress(claim, 0.5)], [])

    await ledger.writer.note_reports([], [], [], leased=[leased(claim, "w2", lease=90)])

    found = await row(ledger, claim.task_id)
    assert (found.state, found.worker, found.leased, found.beats) == (RUNNING, "w2", True, 1)
    assert found.started_at is not None
    assert await seconds_left(ledger, claim.task_id) == pytest.approx(90, abs=20)
    assert await audit(ledger.store, job) == []


async def test_a_heartbeat_renews_what_is_leased_and_only_that(ledger: Ledger) -> None:
    await ledger.submit(parallel("A", "B"))
    on_lease, on_message = await ledger.send()
    await ledger.writer.note_reports(
        [started(on_message)], [], [], leased=[leased(on_lease, lease=5)]
    )

    await ledger.writer.note_reports(
        [], [], [], heartbeats=[heartbeat(on_lease, on_message, lease=300)] * 2
    )

    found = await row(ledger, on_lease.task_id)
    assert (found.beats, found.leased) == (2, True)
    assert await seconds_left(ledger, on_lease.task_id) == pytest.approx(300, abs=20)
    other = await row(ledger, on_message.task_id)
    assert (other.state, other.beats, other.leased) == (RUNNING, 0, False)


async def test_a_hand_off_that_was_lost_is_made_good_by_the_next_heartbeat(
    ledger: Ledger,
) -> None:
    """The message is settled: were its worker to die, nobody would see."""
    job = await ledger.submit(parallel("A", "B", "C"))
    running, unheard_of, others = await ledger.send()
    await ledger.writer.note_reports([started(running), started(others, "w2")], [], [])

    beat = heartbeat(running, unheard_of, others, lease=300)
    beat = replace(beat, leased=frozenset(beat.running))
    await ledger.writer.note_reports([], [], [], heartbeats=[beat])

    rows = [await row(ledger, one.task_id) for one in (running, unheard_of, others)]
    assert [(one.state, one.worker) for one in rows] == [
        (RUNNING, "w1"),
        (RUNNING, "w1"),
        (RUNNING, "w2"),  # on its own message: of that worker the broker tells
    ]
    assert [one.leased for one in rows] == [True, True, False]
    assert await seconds_left(ledger, running.task_id) == pytest.approx(300, abs=20)
    assert await die(ledger, "w1") == 2
    assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("begun", ["started", "asked"])
async def test_an_answer_lost_with_the_responses_is_missed_in_minutes(
    ledger: Ledger, begun: str
) -> None:
    """The message is settled, the answer was confirmed, and then the queue was deleted."""
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    if begun == "started":
        await ledger.writer.note_reports([started(claim)], [], [])
    else:
        await judge(ledger, claim, "w1")
    minute = timedelta(minutes=1)
    await ledger.sweeps.watch_unwatched(minute)
    early = (await row(ledger, claim.task_id)).leased

    with clock_put(ledger.store, 130):
        await ledger.sweeps.watch_unwatched(minute)
    with clock_put(ledger.store, 200):
        over = (await ledger.sweeps.look()).running
        lost = await ledger.sweeps.lose(over, "was not heard of for 60 s", limit=3)
        [again] = await ledger.send()

    assert not early
    assert lost
    assert (again.task_id, again.attempt) == (claim.task_id, 2)
    assert await audit(ledger.store, job) == []


async def test_a_living_worker_keeps_what_it_has_run_on_a_message_for_long(
    ledger: Ledger,
) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim)], [], [])

    with clock_put(ledger.store, 130):
        await ledger.sweeps.watch_unwatched(timedelta(minutes=1))
        await ledger.writer.note_reports([], [], [], heartbeats=[heartbeat(claim)])
    with clock_put(ledger.store, 180):
        over = (await ledger.sweeps.look()).running
        await ledger.sweeps.lose(over, "was not heard of for 60 s", limit=3)

    assert await ledger.states(job) == {"A": RUNNING}
    assert (await row(ledger, claim.task_id)).attempt == 1


async def test_a_worker_that_only_beats_is_not_forgotten(ledger: Ledger) -> None:
    await ledger.submit("A")
    await ledger.send()
    await ledger.writer.see_workers([hello("A")])

    async def age(connection: AsyncConnection) -> None:
        await connection.execute(sa.update(tables.workers).values(seen_at=later(-100.0)))

    await ledger.store.write(age)

    await ledger.writer.note_reports([], [], [], heartbeats=[heartbeat()])
    await ledger.sweep()

    [key] = await ledger.reader.keys()
    assert [worker.id for worker in key.workers] == ["w1"]


async def test_a_heartbeat_tells_of_a_start_that_was_not_heard_of(ledger: Ledger) -> None:
    """From a message that is out there the task needs no lease; from any other it does."""
    job = await ledger.submit(parallel("A", "B", "C", "D"))
    claims = await ledger.claim()
    queued, unroutable, lost, again = claims
    await ledger.mark(queued=[queued, lost, again], unroutable=[unroutable])
    await ledger.writer.note_reports([], [], [released(lost), released(again)])
    [first, second] = await ledger.send()
    await ledger.writer.note_reports([], [], [released(first)])
    assert (first.task_id, second.task_id) == (lost.task_id, again.task_id)

    await ledger.writer.note_reports([], [], [], heartbeats=[heartbeat(*claims, worker="w3")])

    rows = [await row(ledger, claim.task_id) for claim in claims]
    assert [(one.state, one.worker) for one in rows] == [(RUNNING, "w3")] * 4
    assert [one.leased for one in rows] == [False, True, True, True]
    assert await audit(ledger.store, job) == []


async def test_who_works_on_what_is_not_theirs_is_named(ledger: Ledger) -> None:
    """At most once for each ticket, whatever the batch says of it."""
    job = await ledger.submit(parallel("A", "B", "C", "D"))
    stale, settled, current, _ = await ledger.send()
    other = await ledger.submit("A")
    [gone] = await ledger.send()
    await ledger.acts.force_task(stale.task_id)
    await ledger.record(answer(settled))
    await ledger.acts.delete_job(other)
    await ledger.writer.see_workers([hello("A", worker="w1")])

    zombies = await ledger.writer.note_reports(
        [],
        [],
        [],
        leased=[leased(stale)],
        heartbeats=[heartbeat(stale, settled, gone, current), heartbeat(stale, worker="w2")],
    )

    named = {(zombie.inbox, zombie.ticket) for zombie in zombies}
    assert len(zombies) == len(named) == 4
    assert {(inbox, one.task_id) for inbox, one in named if inbox == "i.w1"} == {
        ("i.w1", stale.task_id),
        ("i.w1", settled.task_id),
        ("i.w1", gone.task_id),
    }
    assert (await ledger.states(job))["A"] is READY
    assert await audit(ledger.store, job) == []


async def test_nothing_settled_is_put_on_a_lease(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B"))
    done, cancelled = await ledger.send()
    await ledger.record(answer(done))
    await ledger.acts.cancel_job(job)
    both = [done, cancelled]

    await ledger.writer.note_reports(
        list(map(started, both)),
        [],
        [],
        leased=[leased(one) for one in both],
        heartbeats=[heartbeat(*both)],
    )

    assert await ledger.states(job) == {"A": SUCCEEDED, "B": TaskState.CANCELLED}
    assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("end", ["answer", "backoff", "release", "force", "reset", "cancel"])
async def test_whatever_takes_a_task_out_of_running_ends_its_lease(
    ledger: Ledger, end: str
) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.judge([ask(claim, "w1", redelivered=True)])
    await lease_to(ledger, claim)

    if end == "answer":
        await ledger.record(answer(claim))
    elif end == "backoff":
        await ledger.record(answer(claim, 503))
    elif end == "release":
        await ledger.writer.note_reports([], [], [released(claim)])
    elif end == "force":
        await ledger.acts.force_task(claim.task_id)
    elif end == "reset":
        await ledger.acts.reset_task(claim.task_id)
    else:
        await ledger.acts.cancel_job(job)

    found = await row(ledger, claim.task_id)
    assert found.state != RUNNING
    assert (found.leased, found.beats) == (False, 0)
    if end != "cancel":
        assert (found.starts, found.starters) == (0, None)
    assert await audit(ledger.store, job) == []


async def test_a_leased_task_that_is_handed_back_pays_nothing(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()
    await lease_to(ledger, claim)

    await ledger.writer.note_reports([], [], [released(claim)])

    [again] = await ledger.claim()
    assert (again.task_id, again.attempt) == (claim.task_id, 1)
    assert (await ledger.reader.task(claim.task_id)).attempts == []


async def test_only_its_holder_hands_back_what_runs(ledger: Ledger) -> None:
    """Another worker that drains may hold a copy of the message."""
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await lease_to(ledger, claim, "w1")

    await ledger.writer.note_reports([], [], [released(claim, worker="w2")])

    assert await ledger.states(job) == {"A": RUNNING}


# --- workers that end -----------------------------------------------------------------------------


async def test_what_was_leased_to_a_worker_that_is_gone_begins_anew(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B", "C"))
    mine, on_message, others = await ledger.send()
    await lease_to(ledger, mine, "w1")
    await lease_to(ledger, others, "w2")
    await ledger.writer.note_reports([started(on_message, "w1")], [], [])

    lost = await die(ledger, "w1")

    assert lost == 1
    assert await ledger.states(job) == {"A": READY, "B": RUNNING, "C": RUNNING}
    view = await ledger.reader.task(mine.task_id)
    assert view.task.attempt == 2
    [attempt] = view.attempts
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, 500, "w1")
    assert attempt.message == "worker w1 is gone: ended by SIGKILL"
    found = await row(ledger, mine.task_id)
    assert (found.starts, found.starters) == (1, '["w1"]')
    assert [w.id for key in await ledger.reader.keys() for w in key.workers] == ["w2"]
    assert await audit(ledger.store, job) == []
    assert await die(ledger, "w1") == 0


async def test_what_a_dead_worker_had_on_a_message_is_looked_at_soon(ledger: Ledger) -> None:
    """Somebody else should ask about it; unless the message is gone too."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.note_reports([started(claim, "w1")], [], [])

    await die(ledger, "w1")

    assert await seconds_left(ledger, claim.task_id) == pytest.approx(60, abs=20)
    assert not (await row(ledger, claim.task_id)).leased


async def test_a_task_that_has_ended_three_workers_fails_and_names_them(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(task("A", allow_failure=True), "B"))

    for worker in ("w1", "w2", "w3"):
        [claim] = await ledger.send()
        await lease_to(ledger, claim, worker)
        await die(ledger, worker)

    found = await ledger.task(job, "A")
    assert (found.state, found.number) == (FAILED, 500)
    assert found.message == "it has ended 3 workers that began it: w1, w2, w3"
    view = await ledger.reader.task(found.id)
    assert [(one.number, one.worker) for one in view.attempts] == [(1, "w1"), (2, "w2"), (3, "w3")]
    assert (await ledger.states(job))["B"] is READY
    assert await audit(ledger.store, job) == []
    await ledger.finish(job)
    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_an_attempt_is_lost_once(ledger: Ledger) -> None:
    """Rows read before something else happened to them change nothing."""
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await lease_to(ledger, claim)
    await ledger.record(answer(claim))

    async def unit(connection: AsyncConnection) -> None:
        rows = (await connection.execute(lease.held([claim.task_id]))).all()
        tally = Tally()
        await lose_attempts(connection, rows, "was not heard of for 60 s", tally, limit=3)
        await tally.write(connection)

    await ledger.store.write(unit)

    assert await ledger.states(job) == {"A": SUCCEEDED}
    assert await audit(ledger.store, job) == []


async def test_the_lease_of_a_deleted_job_is_lost_with_it(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await lease_to(ledger, claim)
    await ledger.acts.delete_job(job)

    assert await die(ledger, "w1") == 0

    with pytest.raises(NotFound):
        await ledger.reader.job(job)


# --- messages that come again -----------------------------------------------------------------


async def judge(ledger: Ledger, claim: Claim, worker: str) -> str:
    [objection] = await ledger.writer.judge([ask(claim, worker, redelivered=True)])
    return objection


async def test_a_task_whose_message_came_again_starts_and_is_counted(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    objection = await judge(ledger, claim, "w2")

    found = await row(ledger, claim.task_id)
    assert objection == ""
    assert (found.state, found.worker, found.attempt) == (RUNNING, "w2", 1)
    assert (found.starts, found.starters, found.leased) == (1, '["w2"]', False)
    assert await audit(ledger.store, job) == []


async def test_an_ask_about_a_first_delivery_changes_nothing(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    assert await ledger.writer.judge([ask(claim)]) == [""]

    assert (await row(ledger, claim.task_id)).starts == 0
    assert await ledger.states(job) == {"A": QUEUED}


async def test_a_living_worker_keeps_its_task_on_a_lease(ledger: Ledger) -> None:
    """Its connection was lost, so its message went to another; it works on all the same."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.see_workers([hello("A", worker="w1")])
    await ledger.writer.note_reports([started(claim, "w1")], [], [])

    objection = await judge(ledger, claim, "w2")

    found = await row(ledger, claim.task_id)
    assert objection == "worker w1 has it"
    assert (found.worker, found.leased, found.starts) == ("w1", True, 0)
    assert await seconds_left(ledger, claim.task_id) == pytest.approx(60, abs=20)


async def test_the_task_of_a_worker_that_is_gone_goes_to_who_asks(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.see_workers([hello("A", worker="w1")])
    await ledger.writer.note_reports([started(claim, "w1")], [], [])
    await die(ledger, "w1")

    assert await judge(ledger, claim, "w2") == ""

    found = await row(ledger, claim.task_id)
    assert (found.worker, found.attempt, found.starters) == ("w2", 1, '["w1","w2"]')
    assert found.starts == 1


async def test_a_lease_holds_against_asks_until_it_has_ended(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.note_reports([], [], [], leased=[leased(claim, "w1")])

    during = await judge(ledger, claim, "w2")
    await let_leases_end(ledger)
    after = await judge(ledger, claim, "w2")

    assert (during, after) == ("worker w1 has it", "")
    assert not (await row(ledger, claim.task_id)).leased


async def test_two_asks_for_one_task_in_one_batch_start_it_once(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()

    objections = await ledger.writer.judge(
        [ask(claim, "w2", redelivered=True), ask(claim, "w3", redelivered=True)]
    )

    found = await row(ledger, claim.task_id)
    assert objections == ["", "worker w2 has it"]
    assert (found.worker, found.starts, found.leased) == ("w2", 1, True)


async def test_who_was_let_start_a_task_is_let_again_though_it_is_on_a_lease(
    ledger: Ledger,
) -> None:
    """The verdict was lost with the runner, and another asked meanwhile."""
    await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.writer.see_workers([hello("A", worker="w2")])
    await judge(ledger, claim, "w2")

    others = await judge(ledger, claim, "w3")
    own = await judge(ledger, claim, "w2")
    await ledger.writer.note_reports([], [], [], heartbeats=[heartbeat(claim, worker="w2")])
    at_work = await judge(ledger, claim, "w2")

    assert (others, own, at_work) == ("worker w2 has it", "", "worker w2 has it")
    found = await row(ledger, claim.task_id)
    assert (found.starts, found.leased) == (1, True)


async def test_the_same_ask_again_is_the_same_start(ledger: Ledger) -> None:
    """The batch comes again when a runner dies before it has acknowledged it."""
    await ledger.submit("A")
    [claim] = await ledger.send()

    objections = [await judge(ledger, claim, "w2") for _ in range(3)]

    assert objections == ["", "", ""]
    assert (await row(ledger, claim.task_id)).starts == 1


async def test_a_task_is_not_begun_a_fourth_time(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(task("A", allow_failure=True), "B"))
    [claim] = await ledger.send()
    said = []
    for worker in ("w1", "w2", "w3", "w4"):
        said.append(await judge(ledger, claim, worker))
        await die(ledger, worker)

    found = await ledger.task(job, "A")
    assert said == ["", "", "", "it has ended the workers that began it"]
    assert (found.state, found.number) == (FAILED, 500)
    assert found.message == "it has ended 3 workers that began it: w1, w2, w3"
    [attempt] = (await ledger.reader.task(found.id)).attempts
    assert (attempt.number, attempt.outcome, attempt.message) == (1, 500, found.message)
    assert (await ledger.states(job))["B"] is READY
    assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("how", ["answer", "retry"])
async def test_suspicion_ends_with_an_answer_or_a_person(ledger: Ledger, how: str) -> None:
    job = await ledger.submit(task("A", retry={"delay": 0}))
    [claim] = await ledger.send()
    for worker in ("w1", "w2", "w3"):
        await judge(ledger, claim, worker)
        await die(ledger, worker)

    if how == "answer":
        await ledger.record(answer(claim, 503))
        await ledger.sweep()
    else:
        await judge(ledger, claim, "w4")
        await ledger.acts.retry_job(job)

    [again] = await ledger.send()
    assert again.attempt == 2
    assert (await row(ledger, claim.task_id)).starts == 0
    assert await judge(ledger, again, "w5") == ""


async def test_what_was_sent_before_a_pause_is_taken_back_when_asked_about(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await judge(ledger, claim, "w1")
    await die(ledger, "w1")
    await ledger.acts.pause_job(job)

    objection = await judge(ledger, claim, "w2")

    assert objection == "the job was paused"
    assert await ledger.states(job) == {"A": READY}
    assert await audit(ledger.store, job) == []


# --- few statements -----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["news", "answers", "asks", "late"])
async def test_a_large_batch_takes_as_many_statements_as_a_small_one(
    sqlite_store: Any, what: str
) -> None:
    ledger = Ledger.of(sqlite_store)
    counts = []
    for size in (50, 500):
        await ledger.submit(parallel(*["A"] * size), source_id=f"S{size}")
        claims = await ledger.send()
        if what == "late":
            await ledger.record(*map(answer, claims))
        counted = 0

        def count(*_: Any) -> None:
            nonlocal counted
            counted += 1

        sa.event.listen(ledger.store.engine.sync_engine, "before_cursor_execute", count)
        if what == "news":
            await ledger.writer.note_reports(
                [started(one, f"w{one.task_id}") for one in claims],
                [progress(one, one.task_id / 1000) for one in claims],
                [],
                leased=[leased(one, f"w{one.task_id}") for one in claims],
                heartbeats=[heartbeat(one, worker=f"w{one.task_id}") for one in claims],
            )
        elif what == "asks":
            asks = [ask(one, f"w{one.task_id}", redelivered=True) for one in claims]
            await ledger.writer.judge(asks)
        else:
            await ledger.record(*(answer(one, response={"n": 1}) for one in claims))
        sa.event.remove(ledger.store.engine.sync_engine, "before_cursor_execute", count)
        counts.append(counted)

    assert counts[0] == counts[1] <= 12, counts
    assert ticket(claims[0]).attempt == 1
