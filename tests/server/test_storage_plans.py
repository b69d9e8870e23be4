"""No statement that a server makes all day reads more, the more is in the store: on MariaDB.

The small store is for every run; `make faults` has one of a million tasks.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from dane_core.job import JobId, TaskId
from dane_core.message import Gone
from dane_core.states import SETTLED, JobStatus, TaskState
from dane_server.storage.access import Access
from dane_server.storage.claiming import Claiming
from dane_server.storage.engine import Store, open_store
from dane_server.storage.retention import Keep
from dane_server.storage.tables import metadata
from dane_server.storage.view import Claim, JobQuery, Once, Submitted
from tests.faults.plugin import long
from tests.server.archive import copies, model_of
from tests.server.ledger import (
    Ledger,
    answer,
    ask,
    heartbeat,
    hello,
    leased,
    new_job,
    parallel,
    progress,
    released,
    sequence,
    started,
    task,
)
from tests.server.reads import Reads
from tests.services.mariadb import database_at

pytestmark = pytest.mark.services

#: What a statement may read, at most: of a batch of 500, each a few times over.
MOST: Final = 5_000
#: A table with so few rows may be read whole.
FEW: Final = 500
#: What is to be counted is read, from the index alone; but nothing of the history is.
COUNTING: Final = {
    "gauges": "open tasks by state and key, every 10 s at most while somebody asks",
    "examine the store": "the same, once a minute",
    "workers": "the same, when somebody asks",
    "attempts": "attempts of the last two hours, once an hour",
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is in a store."""

    old_jobs: int
    tasks_of_each: int
    ready: int  # tasks of one large job


@dataclass(frozen=True, kw_only=True)
class Full:
    """A database with much history, and one large job that is ready."""

    url: str
    ready: int
    old: JobId  # one of the jobs that are over
    large: JobId


SMALL: Final = Size(old_jobs=600, tasks_of_each=20, ready=8_000)
A_MILLION: Final = Size(old_jobs=20_000, tasks_of_each=45, ready=100_000)


@pytest.fixture(
    scope="module",
    params=[pytest.param(SMALL, id="small"), pytest.param(A_MILLION, id="a million", marks=long)],
)
def full(request: pytest.FixtureRequest, mysql_url: str) -> Iterator[Full]:
    with database_at(mysql_url) as url:
        yield asyncio.run(_filled(url, request.param))


async def _filled(url: str, size: Size) -> Full:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    async with open_store(url) as store:
        ledger = Ledger.of(store)
        among = parallel(*["A"] * (size.tasks_of_each - 2))
        old = await ledger.submit(sequence("A", among, "A"), source_id="old")
        for _ in range(3):
            await ledger.answer_all()
        large = await ledger.submit(parallel("A", "A"), source_id="large")
    async with engine.begin() as connection:
        await _grow(connection, large, size.ready)
        model = (await connection.exec_driver_sql(model_of(old))).one()
        for statement in copies(list(model), size.old_jobs):
            await connection.exec_driver_sql(statement)
    await engine.dispose()
    return Full(url=url, ready=size.ready, old=old, large=large)


async def _grow(connection: AsyncConnection, job: JobId, ready: int) -> None:
    """Give a job of two ready tasks as many as are wanted."""
    tasks = metadata.tables["task"]
    names = [column.name for column in tasks.columns if column.name not in ("id", "seq")]
    listed = ", ".join(f"`{name}`" for name in names)
    first = f"SELECT * FROM task WHERE task.job_id = {job} AND task.seq = 0"
    others = f"SELECT n.seq, {listed} FROM seq_2_to_{ready - 1} n STRAIGHT_JOIN first"
    for statement in (
        f"CREATE TEMPORARY TABLE first AS {first}",
        f"INSERT INTO task (seq, {listed}) {others}",
        "DROP TEMPORARY TABLE first",
        f"UPDATE job SET total = {ready}, active = {ready} WHERE id = {job}",
    ):
        await connection.exec_driver_sql(statement)


class Day:
    """What servers ask of the store in the ordinary course, each act by its name."""

    def __init__(self, store: Store, full: Full, reads: Reads) -> None:
        self._full = full
        self._reads = reads
        self._access = Access.to(store)
        self._ledger = Ledger.of(store)
        self._claims: list[Claim] = []
        self._along: Sequence[Claim] = ()
        self._large = {full.large}

    async def pass_by(self) -> None:
        await self._submit()
        await self._dispatch()
        await self._listen()
        await self._record()
        await self._release()
        await self._read()
        await self._sweep()
        await self._examine()
        await self._act()
        await self._walk()
        await self._tidy_up()

    def _during(self, act: str) -> AbstractContextManager[None]:
        return self._reads.during(act)

    async def _submit(self) -> None:
        with self._during("submit"):
            once = Once(key="k", digest="d")
            await self._ledger.outcomes(
                new_job(sequence("B", parallel("B", "B"), "B"), once=once, source_id="new"),
                *(new_job("B", source_id=f"new-{number}") for number in range(20)),
            )

    async def _dispatch(self) -> None:
        with self._during("claim"):
            self._claims = await self._ledger.claim()
        with self._during("mark"):
            await self._ledger.mark(queued=self._claims[5:], unroutable=self._claims[:5])
        with self._during("submit and claim"):  # of A much is ready and much is sent
            asked = Claiming(window=1000, limit=500, lease=timedelta(seconds=60))
            several = new_job(parallel("A", "B", "C"), source_id="several")
            [stored] = await self._access.writer.store_jobs([several], asked)
            assert isinstance(stored, Submitted)
            assert [claim.key for claim in stored.claims] == ["B"]

    async def _listen(self) -> None:
        some = self._claims[10:110]
        with self._during("note reports"):
            await self._access.writer.note_reports(
                [started(claim) for claim in some],
                [progress(claim, 0.5) for claim in some[:10]],
                [released(claim) for claim in some[90:]],
                leased=[leased(claim) for claim in some[:10]],
                heartbeats=[heartbeat(*some[:10])],
            )
        with self._during("judge"):
            again = [ask(claim, "w2", redelivered=True) for claim in some[10:20]]
            await self._access.writer.judge([ask(claim) for claim in self._claims[110:130]] + again)
        with self._during("see workers"):
            await self._access.writer.see_workers([hello("A", "B"), hello("A", worker="w2")])
        with self._during("route"):
            await self._access.writer.route_again(["A", "B"])
        with self._during("lose workers"):
            gone = Gone(worker="w1")
            await self._access.writer.lose_workers([gone])

    async def _record(self) -> None:
        with self._during("record"):
            failing = [answer(claim, 500) for claim in self._claims[400:410]]
            done = [answer(claim) for claim in [*self._claims[130:400], *self._claims[410:]]]
            await self._ledger.record(*done, *failing, window=1000)
        with self._during("claim"):
            self._claims = await self._ledger.send()

    async def _release(self) -> None:
        """Answers let go what waits for them: some tasks, a join, and more than one answer can."""
        acts, again = self._access.acts, task("R", retry={"limit": 1, "delay": 0})
        wide = sequence(again, parallel("R", "R"), parallel(*["R"] * 3_000), "R")
        self._large.add(await self._ledger.submit(wide, source_id="wide"))
        await self._answer(503)
        await self._ledger.sweep()
        await self._answer()
        await self._answer()
        assert await acts.nodes_releasing()
        with self._during("let go"):
            while await acts.release_some():
                pass
        with self._during("limits"):
            await self._access.quotas.limit_key("R", {"concurrency": 200, "rate": 1e6})
        for _ in range(3):
            await self._answer()

    async def _answer(self, state: int = 200) -> None:
        """Send some of the key R, and answer all of it."""
        with self._during("claim"):
            sent = [*self._along, *await self._ledger.send()]
        claims = [claim for claim in sent if claim.key == "R"]
        assert claims
        with self._during("record and let go"):
            answers = [answer(claim, state) for claim in claims]
            self._along = (await self._ledger.record(*answers, window=1000)).claims

    async def _read(self) -> None:
        reader, full = self._access.reader, self._full
        middle = (await reader.tasks(full.large, after_seq=7_000, limit=1))[0]
        with self._during("list jobs"):
            await reader.jobs(JobQuery())
            await reader.jobs(JobQuery(limit=50, after=str(full.large + 100)))
            await reader.jobs(JobQuery(statuses=frozenset({JobStatus.RUNNING})))
            await reader.jobs(JobQuery(source_id="old-7"))
            await reader.of_source("old-7")
        with self._during("list the unfinished"):
            await reader.unfinished()
        with self._during("job"):
            await reader.job(full.large)
            await reader.job_view(JobId(full.large + 3))
        with self._during("tasks"):
            await reader.tasks(full.large, after_seq=7_000, limit=100)
            await reader.tasks(full.large, after_seq=7_000, limit=100, state=TaskState.READY)
            await reader.tasks(full.large, limit=100, key="A")
        with self._during("task"):
            await reader.task(middle.id)
        with self._during("explain"):
            await reader.situation(middle.id)
        with self._during("upstream"):
            await reader.upstream(TaskId(1), "A")
        with self._during("messages"):
            await reader.heads({claim.job_id for claim in self._claims})
            await reader.responses(self._claims)
        with self._during("schemas"):
            await reader.schemas(["A", "B"])
        with self._during("workers"):
            await reader.keys()
        quotas = self._access.quotas
        with self._during("what is open"):
            await quotas.open_tasks()
        with self._during("owners"):
            await quotas.owners()
        with self._during("limits"):
            await quotas.key_limits("A")
            await quotas.holders("A", limit=100)

    async def _sweep(self) -> None:
        sweeps = self._access.sweeps
        with self._during("sweep"):
            await sweeps.look()
            await sweeps.sweep(silence=timedelta(seconds=60))
            await sweeps.next_due()
            await sweeps.look_sooner(dict.fromkeys(TaskState, timedelta(hours=2)))
        with self._during("watch"):
            await sweeps.watch_unwatched(timedelta(seconds=60))
            await sweeps.watch_key("A", timedelta(seconds=60))
        with self._during("put forward"):
            await self._ledger.submit("A", priority=9)  # beside the large job
            await self._ledger.send()
            await sweeps.put_forward(timedelta(microseconds=1))
        with self._during("compare queues"):
            await sweeps.keys_queued()
            await sweeps.keys_to_send()
            await sweeps.idle_keys()
            await sweeps.queued("A", datetime.fromisoformat("2030-01-01"))
            await sweeps.aged(500)
            await sweeps.last_begun("A")

    async def _examine(self) -> None:
        examiner = self._access.examiner
        with self._during("examine jobs"):
            small = set(await anext(examiner.unfinished())) - self._large
            await examiner.jobs(sorted(small))
            await examiner.nodes(sorted(small))
        with self._during("examine the store"):
            await examiner.store(grace=60, since=None)
        with self._during("gauges"):
            await examiner.open_tasks([state for state in TaskState if state not in SETTLED])
        with self._during("totals"):
            await self._access.bulletin.count({("a", "b"): 1})
            await self._access.bulletin.totals()
            await self._access.bulletin.last_round()

    async def _act(self) -> None:
        acts = self._access.acts
        job = await self._ledger.submit(parallel(*["B"] * 50))
        for act in (acts.pause_job, acts.resume_job, acts.cancel_job, acts.retry_job):
            with self._during(act.__name__):
                await act(job)
        with self._during("delete_job"):
            await acts.delete_job(job)
        with self._during("look for walks"):
            await acts.jobs_cancelling()
            await acts.jobs_straying()
            await acts.keys_straying()
            await acts.jobs_reranking()
            await acts.jobs_buried()
            await acts.nodes_releasing()

    async def _walk(self) -> None:
        """The steps of what takes many, on the large job."""
        acts, large = self._access.acts, self._full.large
        with self._during("pause"):
            await acts.begin_pausing(large)
            await acts.recall_some(large)
        with self._during("look for walks"):
            await acts.jobs_straying()
        with self._during("resume"):
            await acts.resume_job(large)
        with self._during("prioritize"):
            await acts.begin_prioritizing(large, 7)
            await acts.rerank_some(large)
        with self._during("cancel"):
            await acts.begin_cancelling(large)
            await acts.cancel_some(large)
            await acts.jobs_cancelling()
        with self._during("delete"):
            await acts.bury_job(large)
            await acts.drop_some(large)

    async def _tidy_up(self) -> None:
        retention = self._access.retention
        with self._during("retention"):
            old = await anext(retention.old_jobs(Keep(jobs=timedelta(0))))
            await retention.remove_job(old[0], Keep(jobs=timedelta(0)))
            await retention.forget_request_keys(timedelta(0))
            await retention.forget_rejections(timedelta(0))
        with self._during("attempts"):
            await retention.forget_attempts(20, timedelta(hours=2))


async def test_no_statement_reads_more_than_it_has_to_do_with(full: Full) -> None:
    """Neither the jobs that are over nor those that wait make the next one dearer."""
    async with open_store(full.url) as store:
        reads = Reads(few=FEW)
        await Day(store, full, reads).pass_by()

    assert {read.during for read in reads.all} >= {
        *COUNTING,
        "claim",
        "record",
        "list jobs",
        "explain",
    }
    allowed = dict.fromkeys(COUNTING, MOST + full.ready)
    assert [
        str(read) for read in reads.all if read.scans or read.rows > allowed.get(read.during, MOST)
    ] == []


@pytest.mark.parametrize("last", [0, 4_000, 7_999], ids=["the first", "one of them", "the last"])
async def test_what_a_task_waits_for_is_found_among_thousands_that_are_done(
    mysql_url: str, last: int
) -> None:
    """Of what comes before a task as much is read, however much that is."""
    with database_at(mysql_url) as url:
        engine = create_async_engine(url)
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        async with open_store(url) as store:
            ledger = Ledger.of(store)
            job = await ledger.submit(sequence(parallel(*["A"] * 8_000), parallel("B", "C")))
            [behind] = await ledger.reader.tasks(job, after_seq=7_999, limit=1)
            async with engine.begin() as connection:
                done = "SET state = 'succeeded', released = 1"
                await connection.exec_driver_sql(
                    f"UPDATE task {done} WHERE job_id = {job} AND seq < 8000 AND seq <> {last}"
                )
            reads = Reads(few=FEW)
            with reads.during("explain"):
                found = (await ledger.reader.situation(behind.id)).open_predecessors
        await engine.dispose()

    assert [task.seq for task in found] == [last]
    assert [str(read) for read in reads.all if read.scans or read.rows > MOST] == []


async def test_a_statement_that_reads_all_is_found(full: Full) -> None:
    """Whoever watches the statements sees what they are watched for."""

    async def careless(connection: AsyncConnection) -> None:
        await connection.execute(sa.text("SELECT COUNT(*) FROM task WHERE worker = 'w'"))

    async with open_store(full.url) as store:
        await store.read(careless)  # there is a connection now
        reads = Reads(few=FEW)
        with reads.during("something"):
            await store.read(careless)

    [read] = reads.all
    assert read.scans == ("task",)
    assert read.rows > MOST
