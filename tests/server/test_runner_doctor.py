"""The doctor: every divergence is made by hand, found, told in a sentence, and repaired.

On SQLite with the exchange in memory, and on MariaDB with RabbitMQ.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dane_core.exchange.base import Exchange
from dane_core.message import Envelope, Offer, open_control
from dane_core.routing import DEAD_QUEUE, binding_keys, epoch_queue, work_queue
from dane_core.states import JobStatus, TaskState
from dane_server.metrics import Metrics
from dane_server.runner.bell import LocalBell
from dane_server.runner.checks import Check, Finding, Repair
from dane_server.runner.doctor import Doctor, examine_broker, replay_dead
from dane_server.runner.pace import Pace
from dane_server.runner.rounds import BY_ITSELF, Rounds
from dane_server.storage.access import Access
from dane_server.storage.engine import Store
from dane_server.storage.functions import later
from dane_server.storage.tables import jobs, tasks, workers
from tests.server.audit import audit
from tests.server.ledger import Ledger, answer, graph, hello, parallel, sequence, started
from tests.server.scripted import at_work as at_work_with

#: What is late at once is found in passing too; a minute later it would have been looked after.
_IN_PASSING = {Check.READY, Check.QUEUED, Check.NOWHERE, Check.OVERDUE, Check.UNSERVED}
#: Late at once; and no time between two looks, as nothing moves meanwhile.
NOW = timedelta(seconds=0)
PACE = Pace(lost_after=NOW)


class Unschooled(Doctor):
    """Takes the tables as they are: those of tests were made without migrations."""

    async def examine_schema(self) -> list[Finding]:
        return []


@dataclass
class Practice:
    """A doctor, and whom it looks at."""

    ledger: Ledger
    exchange: Exchange
    bell: LocalBell
    doctor: Doctor
    key: str = field(default_factory=lambda: f"K-{uuid4().hex[:8].upper()}")
    responses: str = field(default_factory=lambda: f"dane.responses.{uuid4().hex}")

    async def find(self) -> list[Finding]:
        """What two looks show, and a recount."""
        before = await self.doctor.see()
        now = await self.doctor.see(before)
        return [*self.doctor.judge(now, before), *await self.doctor.examine_jobs()]

    async def repair(self, findings: Sequence[Finding]) -> list[bool]:
        return [await self.doctor.repair(finding) for finding in findings]

    async def open_queue(self) -> str:
        queue = work_queue(self.key)
        await self.exchange.declare_queue(queue, binding_keys(self.key))
        return queue

    async def change(self, statement: Any) -> None:
        """What a bug, a restored backup or a hand at the database may have done."""

        async def unit(connection: Any) -> None:
            await connection.execute(statement)

        await self.ledger.store.write(unit)

    async def states(self, job: int) -> list[TaskState]:
        return [one.state for one in await self.ledger.tasks(job)]  # type: ignore[arg-type]


@pytest.fixture
async def practice(placed_ledger: Ledger, placed_exchange: Exchange) -> AsyncIterator[Practice]:
    made = made_of(placed_ledger, placed_exchange)
    yield made
    for queue in (work_queue(made.key), made.responses, DEAD_QUEUE):
        await placed_exchange.delete_queue(queue)


def made_of(ledger: Ledger, exchange: Exchange) -> Practice:
    responses = f"dane.responses.{uuid4().hex}"
    bell = LocalBell()
    doctor = Unschooled(
        access=Access.to(ledger.store),
        exchange=exchange,
        bell=bell,
        pace=PACE,
        response_queue=responses,
        late=NOW,
    )
    return Practice(ledger, exchange, bell, doctor, responses=responses)


def checks(findings: Sequence[Finding]) -> list[Check]:
    return [finding.check for finding in findings]


async def at_work(practice: Practice, *, seen: float = 0.0) -> None:
    """A worker that offers the key was heard of so many seconds ago."""
    await practice.ledger.writer.see_workers([hello(practice.key)])
    await practice.change(sa.update(workers).values(seen_at=later(-seen)))


# --- what is found and repaired -----------------------------------------------------------------


async def test_counters_that_are_wrong_are_counted_anew(practice: Practice) -> None:
    await at_work(practice)
    job = await practice.ledger.submit(practice.key)
    await practice.change(sa.update(jobs).values(active=2))

    found = await practice.find()
    await practice.repair(found)

    assert Check.COUNTERS in checks(found)
    assert Check.COUNTERS not in checks(await practice.find())
    assert await audit(practice.ledger.store, job) == []


async def test_a_claim_that_nobody_confirmed_is_overdue_and_swept(practice: Practice) -> None:
    await at_work(practice)
    job = await practice.ledger.submit(practice.key)
    await practice.ledger.claim(lease=timedelta(seconds=-1))

    found = await practice.find()
    await practice.repair(found)

    assert checks(found) == [Check.OVERDUE]
    assert await practice.states(job) == [TaskState.READY]


async def test_tasks_whose_queue_is_gone_are_taken_back(practice: Practice) -> None:
    await at_work(practice)
    job = await practice.ledger.submit(practice.key)
    await practice.ledger.send()

    found = await practice.find()
    await practice.repair(found)

    assert checks(found) == [Check.QUEUE]
    assert "a queue that does not exist" in found[0].sentence
    assert await practice.states(job) == [TaskState.READY]


async def test_more_tasks_than_a_queue_holds_are_taken_back(practice: Practice) -> None:
    """The queue was emptied: the store says two, and the broker has none of them."""
    await at_work(practice)
    job = await practice.ledger.submit(sequence(practice.key))
    await practice.open_queue()
    await practice.ledger.send()

    found = await practice.find()
    await practice.repair(found)

    assert checks(found) == [Check.QUEUED]
    assert await practice.states(job) == [TaskState.READY]


async def test_a_queue_that_has_what_it_should_is_left_alone(practice: Practice) -> None:
    await at_work(practice)
    await practice.ledger.submit(practice.key)
    queue = await practice.open_queue()
    await practice.ledger.send()
    await practice.exchange.send(queue, [Envelope(type="task", body=b"{}")])

    assert await practice.find() == []


async def test_ready_tasks_that_nobody_sends_ring_the_bell(practice: Practice) -> None:
    await at_work(practice)
    await practice.ledger.submit(practice.key)
    queue = await practice.open_queue()
    async with practice.exchange.consume(queue, prefetch=1):
        found = await practice.find()
        await practice.repair(found)

    assert checks(found) == [Check.READY]
    await practice.bell.heard()


async def test_a_paused_key_is_no_divergence(practice: Practice) -> None:
    await at_work(practice)
    await practice.ledger.submit(practice.key)
    await practice.ledger.acts.pause_key(practice.key)
    queue = await practice.open_queue()
    async with practice.exchange.consume(queue, prefetch=1):
        assert await practice.find() == []


async def test_unroutable_tasks_go_when_a_queue_is_there(practice: Practice) -> None:
    await at_work(practice)
    job = await practice.ledger.submit(practice.key)
    await practice.ledger.mark(unroutable=await practice.ledger.claim())
    queue = await practice.open_queue()
    async with practice.exchange.consume(queue, prefetch=1):
        found = await practice.find()
        await practice.repair(found)

    assert checks(found) == [Check.UNROUTABLE]
    assert await practice.states(job) == [TaskState.READY]


async def test_a_worker_for_other_types_explains_what_is_unroutable(practice: Practice) -> None:
    await practice.ledger.writer.see_workers([hello(Offer(key=practice.key, types=("video",)))])
    await practice.ledger.submit(practice.key, type="image")
    await practice.ledger.mark(unroutable=await practice.ledger.claim())
    queue = await practice.open_queue()
    async with practice.exchange.consume(queue, prefetch=1):
        assert await practice.find() == []


async def test_a_key_that_nobody_serves_is_for_a_person(practice: Practice) -> None:
    await practice.ledger.submit(practice.key)

    found = await practice.find()

    assert checks(found) == [Check.UNSERVED]
    assert found[0].advice == f"start a worker: dane worker {practice.key}"
    assert await practice.repair(found) == [False]


async def test_a_lease_that_ended_long_ago_is_taken_back(practice: Practice) -> None:
    await at_work(practice)
    job = await practice.ledger.submit(practice.key)
    [claim] = await practice.ledger.send()
    await practice.ledger.writer.note_reports([started(claim)], [], [])
    await practice.change(sa.update(tasks).values(leased=True, due_at=later(-30)))

    found = await practice.find()
    await practice.repair(found)

    assert checks(found) == [Check.LEASE]
    [task] = await practice.ledger.tasks(job)
    assert (task.state, task.attempt) == (TaskState.READY, 2)
    assert await audit(practice.ledger.store, job) == []


async def test_a_task_that_runs_nowhere_gets_a_lease(practice: Practice) -> None:
    """If its worker lives after all it says so within the lease, and nothing is done twice."""
    await at_work(practice)
    await practice.ledger.submit(practice.key)
    [claim] = await practice.ledger.send()
    await practice.ledger.writer.note_reports([started(claim, worker="stranger")], [], [])

    found = await practice.find()
    await practice.repair(found)

    assert checks(found) == [Check.NOWHERE]
    assert await practice.find() == []


async def test_a_worker_at_a_task_that_is_over_is_told_to_stop(practice: Practice) -> None:
    job = await practice.ledger.submit(practice.key)
    [claim] = await practice.ledger.send()
    await practice.ledger.record(answer(claim))
    await at_work(practice, seen=-10)
    running = f"[{claim.task_id}]"
    await practice.change(sa.update(workers).values(running=running))

    async with practice.exchange.listen(f"dane.worker.{uuid4().hex}") as inbox:
        found = await practice.find()
        await practice.repair(found)
        [heard] = await inbox.take(1)

    assert checks(found) == [Check.TICKETS]
    word = open_control(heard.envelope)
    assert (word.act, word.task_id) == ("cancel", claim.task_id)
    assert await practice.states(job) == [TaskState.SUCCEEDED]


async def test_a_broker_without_the_mark_of_the_epoch_gets_a_new_one(practice: Practice) -> None:
    sweeps = practice.ledger.sweeps
    await sweeps.begin_epoch("lost", after=None)

    found = await practice.find()
    await practice.repair(found)
    epoch = (await sweeps.look()).epoch

    assert checks(found) == [Check.EPOCH]
    assert epoch is not None
    assert epoch.name != "lost"
    assert await practice.find() == []
    await practice.exchange.delete_queue(epoch_queue(epoch.name))


async def test_parked_reports_are_told_and_sent_again_when_asked_for(practice: Practice) -> None:
    """What can be read now goes back to be recorded; what still cannot stays where it is."""
    await practice.ledger.submit(practice.key)
    [claim] = await practice.ledger.send()
    await at_work(practice)
    for queue in (DEAD_QUEUE, practice.responses, await practice.open_queue()):
        await practice.exchange.declare_queue(queue)
    await practice.exchange.send(work_queue(practice.key), [Envelope(type="task", body=b"{}")])
    parked = [answer(claim).seal(), Envelope(type="answer", body=b"rubbish")]
    await practice.exchange.send(DEAD_QUEUE, parked)

    found = await practice.find()
    told = [line async for line in replay_dead(practice.exchange, practice.responses)]

    assert checks(found) == [Check.DEAD]
    assert "2 reports" in found[0].sentence
    assert sorted("sent to" in line for line in told) == [False, True]
    depths = [await practice.exchange.depth(name) for name in (DEAD_QUEUE, practice.responses)]
    assert [depth.waiting for depth in depths if depth] == [1, 1]


async def test_reports_that_no_runner_records_are_found_without_a_store(
    practice: Practice,
) -> None:
    await practice.exchange.declare_queue(practice.responses)
    await practice.exchange.send(practice.responses, [Envelope(type="nudge", body=b"{}")])

    found = await examine_broker(practice.exchange, practice.responses)

    assert checks(found) == [Check.RESPONSES]
    assert "start a runner" in found[0].advice


async def test_tables_of_another_version_are_all_that_is_looked_at(practice: Practice) -> None:
    await practice.change(sa.text("DROP TABLE IF EXISTS alembic_version"))

    found = await Doctor.examine_schema(practice.doctor)

    assert checks(found) == [Check.SCHEMA]
    assert "dane db upgrade" in found[0].advice


# --- the rounds -----------------------------------------------------------------------------------


def rounds_of(practice: Practice, metrics: Metrics) -> Rounds:
    access = Access.to(practice.ledger.store)
    return Rounds(
        doctor=practice.doctor,
        turns=access.turns,
        bulletin=access.bulletin,
        metrics=metrics,
        every=NOW,
    )


async def test_a_round_repairs_what_is_safe_and_counts_each_divergence_once(
    practice: Practice, caplog: pytest.LogCaptureFixture
) -> None:
    """What lasts is not found again and again: one alarm, and the last finding to look at."""
    await practice.ledger.submit(practice.key)
    await practice.change(sa.update(jobs).values(active=2))
    metrics = Metrics()
    rounds = rounds_of(practice, metrics)

    made = [await rounds.go_round() for _ in range(3)]

    assert [checks(one.findings) for one in made] == [
        [Check.COUNTERS],
        [Check.UNSERVED],
        [Check.UNSERVED],
    ]
    assert checks(made[0].repaired) == [Check.COUNTERS]
    assert made[1].repaired == []
    page = metrics.page().decode()
    assert 'dane_divergence_total{check="counters"} 1.0' in page
    assert 'dane_divergence_total{check="unserved"} 1.0' in page
    assert 'dane_repair_total{check="counters"} 1.0' in page
    assert len([one for one in caplog.records if "divergence" in one.getMessage()]) == 2
    last = await Access.to(practice.ledger.store).bulletin.last_round()
    assert last is not None
    assert [(one.check, one.repaired) for one in last.divergences] == [("unserved", False)]


def test_nothing_that_removes_rows_is_done_without_being_asked_for() -> None:
    assert Repair.BURY not in BY_ITSELF


@pytest.mark.services
async def test_one_server_at_a_time_has_the_turn(mariadb_store: Store) -> None:
    turns = Access.to(mariadb_store).turns
    async with (
        turns.take("check") as first,
        turns.take("check") as second,
        turns.take("retention") as other,
    ):
        held = (first, second, other)
    async with turns.take("check") as again:
        assert again

    assert held == (True, False, True)


async def test_while_all_is_well_a_round_finds_nothing(
    placed_ledger: Ledger, placed_exchange: Exchange
) -> None:
    """Kept and counted numbers are read in one statement: what moves never looks wrong."""
    key = f"K-{uuid4().hex[:8].upper()}"
    practice = made_of(placed_ledger, placed_exchange)
    found: list[Finding] = []
    async with at_work_with(placed_ledger, exchange=placed_exchange) as office:
        await office.hire(key)
        jobs_of_it = [
            await office.submit(sequence(parallel(key, key), parallel(key, key), key))
            for _ in range(8)
        ]
        unfinished = set(jobs_of_it)
        while unfinished:
            found += [one for one in await practice.find() if one.check not in _IN_PASSING]
            unfinished &= set(await placed_ledger.reader.unfinished())

    assert found == []


async def test_a_job_that_has_come_to_a_stop_goes_on_by_itself(
    placed_ledger: Ledger, placed_exchange: Exchange
) -> None:
    """Nobody had to ask for it: a round came by."""
    key = f"K-{uuid4().hex[:8].upper()}"
    practice = made_of(placed_ledger, placed_exchange)
    job = await placed_ledger.submit(graph(a=key, b=(key, "a")))
    await practice.change(sa.update(tasks).where(tasks.c.pending == 1).values(pending=2))
    async with at_work_with(placed_ledger, exchange=placed_exchange) as office:
        await office.hire(key)
        await office.ended(job, JobStatus.FAILED)

        await rounds_of(practice, Metrics()).go_round()
        await office.runner.resume_job(job)  # which rings
        await office.ended(job)

    assert await audit(placed_ledger.store, job) == []


async def test_a_loss_that_is_not_proven_yet_says_when_it_would_be(practice: Practice) -> None:
    """Nobody waits for proof of what does not look like a loss."""
    doctor = Doctor(
        access=Access.to(practice.ledger.store),
        exchange=practice.exchange,
        bell=practice.bell,
        pace=Pace(lost_after=timedelta(seconds=30)),
        response_queue=practice.responses,
    )
    await at_work(practice)
    queue = await practice.open_queue()
    before = await doctor.see()
    await practice.ledger.submit(practice.key)
    await practice.ledger.send()
    first = await doctor.see(before)
    second = await doctor.see(first)
    await practice.exchange.send(queue, [Envelope(type="task", body=b"{}")])
    full = await doctor.see(second)

    assert doctor.judge(second, first) == []
    assert 0 < doctor.proof_takes(second, first) <= 30
    assert doctor.proof_takes(full, second) == 0
