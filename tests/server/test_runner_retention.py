"""What has been kept long enough goes, and nothing else: on SQLite and on MariaDB."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from dane_core.job import JobId
from dane_core.states import JobStatus
from dane_server.metrics import Metrics
from dane_server.runner.retention import Housekeeper, keep_of
from dane_server.settings import RetentionSection
from dane_server.storage.access import Access
from dane_server.storage.engine import Store
from dane_server.storage.functions import later, now
from dane_server.storage.retention import Keep
from dane_server.storage.statements import retention as sql
from dane_server.storage.tables import attempts, jobs, once, rejected, sources
from dane_server.storage.view import Once
from tests.server.audit import rows_left
from tests.server.ledger import Ledger, answer, new_job, sequence
from tests.server.test_storage_doctor import plan

DAY = 86_400
KEEP = Keep(attempts=2)


async def do(store: Store, statement: Any, rows: Sequence[dict[str, Any]] = ()) -> None:
    async def unit(connection: Any) -> None:
        await connection.execute(statement, rows or None)

    await store.write(unit)


async def count(store: Store, table: sa.Table) -> int:
    async def unit(connection: Any) -> int:
        return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)))

    return await store.read(unit)


async def age(ledger: Ledger, job: JobId, days: float) -> None:
    """Let a job have ended so many days ago."""
    ended = sa.update(jobs).where(jobs.c.id == job)
    await do(ledger.store, ended.values(finished_at=later(-days * DAY)))


async def ended(ledger: Ledger, days: float, state: int = 200, **members: Any) -> JobId:
    job = await ledger.submit(sequence("A", "B"), **members)
    while claims := await ledger.send():
        await ledger.record(*(answer(claim, state) for claim in claims))
    await age(ledger, job, days)
    return job


def housekeeper(ledger: Ledger, keep: Keep = KEEP) -> Housekeeper:
    access = Access.to(ledger.store)
    return Housekeeper(
        retention=access.retention,
        turns=access.turns,
        metrics=Metrics(),
        keep=keep,
        breath=timedelta(0),
    )


async def left(ledger: Ledger) -> set[JobId]:
    async def unit(connection: Any) -> set[JobId]:
        return set(await connection.scalars(sa.select(jobs.c.id)))

    return await ledger.store.read(unit)


async def test_jobs_go_by_their_age_and_how_they_ended(ledger: Ledger) -> None:
    old = await ended(ledger, 91, source_id="old")
    kept = {
        await ended(ledger, 89, source_id="young"),
        await ended(ledger, 364, state=500, source_id="failed"),
    }
    old_failed = await ended(ledger, 366, state=500, source_id="long ago")
    keeper = housekeeper(ledger)

    # Paused while its last task ran: it has succeeded, and nobody will resume it.
    paused = sa.update(jobs).where(jobs.c.id == old)
    await do(ledger.store, paused.values(paused=True))
    would = await keeper.would_go()
    went = await keeper.pass_over()

    assert would["jobs"] == went["jobs"] == 2
    assert await left(ledger) == kept
    for job in (old, old_failed):
        assert await rows_left(ledger.store, job) == {}
    assert await count(ledger.store, sources) == 2


async def test_a_job_with_anything_left_to_do_stays(ledger: Ledger) -> None:
    """However old: a person who paused or reset something means to come back to it."""
    paused = await ended(ledger, 999, state=500)
    held = await ended(ledger, 999)
    running = await ledger.submit("A")
    [task, *_] = await ledger.tasks(held)
    await ledger.acts.reset_task(task.id)
    await age(ledger, held, 999)
    await age(ledger, running, 999)
    await do(ledger.store, sa.update(jobs).where(jobs.c.id == paused).values(paused=True))

    went = await housekeeper(ledger).pass_over()

    assert went["jobs"] == 0
    assert await left(ledger) == {paused, held, running}


async def test_a_job_that_is_retried_at_the_last_moment_stays(ledger: Ledger) -> None:
    """It was found a moment ago; it is looked at again in the transaction that removes it."""
    job = await ended(ledger, 999, state=500)
    retention = Access.to(ledger.store).retention
    [found] = [some async for some in retention.old_jobs(KEEP)]
    await ledger.acts.retry_job(job)

    removed = await retention.remove_job(job, KEEP)

    assert found == [job]
    assert not removed
    assert await ledger.status(job) is not JobStatus.FAILED


async def test_what_is_kept_for_ever_is_not_even_looked_for(ledger: Ledger) -> None:
    await ended(ledger, 9999)
    settings = RetentionSection(JOBS=0, FAILED=0, REJECTED=0, ATTEMPTS=0)

    went = await housekeeper(ledger, keep_of(settings)).pass_over()

    assert sum(went.values()) == 0


async def test_request_keys_and_counts_of_refused_answers_go(ledger: Ledger) -> None:
    """The job of a key stays: only sending the same request again makes a new one."""
    for key in ("old", "young"):
        await ledger.outcomes(new_job("A", once=Once(key=key, digest="d")))
    old = sa.update(once).where(once.c.request_key == "old")
    await do(ledger.store, old.values(created_at=later(-8 * DAY)))
    row = {"attempt": 1, "reason": "stale", "times": 3}
    for task, days in ((1, 31), (2, 29)):
        new = sa.insert(rejected).values(task_id=task, last_at=later(-days * DAY), **row)
        await do(ledger.store, new)
    keeper = housekeeper(ledger)

    would = await keeper.would_go()
    went = await keeper.pass_over()

    assert would == {"request_keys": 1, "rejected": 1}
    assert (went["request_keys"], went["rejected"]) == (1, 1)
    assert await count(ledger.store, once) == 1
    assert await count(ledger.store, rejected) == 1
    assert len(await left(ledger)) == 2


async def test_of_attempts_the_newest_are_kept(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()
    rows = [{"task_id": claim.task_id, "number": number, "outcome": 503} for number in range(1, 6)]
    await do(ledger.store, sa.insert(attempts).values(finished_at=now()), rows)

    went = await housekeeper(ledger).pass_over()

    found = await ledger.reader.task(claim.task_id)
    assert went["attempts"] == 3
    assert [attempt.number for attempt in found.attempts] == [4, 5]


@pytest.mark.services
async def test_the_indexes_are_used_among_ten_thousand_finished_jobs(mariadb_store: Store) -> None:
    """A pass reads what is old, and not what is kept."""
    many = [
        {
            "source_id": f"s{number}",
            "source_url": "u",
            "priority": 1,
            "metadata": "{}",
            "shared": "{}",
            "tree": "{}",
            "total": 1,
            "succeeded": 1,
        }
        for number in range(10_000)
    ]
    young = sa.insert(jobs).values(created_at=now(), finished_at=now())
    for start in range(0, len(many), 2000):
        await do(mariadb_store, young, many[start : start + 2000])
    found = sql.old_jobs([JobStatus.SUCCEEDED, JobStatus.CANCELLED], 90 * DAY, 500)
    asked = {
        "job_finished": found,
        "once_created": sql.old_request_keys(7 * DAY, 500),
        "rejected_last": sql.old_rejections(30 * DAY, 500),
        "attempt_finished": sql.tried_often(20, 3600),
    }

    used = {index: await plan(mariadb_store, question) for index, question in asked.items()}

    for index, steps in used.items():
        assert steps[0].key == index, (index, steps[0])
    assert int(used["job_finished"][0].rows) < 100
