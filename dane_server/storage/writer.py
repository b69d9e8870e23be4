"""Everything that changes the store in the ordinary course: each method is one transaction."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import DaneError, KeyReused, SourceConflict
from dane_core.job import JobId, Retry, TaskId
from dane_core.message import Answer, Ask, Hello, Offer, Progress, Released, Started
from dane_core.routing import MAX_PRIORITY, MEDIA_TYPE
from dane_core.states import IN_FLIGHT, SENT, TaskState, outcome_number, outcome_state
from dane_server.storage import statements as sql
from dane_server.storage.engine import Store
from dane_server.storage.functions import later
from dane_server.storage.release import chunks, release
from dane_server.storage.tally import Tally
from dane_server.storage.view import Claim, NewJob, Once, Recorded, Submitted

#: The most that goes into one statement, well under the server's packet limit of 16 MiB.
_STATEMENT_BYTES: Final = 4 * 1024 * 1024
_ROWS: Final = 500


class Writer:
    """The only way to change the store. Its promises are those of `Store.write`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # --- submitting ---------------------------------------------------------------------

    async def store_jobs(self, new_jobs: Sequence[NewJob]) -> list[Submitted | DaneError]:
        """Store jobs with their tasks, all in one transaction; a bad one fails alone.

        In place of a job that cannot be stored stands why: SourceConflict or KeyReused.
        """

        async def unit(connection: AsyncConnection) -> list[Submitted | DaneError]:
            echoes = _echoes(new_jobs)
            placed = [(place, new) for place, new in enumerate(new_jobs) if place not in echoes]
            outcomes = await _replayed(connection, placed)
            outcomes |= await _in_conflict(connection, _without(placed, outcomes))
            fresh = _without(placed, outcomes)
            for (place, new), job_id in zip(
                fresh, await _add_jobs(connection, [new for _, new in fresh]), strict=True
            ):
                outcomes[place] = Submitted(job_id=job_id, replayed=False)
                if new.once:
                    await connection.execute(sql.settle_request_key(new.once.key, job_id))
            refused = [
                new.once.key
                for place, new in placed
                if new.once and isinstance(outcomes[place], SourceConflict)
            ]
            if refused:
                await connection.execute(sql.drop_request_keys(refused))
            outcomes |= {place: _echo(outcomes[first]) for place, first in echoes.items()}
            return [outcomes[place] for place in range(len(new_jobs))]

        return await self._store.write(unit)

    # --- dispatching --------------------------------------------------------------------

    async def claim_ready(self, *, window: int, limit: int, lease: timedelta) -> list[Claim]:
        """Take tasks for sending, the most urgent first, `limit` at most.

        No more than `window` of a key are in the exchange at once. What is not confirmed
        before `lease` runs out is claimed again, by anyone.
        """

        async def unit(connection: AsyncConnection) -> list[Claim]:
            claims: list[Claim] = []
            for key in (await connection.scalars(sql.keys_ready())).all():
                if len(claims) >= limit:
                    break
                sent = (await connection.scalars(sql.sent_of_key(key, window))).one()
                room = min(window - sent, limit - len(claims))
                if room > 0:
                    rows = await connection.execute(sql.sendable(key, room))
                    claims += [_claim(row) for row in rows]
            ids = sorted(claim.task_id for claim in claims)
            if ids:
                await connection.execute(sql.claim(ids, lease.total_seconds()))
            return claims

        return await self._store.write(unit)

    async def mark_sent(
        self, queued: Sequence[Claim], unroutable: Sequence[Claim], *, again: timedelta
    ) -> None:
        """Write down what the exchange said of a sending. Unknown outcomes are left to the lease.

        Unroutable tasks are tried `again` after some time, or as soon as a worker binds.
        """

        async def unit(connection: AsyncConnection) -> None:
            if queued:
                await connection.execute(
                    sql.mark_queued(_tickets(queued), _HORIZON.total_seconds())
                )
                await connection.execute(sql.start_jobs(sorted({c.job_id for c in queued})))
            if unroutable:
                await connection.execute(
                    sql.mark_unroutable(_tickets(unroutable), again.total_seconds())
                )

        await self._store.write(unit)

    # --- recording ----------------------------------------------------------------------

    async def record(self, answers: Sequence[Answer], *, window: int, lease: timedelta) -> Recorded:
        """Record how attempts ended, and let go what waited for them, in one transaction.

        Of several answers for one task the first counts. An answer is late, and changes
        nothing, when its attempt is not the task's current one or the task is settled.
        Successors for which the `window` of their key has room are claimed for sending along
        the way: a chain would otherwise pay a transaction more for each of its steps.
        """

        async def unit(connection: AsyncConnection) -> Recorded:
            rows = {
                row.id: row
                for some in chunks(sorted({a.ticket.task_id for a in answers}), _ROWS)
                for row in await connection.execute(sql.answered(some))
            }
            living = {
                job.id: job.started_at
                for job in await connection.execute(
                    sql.living_jobs({row.job_id for row in rows.values()})
                )
            }
            valid: dict[int, _Settled] = {}
            late: list[Answer] = []
            for answer in answers:
                row = rows.get(answer.ticket.task_id)
                if row is None or row.id in valid or not _is_current(row, answer, living):
                    late.append(answer)
                else:
                    valid[row.id] = _Settled(row, answer)
            tally = Tally()
            ready = await _settle(connection, list(valid.values()), tally) if valid else []
            # Whoever sent them may have died before it could write down that it did.
            jobs = {one.row.job_id for one in valid.values() if not living[one.row.job_id]}
            if jobs:
                await connection.execute(sql.start_jobs(sorted(jobs)))
            claims = await _claim_along(connection, ready[:_ROWS], window, lease)
            await tally.write(connection)
            return Recorded(
                settled={TaskId(task_id): one.state for task_id, one in valid.items()},
                late=late,
                ready=[TaskId(task_id) for task_id in ready],
                claims=claims,
            )

        return await self._store.write(unit)

    # --- what workers say ---------------------------------------------------------------

    async def note_reports(
        self,
        started: Sequence[Started],
        progress: Sequence[Progress],
        released: Sequence[Released],
    ) -> None:
        """Write down who runs what and how far, and take back what was handed back."""

        async def unit(connection: AsyncConnection) -> None:
            for start in started:
                await connection.execute(
                    sql.mark_running(
                        start.ticket.task_id, start.ticket.attempt, start.worker, start.runtime
                    )
                )
            for step in progress:
                await connection.execute(
                    sql.note_progress(
                        step.ticket.task_id, step.ticket.attempt, step.fraction, step.message
                    )
                )
            for back in released:
                ticket = back.ticket
                await connection.execute(
                    sql.take_back(ticket.task_id, ticket.attempt, ticket.dispatch, back.delay)
                )

        await self._store.write(unit)

    async def judge(self, asks: Sequence[Ask]) -> list[str]:
        """Whether each ticket may still run: "" for yes, or why not.

        A ticket that is refused is dropped. So what was sent before its job was paused is
        taken back here: no other message would bring it to a worker after the pause.
        """

        async def unit(connection: AsyncConnection) -> list[str]:
            ids = sorted({ask.ticket.task_id for ask in asks})
            rows = {row.id: row for row in await connection.execute(sql.asked_about(ids))}
            return [_objection(rows.get(ask.ticket.task_id), ask) for ask in asks]

        objections = await self._store.read(unit)
        dropped = [
            Released(ticket=ask.ticket, worker=ask.worker)
            for ask, objection in zip(asks, objections, strict=True)
            if objection == _PAUSED
        ]
        if dropped:
            await self.note_reports([], [], dropped)
        return objections

    async def see_workers(self, hellos: Sequence[Hello]) -> frozenset[str]:
        """Note which workers are here, what they offer and run; returns the paused keys."""

        async def unit(connection: AsyncConnection) -> frozenset[str]:
            for hello in hellos:
                seen = await connection.execute(
                    sql.see_worker(hello.worker).values(running=_running(hello))
                )
                if seen.rowcount == 0:
                    await connection.execute(sql.add_worker().values(**_worker_row(hello)))
                if hello.fresh or seen.rowcount == 0:
                    await _note_offers(connection, hello.offers)
            return frozenset(await connection.scalars(sql.paused_keys()))

        return await self._store.write(unit)

    async def forget_worker(self, worker: str) -> None:
        async def unit(connection: AsyncConnection) -> None:
            await connection.execute(sql.forget_worker(worker))

        await self._store.write(unit)

    # --- sweeping -----------------------------------------------------------------------

    async def sweep(self, *, limit: int = 500, silence: timedelta) -> int:
        """Make ready what nobody else will; returns how many tasks are worth another sweep.

        Those are: claimed but not confirmed in time, failed for now and due again, and, as a
        probe, some that have waited for a worker long enough: when one binds it says so, and
        all of them go. Workers silent for `silence` are forgotten.
        """

        async def unit(connection: AsyncConnection) -> int:
            moved = 0
            for state in (TaskState.DISPATCHING, TaskState.BACKOFF, TaskState.UNROUTABLE):
                ids = list(await connection.scalars(sql.overdue(state, limit)))
                if ids:
                    await connection.execute(sql.ready_again(ids, state))
                    moved += len(ids) if state is not TaskState.UNROUTABLE else 0
            await connection.execute(sql.forget_silent_workers(silence.total_seconds()))
            return moved

        return await self._store.write(unit)

    async def next_due(self) -> float | None:
        """Seconds until the next task has to be looked at; None when none waits for a time."""

        async def unit(connection: AsyncConnection) -> float | None:
            due, time = (await connection.execute(sql.next_due())).one()
            return None if due is None else float((due - time).total_seconds())

        return await self._store.read(unit)

    async def route_again(self, keys: Sequence[str]) -> int:
        """A worker has bound these keys: what waited for one is ready. Returns how many."""

        async def unit(connection: AsyncConnection) -> int:
            return (await connection.execute(sql.routable_again(keys))).rowcount

        return await self._store.write(unit)

    async def recover_from_lost_exchange(self) -> int:
        """Everything that was in an exchange that is gone is sent again, as a new attempt."""
        recovered = 0

        async def unit(connection: AsyncConnection) -> int:
            ids = list(await connection.scalars(sql.lost_with_the_exchange(_ROWS)))
            if ids:
                await connection.execute(sql.send_anew(ids))
            return len(ids)

        while some := await self._store.write(unit):
            recovered += some
        return recovered

    async def shared_secret(self, name: str, proposal: str) -> str:
        """A secret that all servers on this store share; the first proposal is kept."""

        async def unit(connection: AsyncConnection) -> str:
            await connection.execute(sql.add_secret().values(name=name, value=proposal))
            return str((await connection.scalars(sql.secret(name))).one())

        return await self._store.write(unit)


#: Somebody looks at a queued task again after this long, should nothing else have happened.
_HORIZON: Final = timedelta(hours=1)


# --- submitting -----------------------------------------------------------------------------

_Outcomes = dict[int, Submitted | DaneError]
_Placed = list[tuple[int, NewJob]]


def _echoes(new_jobs: Sequence[NewJob]) -> dict[int, int]:
    """Requests that another one of the same batch makes already, and which one that is."""
    first: dict[Once, int] = {}
    keyed = [(place, new.once) for place, new in enumerate(new_jobs) if new.once]
    return {place: first[once] for place, once in keyed if first.setdefault(once, place) != place}


def _echo(outcome: Submitted | DaneError) -> Submitted | DaneError:
    return replace(outcome, replayed=True) if isinstance(outcome, Submitted) else outcome


def _without(placed: _Placed, outcomes: _Outcomes) -> _Placed:
    return [(place, new) for place, new in placed if place not in outcomes]


async def _replayed(connection: AsyncConnection, placed: _Placed) -> _Outcomes:
    """Take the request keys; for one that is taken, its job, or that it was another request."""
    keyed = [(place, new.once) for place, new in placed if new.once]
    outcomes: _Outcomes = {}
    for place, wanted in keyed:
        added = await connection.execute(
            sql.claim_request_keys().values(request_key=wanted.key, digest=wanted.digest)
        )
        if added.rowcount:
            continue
        taken = (await connection.execute(sql.request_keys([wanted.key]))).one()
        same = taken.digest == wanted.digest
        outcomes[place] = (
            Submitted(job_id=JobId(taken.job_id), replayed=True) if same else KeyReused(wanted.key)
        )
    return outcomes


async def _in_conflict(connection: AsyncConnection, placed: _Placed) -> _Outcomes:
    """One source_id always has one source_url: those that say otherwise."""
    urls: dict[str, str] = {}
    for _, new in placed:
        urls.setdefault(new.spec.source_id, new.spec.source_url)
    known: dict[str, str] = {}
    for some in chunks(sorted(urls), _ROWS):
        await connection.execute(
            sql.add_sources(),
            [{"source_id": source_id, "source_url": urls[source_id]} for source_id in some],
        )
        rows = await connection.execute(sql.source_urls(some))
        known |= {row.source_id: row.source_url for row in rows}
    return {
        place: SourceConflict(new.spec.source_id, known[new.spec.source_id])
        for place, new in placed
        if known[new.spec.source_id] != new.spec.source_url
    }


async def _add_jobs(connection: AsyncConnection, new_jobs: Sequence[NewJob]) -> list[JobId]:
    if not new_jobs:
        return []
    job_rows = [_job_row(new) for new in new_jobs]
    job_ids = [JobId(job_id) for job_id in await _add_rows(connection, sql.add_jobs(), job_rows)]
    rows = [
        row
        for job_id, new in zip(job_ids, new_jobs, strict=True)
        for row in _node_rows(job_id, new)
    ]
    node_ids = await _add_rows(connection, sql.add_tasks(), rows)
    edges: list[dict[str, int]] = []
    first = 0
    for new in new_jobs:
        edges += [
            {"src": node_ids[first + src], "dst": node_ids[first + dst]}
            for src, dst in new.graph.edges
        ]
        first += len(new.graph.pending)
    for some in chunks(edges, 5000):
        await connection.execute(sql.add_edges().values(some))
    return job_ids


async def _add_rows(
    connection: AsyncConnection, statement: sa.Insert, rows: Sequence[dict[str, Any]]
) -> list[int]:
    """Insert rows and return their new ids, in the order of the rows.

    The order of RETURNING is not promised; that the ids of one statement rise with its rows is
    (InnoDB: auto-increment of simple inserts; SQLite: AUTOINCREMENT).
    """
    ids: list[int] = []
    for some in _fitting(rows):
        ids += sorted(await connection.scalars(statement, some))
    return ids


def _fitting(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Cut rows into lists that fit into one statement each."""
    parts: list[list[dict[str, Any]]] = [[]]
    size = 0
    for row in rows:
        weight = 200 + sum(len(value) for value in row.values() if isinstance(value, str))
        if parts[-1] and (size + weight > _STATEMENT_BYTES or len(parts[-1]) >= _ROWS):
            parts.append([])
            size = 0
        parts[-1].append(row)
        size += weight
    return parts


def _job_row(new: NewJob) -> dict[str, Any]:
    spec, graph = new.spec, new.graph
    return {
        "source_id": spec.source_id,
        "source_url": spec.source_url,
        "type": spec.type,
        "priority": spec.priority,
        "metadata": _json(spec.metadata),
        "shared": _json(new.shared),
        "tree": _json(graph.tree),
        "total": len(graph.tasks),
        "active": sum(pending == 0 for pending in graph.pending[: len(graph.tasks)]),
    }


def _node_rows(job_id: JobId, new: NewJob) -> list[dict[str, Any]]:
    graph = new.graph
    fanout = [0] * len(graph.pending)
    for src, _ in graph.edges:
        fanout[src] += 1
    rows = []
    for seq, pending in enumerate(graph.pending):
        task = graph.tasks[seq] if seq < len(graph.tasks) else None
        priority = new.spec.priority
        if task is not None and task.priority is not None:
            priority = task.priority
        rows.append(
            {
                "job_id": job_id,
                "seq": seq,
                "task_key": task.key if task else None,
                "name": task.name if task else None,
                "args": _json(task.args) if task and task.args else None,
                "rank": MAX_PRIORITY - priority,
                "timeout": task.timeout if task else None,
                "retry": _json(task.retry) if task and task.retry else None,
                "allow_failure": bool(task and task.allow_failure),
                "solo": seq in graph.solo,
                "state": TaskState.BLOCKED if pending else TaskState.READY,
                "pending": pending,
                "fanin": pending,
                "fanout": fanout[seq],
            }
        )
    return rows


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


# --- dispatching ----------------------------------------------------------------------------


def _claim(row: sa.Row[Any]) -> Claim:
    return Claim(
        task_id=TaskId(row.id),
        job_id=JobId(row.job_id),
        key=row.task_key,
        name=row.name,
        args=orjson.loads(row.args) if row.args else {},
        priority=MAX_PRIORITY - row.rank,
        timeout=row.timeout,
        attempt=row.attempt,
        dispatch=row.dispatch + 1,
        fanin=row.fanin,
    )


async def _claim_along(
    connection: AsyncConnection, ready: Sequence[int], window: int, lease: timedelta
) -> list[Claim]:
    """Claim tasks that this transaction has made ready, as far as there is room for them."""
    if not ready:
        return []
    rooms: dict[str, int] = {}
    claims: list[Claim] = []
    for row in await connection.execute(sql.claimable(ready)):
        claims.append(_claim(row))
        rooms[row.task_key] = window
    for key in rooms:
        rooms[key] -= (await connection.scalars(sql.sent_of_key(key, window))).one()
    fitting: list[Claim] = []
    for claim in claims:
        if rooms[claim.key] > 0:
            rooms[claim.key] -= 1
            fitting.append(claim)
    if fitting:
        ids = sorted(claim.task_id for claim in fitting)
        await connection.execute(sql.claim(ids, lease.total_seconds()))
    return fitting


def _tickets(claims: Sequence[Claim]) -> list[tuple[int, int]]:
    return sorted((claim.task_id, claim.dispatch) for claim in claims)


# --- recording ------------------------------------------------------------------------------


def _is_current(row: sa.Row[Any], answer: Answer, living: Container[int]) -> bool:
    return (
        row.attempt == answer.ticket.attempt
        and TaskState(row.state) in IN_FLIGHT
        and row.job_id in living
    )


def retry_delay(retry: Retry, tries: int) -> float:
    """Seconds to wait before try number `tries` + 1: exponential, up to `max_delay`."""
    return float(min(retry.delay * retry.factor**tries, retry.max_delay))


class _Settled:
    """One answer that counts, and what it makes of its task."""

    def __init__(self, row: sa.Row[Any], answer: Answer) -> None:
        self.row = row
        self.answer = answer
        self.retry = Retry(**orjson.loads(row.retry)) if row.retry else Retry()
        self.number = outcome_number(answer.state)
        self.state = outcome_state(answer.state)
        if self.state is TaskState.BACKOFF and row.tries >= self.retry.limit:
            self.state = TaskState.FAILED

    @property
    def lets_go(self) -> bool:
        return self.state is TaskState.SUCCEEDED or (
            self.state is TaskState.FAILED and self.row.allow_failure
        )

    @property
    def started_at(self) -> Any:
        if self.answer.runtime is None:
            return self.row.started_at
        return self.row.now - timedelta(seconds=min(max(self.answer.runtime, 0.0), 1e9))


async def _settle(connection: AsyncConnection, settled: list[_Settled], tally: Tally) -> list[int]:
    await _settle_tasks(connection, settled, tally)
    await connection.execute(sql.add_attempts(), [_attempt_row(one) for one in settled])
    await _settle_answers(connection, settled)
    leaving = [one.row for one in settled if one.lets_go and one.row.fanout]
    return await release(
        connection,
        [row.id for row in leaving if not row.released],
        [row.id for row in leaving if row.released],
        tally,
    )


async def _settle_tasks(connection: AsyncConnection, settled: list[_Settled], tally: Tally) -> None:
    groups: defaultdict[tuple[TaskState, int, bool], list[_Settled]] = defaultdict(list)
    for one in settled:
        groups[one.state, one.number, one.lets_go].append(one)
        tally.move(
            one.row.job_id,
            TaskState(one.row.state),
            one.state,
            allow_failure=one.row.allow_failure,
        )
    for (state, outcome, lets_go), alike in sorted(groups.items()):
        if state is TaskState.BACKOFF:
            for one in alike:
                await connection.execute(_back_off(one))
            continue
        values: dict[str, Any] = {
            "outcome": outcome,
            "message": sql.by_task({one.row.id: one.answer.message for one in alike}),
            "worker": sql.by_task({one.row.id: one.answer.worker for one in alike}),
            "started_at": sql.by_task({one.row.id: one.started_at for one in alike}),
            "finished_at": alike[0].row.now,
            "due_at": None,
        }
        if lets_go:
            values["released"] = True
        await connection.execute(sql.settle([one.row.id for one in alike], state, values))


def _back_off(one: _Settled) -> sa.Update:
    return sql.settle(
        [one.row.id],
        TaskState.BACKOFF,
        {
            "outcome": one.number,
            "message": one.answer.message,
            "attempt": one.row.attempt + 1,
            "tries": one.row.tries + 1,
            "worker": one.answer.worker,
            "queued_at": None,
            "started_at": None,
            "due_at": later(retry_delay(one.retry, one.row.tries)),
        },
    )


def _attempt_row(one: _Settled) -> dict[str, Any]:
    return {
        "task_id": one.row.id,
        "number": one.row.attempt,
        "worker": one.answer.worker or one.row.worker,
        "outcome": one.number,
        "message": one.answer.message,
        "queued_at": one.row.queued_at,
        "started_at": one.started_at,
        "finished_at": one.row.now,
        "runtime": one.answer.runtime,
    }


async def _settle_answers(connection: AsyncConnection, settled: list[_Settled]) -> None:
    """Keep the responses; one of an earlier attempt makes room for the new one."""
    said = [one for one in settled if one.answer.response or one.state is TaskState.SUCCEEDED]
    before = [one.row.id for one in settled if one.row.attempt > 1]
    for some in chunks(before, _ROWS):
        await connection.execute(sql.drop_answers(some))
    for some in _fitting([_answer_row(one) for one in said]):
        if some:
            await connection.execute(sql.add_answers(), some)
    for one in said:
        if media_type := _found_type(one):
            await connection.execute(sql.learn_type(one.row.job_id, media_type))


def _found_type(one: _Settled) -> str | None:
    """The media type that DOWNLOAD saw in the source."""
    media_type = one.answer.response.get("file_type")
    if one.row.task_key != "DOWNLOAD" or not isinstance(media_type, str):
        return None
    return media_type.lower() if MEDIA_TYPE.fullmatch(media_type.lower()) else None


def _answer_row(one: _Settled) -> dict[str, Any]:
    return {
        "task_id": one.row.id,
        "job_id": one.row.job_id,
        "task_key": one.row.task_key,
        "solo": one.row.solo,
        "attempt": one.row.attempt,
        "body": _json(one.answer.response),
    }


# --- what workers say -----------------------------------------------------------------------


_PAUSED: Final = "the job was paused"


def _objection(row: sa.Row[Any] | None, ask: Ask) -> str:
    if row is None:
        return "the job was deleted"
    ticket = ask.ticket
    if row.attempt != ticket.attempt:
        return f"attempt {ticket.attempt} was superseded by attempt {row.attempt}"
    if row.paused or row.cancelling:
        return _PAUSED if row.paused else "the job is being cancelled"
    state = TaskState(row.state)
    if state not in SENT and state is not TaskState.RUNNING:
        return f"the task is {state}"
    return "" if row.dispatch == ticket.dispatch else "the task was sent again since"


def _worker_row(hello: Hello) -> Mapping[str, Any]:
    return {
        "id": hello.worker,
        "host": hello.host,
        "pid": hello.pid,
        "slots": hello.slots,
        "inbox": hello.inbox,
        "task_keys": _json([offer.key for offer in hello.offers]),
        "running": _running(hello),
    }


def _running(hello: Hello) -> str:
    return _json([ticket.task_id for ticket in hello.running])


async def _note_offers(connection: AsyncConnection, offers: Sequence[Offer]) -> None:
    for offer in offers:
        body = _json(
            {
                "types": offer.types,
                "description": offer.description,
                "args_schema": offer.args_schema,
                "version": offer.version,
            }
        )
        await connection.execute(sql.add_task_keys().values(task_key=offer.key))
        await connection.execute(sql.change_task_key(offer.key).values(offer=body))
