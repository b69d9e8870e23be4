"""Answers questions about the store. Reads see what is committed, and never wait for writers."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import BadSpec, Fault, NotFound
from dane_core.job import Attempt, Cancel, Counts, Job, JobId, Retry, Task, TaskId
from dane_core.message import Offer
from dane_core.routing import MAX_PRIORITY
from dane_core.states import ACTIVE, FACES, SENT, JobStatus, TaskState
from dane_server.storage import questions as ask
from dane_server.storage.chunk import chunks
from dane_server.storage.engine import Store
from dane_server.storage.inline import INLINE_ANSWERS, Inline, inline
from dane_server.storage.quotas import limits_of, standing_of
from dane_server.storage.statements.act import CUT
from dane_server.storage.view import (
    MOST_ABOVE,
    Claim,
    JobHead,
    JobQuery,
    JobView,
    KeyState,
    LargeJob,
    Page,
    Rejected,
    RejectedState,
    Situation,
    TaskView,
    Upstream,
    WorkerState,
)

#: Places of a job that are looked at together, and ids alone.
_PLACES: Final = 500
_IDS: Final = 5000


class Reader:
    """Reads jobs, tasks, keys and workers. Every method may raise StoreUnreachable.

    `cancel_grace` is what workers have to end what was cancelled.
    """

    def __init__(self, store: Store, *, cancel_grace: timedelta = timedelta(seconds=10)) -> None:
        self._store = store
        self._grace = cancel_grace

    async def ping(self) -> None:
        """Ask the database for anything at all."""

        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sa.select(1))

        await self._store.read(unit)

    # --- jobs ---------------------------------------------------------------------------

    async def job(self, job_id: JobId) -> Job:
        """A job without its tasks. Raises: NotFound."""
        return await self._store.read(lambda connection: self._job(connection, job_id))

    async def job_view(self, job_id: JobId) -> JobView:
        """A job with all of its tasks and answers, which are to be few. Raises: NotFound."""
        return await self._store.read(lambda connection: self._view(connection, job_id))

    async def small_job_view(self, job_id: JobId, *, most: int) -> JobView | LargeJob:
        """The same, or how a job of more tasks than that is nested. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> JobView | LargeJob:
            job = await self._job(connection, job_id)
            if job.counts.total <= most:
                return await self._view(connection, job_id, job)
            tree = (await connection.scalars(ask.tree(), {"job_id": job_id})).one_or_none()
            return LargeJob(job=job, tree=tree or "[]")

        return await self._store.read(unit)

    async def _view(
        self, connection: AsyncConnection, job_id: JobId, job: Job | None = None
    ) -> JobView:
        job = job or await self._job(connection, job_id)
        this = {"job_id": job_id}
        tree = (await connection.scalars(ask.tree(), this)).one_or_none()
        rows = (await connection.execute(ask.tasks_of_job(), this)).all()
        bodies = await connection.execute(ask.answers_of_job(), this)
        return JobView(
            job=job,
            tree=orjson.loads(tree or "[]"),
            tasks=[_task(row) for row in rows],
            answers={TaskId(row.task_id): orjson.loads(row.body) for row in bodies},
        )

    async def jobs(self, query: JobQuery) -> Page:
        """Jobs, newest first. Raises: BadSpec, for a cursor that is not one of ours."""
        before = _cursor(query.after)

        async def unit(connection: AsyncConnection) -> Page:
            rows = (await connection.execute(ask.page_of_jobs(query, before))).all()
            shown = rows[: query.limit]
            states = await _furthest(connection, shown)
            more = len(rows) > query.limit
            return Page(
                jobs=[_job_of(row, states[row.id], self._grace) for row in shown],
                next=str(shown[-1].id) if more else None,
            )

        return await self._store.read(unit)

    async def unfinished(self) -> Sequence[JobId]:
        """Jobs that are not done: under way, or ended with errors."""
        return await self._job_ids(ask.unfinished())

    async def of_source(self, source_id: str) -> Sequence[JobId]:
        """All jobs of a source, oldest first."""
        return await self._job_ids(ask.of_source(source_id))

    async def _job_ids(self, statement: sa.Select[Any]) -> Sequence[JobId]:
        async def unit(connection: AsyncConnection) -> Sequence[JobId]:
            return [JobId(job_id) for job_id in await connection.scalars(statement)]

        return await self._store.read(unit)

    # --- tasks --------------------------------------------------------------------------

    async def tasks(
        self,
        job_id: JobId,
        *,
        after_seq: int = -1,
        limit: int = 500,
        state: TaskState | None = None,
        key: str | None = None,
    ) -> Sequence[Task]:
        """The next tasks of a job, in the order of its specification. Raises: NotFound.

        With a `key` it is gone through some places at a time, until there are enough.
        """

        async def unit(connection: AsyncConnection) -> Sequence[Task]:
            last = (await self._job(connection, job_id)).counts.total - 1
            if state is not None and key is None:
                found = ask.next_in_state(job_id, state, after_seq, limit)
                return [_task(row) for row in await connection.execute(found)]
            place, page = after_seq, list[Task]()
            while place < last and len(page) < limit:
                step = limit if key is None else _PLACES
                some = await _some_tasks(connection, job_id, place, place + step, key)
                page += [task for task in some if state in (None, task.state)]
                place += step
            return page[:limit]

        return await self._store.read(unit)

    async def some_tasks(
        self, job_id: JobId, *, after_seq: int, number: int = _PLACES
    ) -> Sequence[Task]:
        """So many tasks of a job behind a place; none where there is no such job or place."""
        return await self._store.read(
            lambda connection: _some_tasks(connection, job_id, after_seq, after_seq + number)
        )

    async def answered(self, job_id: JobId) -> frozenset[TaskId]:
        """The tasks of a job that have answered."""

        async def unit(connection: AsyncConnection) -> frozenset[TaskId]:
            found: set[TaskId] = set()
            for solo in (False, True):
                some, last = [0] * _IDS, 0
                while len(some) == _IDS:
                    page = ask.answered_in(job_id, (solo, last), _IDS)
                    some = list(await connection.scalars(page))
                    found.update(map(TaskId, some))
                    last = some[-1] if some else last
            return frozenset(found)

        return await self._store.read(unit)

    async def answers(self, task_ids: Sequence[TaskId]) -> Mapping[TaskId, str]:
        """The answers of some tasks, as they are written."""

        async def unit(connection: AsyncConnection) -> Mapping[TaskId, str]:
            rows = await connection.execute(ask.answers_of(task_ids))
            return {TaskId(row.task_id): row.body for row in rows}

        return await self._store.read(unit)

    async def task(self, task_id: TaskId) -> TaskView:
        """One task with everything about it. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> TaskView:
            task = await _one_task(connection, task_id)
            attempts = (await connection.execute(ask.attempts_of(task_id))).all()
            body = (await connection.scalars(ask.answer_of(task_id))).one_or_none()
            refused = await connection.execute(ask.rejected_of(task_id))
            return TaskView(
                task=task,
                job=await self._job_of_task(connection, task),
                attempts=[_attempt(row) for row in attempts],
                answer=orjson.loads(body) if body else None,
                rejected=[_rejected(row) for row in refused],
                cancel=await self._cancel_of(connection, attempts),
            )

        return await self._store.read(unit)

    async def situation(self, task_id: TaskId) -> Situation:
        """The facts that decide why a task is not running. Raises: NotFound."""

        async def unit(connection: AsyncConnection) -> Situation:
            task = await _one_task(connection, task_id)
            [state] = await _key_states(connection, [task.key], [*SENT, TaskState.RUNNING])
            waits = task.state in (TaskState.BLOCKED, TaskState.HELD)
            open_before = await _open_predecessors(connection, task, 10) if waits else []
            return Situation(
                task=task,
                job=await self._job_of_task(connection, task),
                key=state,
                open_predecessors=open_before,
                ahead=(await connection.scalars(ask.ahead_of(task_id, task.key, MOST_ABOVE))).one(),
                now=_utc((await connection.scalars(ask.the_time())).one()),
                leased=bool((await connection.scalars(ask.is_leased(task_id))).one_or_none()),
                standing=await standing_of(connection, task),
            )

        return await self._store.read(unit)

    async def upstream(
        self, task_id: TaskId, key: str, *, after_seq: int = -1, limit: int = 100
    ) -> Upstream:
        """What earlier tasks of a key answered, as far as a task may see it.

        That is: those among its direct predecessors, and the job's only task of that key.
        Raises: NotFound.
        """

        async def unit(connection: AsyncConnection) -> Upstream:
            task = await _one_task(connection, task_id)
            nodes = await _predecessors(connection, task_id)
            found = ask.answers_for(task.job_id, nodes, key, after_seq, limit + 1)
            rows = sorted(await connection.execute(found), key=lambda row: int(row.seq))
            shown = rows[:limit]
            more = len(rows) > limit
            return Upstream(
                answers=[(_task(row), orjson.loads(row.body)) for row in shown],
                next=shown[-1].seq if more else None,
            )

        return await self._store.read(unit)

    # --- what a message carries -----------------------------------------------------------

    async def heads(self, job_ids: Iterable[JobId]) -> Mapping[JobId, JobHead]:
        """What every message of these jobs carries; deleted ones are missing."""
        wanted = sorted(set(job_ids))

        async def unit(connection: AsyncConnection) -> Mapping[JobId, JobHead]:
            rows = await connection.execute(ask.heads(), {"ids": wanted})
            return {JobId(row.id): _head(row) for row in rows}

        return await self._store.read(unit)

    async def responses(self, claims: Sequence[Claim]) -> Mapping[TaskId, Inline]:
        """What earlier tasks answered, for tasks about to be sent, and whether some is left out.

        Inline come the answers of direct predecessors, then those of the tasks whose key
        occurs once in the job, the newest first, until `INLINE_LIMIT` is reached.
        """

        async def unit(
            connection: AsyncConnection,
        ) -> Mapping[TaskId, Inline]:
            direct = await _direct_answers(connection, claims)
            solo = await _solo_answers(connection, sorted({claim.job_id for claim in claims}))
            return {
                claim.task_id: inline([*direct[claim.task_id], *solo[claim.job_id]])
                for claim in claims
            }

        return await self._store.read(unit)

    # --- parts of answers -------------------------------------------------------------------

    async def _job(self, connection: AsyncConnection, job_id: JobId) -> Job:
        row = (await connection.execute(ask.job(), {"job_id": job_id})).one_or_none()
        if row is None:
            raise NotFound("job", job_id)
        return _job_of(row, (await _furthest(connection, [row]))[row.id], self._grace)

    async def _job_of_task(self, connection: AsyncConnection, task: Task) -> Job:
        try:
            return await self._job(connection, task.job_id)
        except NotFound:  # deleted a moment ago; its tasks follow
            raise NotFound("task", task.id) from None

    async def _cancel_of(
        self, connection: AsyncConnection, attempts: Sequence[sa.Row[Any]]
    ) -> Cancel | None:
        cut = [row.finished_at for row in attempts if row.message == CUT and row.outcome == 499]
        if not cut:
            return None
        return _cancel(cut[-1], (await connection.scalars(ask.the_time())).one(), self._grace)

    # --- keys and workers -----------------------------------------------------------------

    async def keys(self) -> Sequence[KeyState]:
        """Every task key that is known: offered by a worker, paused, or asked for."""

        async def unit(connection: AsyncConnection) -> Sequence[KeyState]:
            known = sorted(await connection.scalars(ask.known_keys()))
            return await _of_late(connection, await _key_states(connection, known))

        return await self._store.read(unit)

    async def schemas(self, keys: Iterable[str]) -> Mapping[str, Mapping[str, Any]]:
        """The JSON Schemas of `args`, of those keys whose workers have announced one."""
        wanted = sorted(set(keys))

        async def unit(connection: AsyncConnection) -> Mapping[str, Mapping[str, Any]]:
            offers = {
                row.task_key: _offer(row)
                for some in chunks(wanted)
                for row in await connection.execute(ask.task_keys_in(some))
            }
            return {
                key: offer.args_schema
                for key, offer in offers.items()
                if offer and offer.args_schema is not None
            }

        return await self._store.read(unit)


# --- jobs -----------------------------------------------------------------------------------


def _cursor(after: str | None) -> int | None:
    if after is None:
        return None
    if not after.isascii() or not after.isdigit() or len(after) > 18:
        raise BadSpec([Fault("after", "expected the `next` of an earlier page")])
    return int(after)


async def _furthest(connection: AsyncConnection, rows: Sequence[sa.Row[Any]]) -> dict[int, int]:
    """DANE 0.1's state of a job: that of its first task, in order, that is not done."""
    open_jobs = {row.id: row for row in rows if row.status != JobStatus.SUCCEEDED}
    first: dict[int, tuple[int, str]] = {}
    for forgiving in (False, True):
        wanted = [id_ for id_, row in open_jobs.items() if bool(row.forgiven) is forgiving]
        for some in chunks(sorted(wanted)):
            question = ask.first_of_each_state(forgiving=forgiving)
            for job_id, *seqs in await connection.execute(question, {"ids": some}):
                total = open_jobs[job_id].total
                found = [
                    (seq, state.value)
                    for seq, state in zip(seqs, ask.NOT_DONE, strict=True)
                    if seq is not None and seq < total  # what is behind the tasks is a join
                ]
                if found:
                    first[job_id] = min(found)
    failed = [
        (job_id, seq)
        for job_id, (seq, state) in first.items()
        if state in (TaskState.FAILED, TaskState.BACKOFF)
    ]
    numbers = {job_id: FACES[TaskState(state)].number for job_id, (_, state) in first.items()}
    for job_id, seq in failed:
        outcome = (await connection.scalars(ask.outcome_at(job_id, seq))).one_or_none()
        numbers[job_id] = outcome or numbers[job_id]
    return {row.id: numbers.get(row.id, 200) for row in rows}


def _cancel(cut_at: datetime | None, now: datetime, grace: timedelta) -> Cancel | None:
    """What was taken away then may go on for the grace time."""
    if cut_at is None or cut_at + grace <= now:
        return None
    return Cancel(requested_at=_utc(cut_at), ended_by=_utc(cut_at + grace))


def _job_of(row: sa.Row[Any], state: int, grace: timedelta) -> Job:
    counted = row.active + row.held + row.succeeded + row.failed
    counted += row.forgiven + row.cancelled + row.skipped
    return Job(
        id=JobId(row.id),
        source_url=row.source_url,
        source_id=row.source_id,
        type=row.type,
        metadata=orjson.loads(row.metadata),
        priority=row.priority,
        shared=orjson.loads(row.shared),
        status=JobStatus(row.status),
        state=state,
        counts=Counts(
            total=row.total,
            # Who lets very many go counts as active meanwhile, though its task is done.
            blocked=max(row.total - counted, 0),
            held=row.held,
            active=row.active,
            succeeded=row.succeeded,
            failed=row.failed,
            forgiven=row.forgiven,
            cancelled=row.cancelled,
            skipped=row.skipped,
        ),
        paused=row.paused,
        created_at=_utc(row.created_at),
        started_at=_maybe_utc(row.started_at),
        finished_at=_maybe_utc(row.finished_at),
        cancel=_cancel(row.cut_at, row.now, grace),
        cancelling=row.cancelling,
        owner=row.owner or "",
    )


# --- tasks ----------------------------------------------------------------------------------


async def _some_tasks(
    connection: AsyncConnection,
    job_id: JobId,
    after_seq: int,
    up_to_seq: int,
    key: str | None = None,
) -> list[Task]:
    rows = await connection.execute(ask.some_tasks_of_job(job_id, after_seq, up_to_seq, key))
    return sorted((_task(row) for row in rows), key=lambda task: task.seq)


async def _one_task(connection: AsyncConnection, task_id: TaskId) -> Task:
    row = (await connection.execute(ask.task(task_id))).one_or_none()
    if row is None:
        raise NotFound("task", task_id)
    return _task(row)


def _task(row: sa.Row[Any]) -> Task:
    return Task(
        id=TaskId(row.id),
        job_id=JobId(row.job_id),
        seq=row.seq,
        key=row.task_key,
        name=row.name,
        args=orjson.loads(row.args) if row.args else {},
        priority=MAX_PRIORITY - row.rank,
        timeout=row.timeout,
        retry=Retry(**orjson.loads(row.retry)) if row.retry else Retry(),
        allow_failure=row.allow_failure,
        state=TaskState(row.state),
        outcome=row.outcome,
        message=row.message,
        attempt=row.attempt,
        dispatch=row.dispatch,
        worker=row.worker,
        progress=row.progress,
        pending=row.pending,
        due_at=_maybe_utc(row.due_at),
        queued_at=_maybe_utc(row.queued_at),
        started_at=_maybe_utc(row.started_at),
        finished_at=_maybe_utc(row.finished_at),
    )


def _attempt(row: sa.Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        worker=row.worker,
        outcome=row.outcome,
        message=row.message,
        queued_at=_maybe_utc(row.queued_at),
        started_at=_maybe_utc(row.started_at),
        finished_at=_utc(row.finished_at),
        runtime=row.runtime,
    )


def _rejected(row: sa.Row[Any]) -> RejectedState:
    return RejectedState(
        attempt=row.attempt,
        reason=Rejected(row.reason),
        times=row.times,
        worker=row.worker,
        last_at=_utc(row.last_at),
    )


# --- the graph, backwards -------------------------------------------------------------------

#: Edges, and tasks of each state, among which is looked for what holds a task up.
_SIGHT: Final = 1000


async def _predecessors(connection: AsyncConnection, node: int) -> list[int]:
    """The nodes whose out-edges lead to a task: itself, and the joins right before it."""
    nodes, frontier = [node], [node]
    if (job := (await connection.execute(ask.size_around(node))).one_or_none()) is None:
        return nodes
    first_join = (await connection.scalars(ask.first_join(job.id, job.total))).one_or_none()
    while frontier and first_join is not None:
        frontier = list(await connection.scalars(ask.joins_before(frontier, first_join)))
        nodes += frontier
    return nodes


async def _open_predecessors(connection: AsyncConnection, task: Task, limit: int) -> list[Task]:
    """Some of the tasks that hold one up: the first, or of a hundred thousand those in sight.

    Where most are done, they are looked for among what of the job is not.
    """
    nodes = await _predecessors(connection, task.id)
    near = ask.not_done_near(nodes, _SIGHT, limit)
    found = {row.id: row for row in await connection.execute(near)}
    in_sight = (await connection.scalars(ask.edges_into(nodes, _SIGHT))).one() < _SIGHT
    for state in () if in_sight else ask.NOT_DONE:
        if len(found) >= limit:
            break
        others = ask.not_done_in(task.job_id, state, nodes, _SIGHT, limit)
        found |= {row.id: row for row in await connection.execute(others)}
    return [_task(found[one]) for one in sorted(found)[:limit]]


# --- what a message carries -----------------------------------------------------------------

#: Tasks with no more predecessors than this are asked about together.
_FEW: Final = 8

_Answers = list[sa.Row[Any]]


async def _direct_answers(
    connection: AsyncConnection, claims: Sequence[Claim]
) -> defaultdict[TaskId, _Answers]:
    """The answers of direct predecessors, those right before a join among them."""
    behind = {claim.task_id: claim.fanin for claim in claims if claim.fanin}
    joins: defaultdict[int, list[int]] = defaultdict(list)
    for some in chunks(sorted(behind)):
        for dst, src in await connection.execute(ask.joins_into(some)):
            joins[dst].append(src)
    direct = {task: fanin for task, fanin in behind.items() if fanin > len(joins[task])}
    answers: defaultdict[TaskId, _Answers] = defaultdict(list)
    few = sorted(task for task, fanin in direct.items() if fanin <= _FEW)
    for some in chunks(few, 50):
        rows = await connection.execute(ask.answers_before(some, _FEW * len(some)))
        for row in sorted(rows, key=_by_task):
            answers[TaskId(row.dst)].append(row)
    for task in sorted(direct.keys() - set(few)):
        answers[task] += await _some_answers(connection, [task])
    # Tasks side by side wait for the same join: its predecessors are looked up once.
    for join in sorted({join for found in joins.values() for join in found}):
        before = await _some_answers(connection, await _predecessors(connection, join))
        for task in behind:
            if join in joins[task]:
                answers[task] += before
    return answers


async def _some_answers(connection: AsyncConnection, nodes: Sequence[int]) -> _Answers:
    rows = await connection.execute(ask.answers_before(nodes, INLINE_ANSWERS + 1))
    return sorted(rows, key=_by_task)


def _by_task(row: sa.Row[Any]) -> int:
    return int(row.task_id)


async def _solo_answers(
    connection: AsyncConnection, job_ids: Sequence[int]
) -> defaultdict[JobId, list[sa.Row[Any]]]:
    solo: defaultdict[JobId, list[sa.Row[Any]]] = defaultdict(list)
    for some in chunks(job_ids):
        rows = await connection.execute(ask.solo_answers(some, INLINE_ANSWERS + 1))
        for row in sorted(rows, key=_by_task, reverse=True):
            solo[JobId(row.job_id)].append(row)
    return solo


def _head(row: sa.Row[Any]) -> JobHead:
    return JobHead(
        id=JobId(row.id),
        source_id=row.source_id,
        source_url=row.source_url,
        metadata=orjson.loads(row.metadata),
        shared=orjson.loads(row.shared),
    )


# --- keys and workers -----------------------------------------------------------------------


async def _key_states(
    connection: AsyncConnection, keys: Sequence[str], states: Collection[TaskState] = ACTIVE
) -> list[KeyState]:
    """How keys stand; of tasks in other states than these none are counted."""
    known = {row.task_key: row for row in await connection.execute(ask.task_keys_in(keys))}
    counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for key, state, number in await connection.execute(ask.number_by_key(keys, states)):
        counts[key][state] = number
    here = [_worker(row) for row in await connection.execute(ask.workers())]
    return [
        KeyState(
            key=key,
            paused=bool(key in known and known[key].paused),
            offer=_offer(known[key]) if key in known else None,
            workers=[worker for worker in here if key in worker.task_keys],
            waiting=counts[key].get(TaskState.UNROUTABLE, 0),
            ready=counts[key].get(TaskState.READY, 0) + counts[key].get(TaskState.BACKOFF, 0),
            queued=sum(counts[key].get(s, 0) for s in (TaskState.DISPATCHING, TaskState.QUEUED)),
            running=counts[key].get(TaskState.RUNNING, 0),
            limits=limits_of(known.get(key)),
        )
        for key in keys
    ]


async def _of_late(connection: AsyncConnection, states: Sequence[KeyState]) -> list[KeyState]:
    """The same keys, with how long the oldest of each waits, and how many have ended lately."""
    oldest = {
        state.key: (await connection.scalars(ask.oldest_of_key(state.key))).one_or_none()
        for state in states
    }
    time = (await connection.scalars(ask.the_time())).one()
    lately = (await connection.execute(ask.ended_lately())).all()
    rates = {key: number / _seconds(lately, time) for key, number, _ in lately}
    return [
        replace(state, oldest_wait=_age(time, oldest[state.key]), rate=rates.get(state.key, 0.0))
        for state in states
    ]


def _seconds(lately: Sequence[Any], time: datetime) -> float:
    """Over how many seconds the last attempts were counted; the whole time where all were."""
    if sum(row[1] for row in lately) < ask.LAST:
        return ask.LATELY
    return max(float((time - lately[0].since).total_seconds()), 1.0)


def _age(time: datetime, since: datetime | None) -> float | None:
    return None if since is None else max((time - since).total_seconds(), 0.0)


def _offer(row: sa.Row[Any]) -> Offer | None:
    if row.offer is None:
        return None
    offer = orjson.loads(row.offer)
    return Offer(key=row.task_key, **{**offer, "types": tuple(offer["types"])})


def _worker(row: sa.Row[Any]) -> WorkerState:
    return WorkerState(
        id=row.id,
        host=row.host,
        pid=row.pid,
        slots=row.slots,
        task_keys=tuple(orjson.loads(row.task_keys)),
        running=tuple(orjson.loads(row.running)),
        seen_at=_utc(row.seen_at),
        since=_utc(row.since),
    )


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC)


def _maybe_utc(time: datetime | None) -> datetime | None:
    return None if time is None else _utc(time)
