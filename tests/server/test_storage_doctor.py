"""What the doctor reads of the store, and how it counts a job anew: on SQLite and on MariaDB."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from dane_core.job import JobId
from dane_core.states import JobStatus, TaskState
from dane_server.runner.checks import Check, Finding, judge_jobs
from dane_server.storage.doctor import Examiner
from dane_server.storage.engine import Store
from dane_server.storage.functions import now
from dane_server.storage.mending import Mending
from dane_server.storage.statements import doctor as sql
from dane_server.storage.tables import edges, jobs, tasks
from tests.server.audit import audit, rows_left
from tests.server.ledger import Ledger, answer, graph, parallel, sequence, task

CHAIN = graph(a="A", b=("B", "a"), c=("C", "b"))
JOINED = sequence(parallel("A", "B"), parallel("C", "D"), "E")


async def change(ledger: Ledger, statement: Any, rows: Sequence[Mapping[str, Any]] = ()) -> None:
    """What a bug, a restored backup or a hand at the database may have done."""

    async def unit(connection: Any) -> None:
        await connection.execute(statement, rows or None)

    await ledger.store.write(unit)


def of(job: JobId, key: str) -> Sequence[sa.ColumnElement[bool]]:
    return tasks.c.job_id == job, tasks.c.task_key == key


async def findings(ledger: Ledger) -> list[Finding]:
    examiner = Examiner(ledger.store)
    return [
        finding
        async for ids in examiner.unfinished()
        for finding in judge_jobs(await examiner.jobs(ids), await examiner.nodes(ids))
    ]


async def test_a_healthy_store_has_nothing_to_be_said_of_it(ledger: Ledger) -> None:
    """In whatever state its jobs are: waiting, half done, failed, held, forgiven."""
    await ledger.submit(JOINED)
    half = await ledger.submit(CHAIN)
    failed = await ledger.submit(graph(a="F", b=("G", "a")))
    await ledger.submit(parallel(task("H", allow_failure=True), "I"))
    await ledger.acts.pause_job(half)
    for claim in await ledger.send():
        state = 500 if claim.key in ("F", "H") else 200
        await ledger.record(answer(claim, state))
    await ledger.acts.retry_job(failed)
    held = await ledger.task(failed, "F")
    await ledger.acts.reset_task(held.id)

    assert await findings(ledger) == []


async def test_wrong_counters_are_found_and_counted_anew(ledger: Ledger) -> None:
    job = await ledger.submit(CHAIN)
    await change(ledger, sa.update(jobs).where(jobs.c.id == job).values(active=3, failed=1))

    found = await findings(ledger)
    await Mending(ledger.store).recount(job)

    assert [one.check for one in found] == [Check.COUNTERS]
    assert found[0].ids == (job,)
    assert "active is 3 and should be 1" in found[0].sentence
    assert await findings(ledger) == []
    assert await audit(ledger.store, job) == []


async def test_a_task_that_waits_for_too_much_goes_ahead_once_it_is_counted(
    ledger: Ledger,
) -> None:
    """It would have waited for ever, in a job that looks as if it had failed."""
    job = await ledger.submit(CHAIN)
    await change(ledger, sa.update(tasks).where(*of(job, "B")).values(pending=2))
    await ledger.answer_all()

    found = await findings(ledger)
    await Mending(ledger.store).recount(job)

    assert [one.check for one in found] == [Check.PENDING]
    assert await audit(ledger.store, job) == []
    await ledger.answer_all()
    await ledger.answer_all()
    assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_what_is_blocked_by_nothing_goes_ahead_through_its_joins(ledger: Ledger) -> None:
    """A crash that no transaction allows, behind which two joins stand in a row."""
    job = await ledger.submit(JOINED)
    await ledger.send()
    first = [tasks.c.job_id == job, tasks.c.task_key.in_(["A", "B"])]
    await change(
        ledger, sa.update(tasks).where(*first).values(state=TaskState.FAILED, allow_failure=True)
    )

    found = await findings(ledger)
    await Mending(ledger.store).recount(job)

    assert Check.BLOCKED in {one.check for one in found}
    assert await findings(ledger) == []
    assert (await ledger.states(job))["C"] is TaskState.READY
    assert (await ledger.states(job))["E"] is TaskState.BLOCKED


async def test_an_edge_that_was_left_open_by_a_task_that_is_done_is_closed(ledger: Ledger) -> None:
    job = await ledger.submit(graph(a="A", b="B", c=("C", "a", "b")))
    [a, _] = await ledger.send()
    await ledger.record(answer(a))
    await change(ledger, sa.update(edges).where(edges.c.src == a.task_id).values(reopened=True))
    await change(ledger, sa.update(tasks).where(*of(job, "C")).values(pending=2))

    found = await findings(ledger)
    await Mending(ledger.store).recount(job)

    assert [one.check for one in found] == [Check.BLOCKED]
    assert "waits for 1 before it that are done already" in found[0].sentence
    assert await findings(ledger) == []


async def test_a_job_that_is_marked_as_over_is_found_by_its_tasks(ledger: Ledger) -> None:
    """By none of its own words is it unfinished."""
    job = await ledger.submit("A")
    over = sa.update(jobs).where(jobs.c.id == job)
    await change(ledger, over.values(active=0, failed=1, finished_at=sa.func.current_timestamp()))

    facts = await Examiner(ledger.store).store(grace=60, since=None)
    await Mending(ledger.store).recount(job)

    assert [(one.job_id, one.orphaned) for one in facts.strays] == [(job, False)]
    assert await audit(ledger.store, job) == []


async def test_tasks_of_a_job_that_is_gone_are_removed_like_those_of_any_other(
    ledger: Ledger,
) -> None:
    job = await ledger.submit(CHAIN)
    other = await ledger.submit("A")
    await change(ledger, sa.delete(jobs).where(jobs.c.id == job))

    facts = await Examiner(ledger.store).store(grace=60, since=None)
    await Mending(ledger.store).bury([job])
    await ledger.acts.finish_walks()

    assert {(one.job_id, one.orphaned) for one in facts.strays} == {(job, True)}
    assert len(facts.strays) == 3
    assert await rows_left(ledger.store, job) == {}
    assert len(await ledger.tasks(other)) == 1


async def test_a_job_that_was_deleted_meanwhile_is_left_alone(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.acts.delete_job(job)

    assert not await Mending(ledger.store).recount(job)


async def test_all_unfinished_jobs_are_gone_through_in_batches(ledger: Ledger) -> None:
    jobs_of_it = [await ledger.submit("A") for _ in range(3)]
    [claim, *_] = await ledger.send()
    await ledger.record(answer(claim))

    batches = [ids async for ids in Examiner(ledger.store).unfinished()]
    rest = [ids async for ids in Examiner(ledger.store).unfinished(jobs_of_it[1])]

    assert batches == [jobs_of_it[1:]]
    assert rest == [jobs_of_it[2:]]


@pytest.mark.services
async def test_no_question_reads_the_whole_history(mariadb_store: Store) -> None:
    """Two thousand jobs are over; what is asked is answered by an index, from what is not."""
    ledger = Ledger.of(mariadb_store)
    numbers = range(1, 2001)
    job = {"source_url": "u", "priority": 1, "metadata": "{}", "shared": "{}", "tree": "{}"}
    over = sa.insert(jobs).values(created_at=now(), finished_at=now(), total=1, succeeded=1, **job)
    done = sa.insert(tasks).values(seq=0, task_key="A", state=TaskState.SUCCEEDED, released=True)
    await change(ledger, over, [{"id": number, "source_id": f"s{number}"} for number in numbers])
    await change(ledger, done, [{"job_id": number} for number in numbers])
    mine = [await ledger.submit(JOINED) for _ in range(5)]
    await ledger.send()
    questions = {
        "unfinished": sql.unfinished_jobs(0, 500),
        "recounted": sql.recounted(mine),
        "nodes": sql.wrong_nodes_of_jobs(mine, 100),
        "among": sql.wrong_nodes_among(mine),
        "strays": sql.strays(TaskState.BLOCKED),
        "overdue": sql.long_overdue(TaskState.DISPATCHING, 60),
        "lapsed": sql.lapsed_leases(60),
        "nowhere": sql.running_nowhere(60),
        "ready": sql.ready_long("A", 60),
        "queued": sql.some_queued("A", 6),
        "unroutable": sql.unroutable_types("A", 60),
        "open": sql.open_tasks([TaskState.READY, TaskState.QUEUED]),
    }

    plans = {name: await plan(mariadb_store, asked) for name, asked in questions.items()}

    for name, steps in plans.items():
        read = [step for step in steps if step.table in ("job", "task", "edge", "before")]
        assert read, name
        assert [step for step in read if step.key is None or int(step.rows) > 500] == [], name


async def plan(store: Store, question: Any) -> Sequence[Any]:
    async def unit(connection: Any) -> Sequence[Any]:
        text = question.compile(connection.engine, compile_kwargs={"literal_binds": True})
        rows: Sequence[Any] = (await connection.exec_driver_sql(f"EXPLAIN {text}")).all()
        return rows

    return await store.read(unit)
