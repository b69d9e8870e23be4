"""Writes down how attempts ended and lets go what waited for them, inside a transaction."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import Retry, TaskId
from dane_core.message import Answer, Ticket
from dane_core.routing import MEDIA_TYPE
from dane_core.states import IN_FLIGHT, SENT, TaskState, outcome_number, outcome_state
from dane_server.storage.chunk import ROWS, chunks, fitting
from dane_server.storage.claiming import Claiming, claim_along
from dane_server.storage.inline import inline
from dane_server.storage.rejecting import count_rejections
from dane_server.storage.release import make_ready, release
from dane_server.storage.statements import dispatch
from dane_server.storage.statements import recording as sql
from dane_server.storage.statements.lease import NO_STARTS, NOT_LEASED
from dane_server.storage.tally import Tally
from dane_server.storage.view import Claim, Recorded, Rejected, Rejection, Twice

#: Of a statement with a case for each task that differs: each number of them is a statement of its
#: own, and hundreds of those, compiled and kept, held hundreds of megabytes.
_NOT_CACHED: Final = {"compiled_cache": None}


async def record(
    connection: AsyncConnection, answers: Sequence[Answer], *, window: int, lease: timedelta
) -> Recorded:
    """Record a batch of answers; of several for one task the first counts."""
    rows = {
        row.id: row
        for some in chunks(sorted({a.ticket.task_id for a in answers}), ROWS)
        for row in await connection.execute(sql.answered(), {"ids": some})
    }
    valid, late = _sorted_out(answers, rows)
    tally = Tally()
    free = await _end(connection, list(valid.values()), tally) if valid else []
    # Whoever sent them may have died before it could write down that it did.
    jobs = {one.row.job_id for one in valid.values() if not one.row.job_started_at}
    if jobs:
        await connection.execute(dispatch.start_jobs(), {"ids": sorted(jobs)})
    await tally.write(connection)  # jobs are locked before keys: see `claiming`
    places = Counter(one.row.task_key for one in valid.values() if one.row.state in SENT)
    asked = Claiming(window=window, limit=ROWS, lease=lease)
    claims = await claim_along(connection, free, places, asked)
    claimed = {claim.task_id for claim in claims}
    behind = {task.id: task for task in free}
    await make_ready(connection, [task for task in free if task.id not in claimed])
    rejections = [_rejection(answer, reason) for answer, reason in late]
    known = {row.id: row.attempt for row in rows.values() if row.is_living}
    await count_rejections(connection, rejections, known)
    return Recorded(
        settled={TaskId(task_id): one.state for task_id, one in valid.items()},
        late=[answer for answer, _ in late],
        reasons=Counter(reason for _, reason in late),
        twice=_done_twice(late, rows, valid),
        ready=[TaskId(task.id) for task in free],
        claims=[_with_earlier(claim, behind[claim.task_id], valid) for claim in claims],
        more=len(claimed) < len(free) or _leave_room(valid, claims),
        walks=tally.walks > 0,
    )


def _with_earlier(claim: Claim, task: sa.Row[Any], settled: Mapping[int, "Ending"]) -> Claim:
    """A claim with what earlier tasks answered, if that is one answer which was just recorded."""
    before = settled.get(task.first)
    if before is None or task.fanin != 1 or task.has_solo:
        return claim
    return replace(claim, earlier=inline([_said(before)] if before.is_kept else []))


def _leave_room(settled: Mapping[int, "Ending"], claims: Sequence[Claim]) -> bool:
    """Whether places became free that were not passed on: others may have waited for them."""
    left = Counter(one.row.task_key for one in settled.values())
    return bool(left - Counter(claim.key for claim in claims))


def retry_delay(retry: Retry, tries: int) -> float:
    """Seconds to wait before try number `tries` + 1: exponential, up to `max_delay`."""
    return float(min(retry.delay * retry.factor**tries, retry.max_delay))


class Ending:
    """How an attempt ended, and what that makes of its task.

    `row` is locked, with the columns of `sql.answered`. Said by its worker, unless `own` is
    false: then the runner found it out, and what it knows of earlier starts stays.
    """

    def __init__(self, row: sa.Row[Any], answer: Answer, *, own: bool = True) -> None:
        self.row = row
        self.answer = answer
        self.own = own
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
    def is_kept(self) -> bool:
        """Whether there is a response worth keeping."""
        return bool(self.answer.response) or self.state is TaskState.SUCCEEDED

    @property
    def started_at(self) -> Any:
        if self.answer.runtime is None:
            return self.row.started_at
        # To a hundredth of a second, so that many short tasks have the same; `runtime` is exact.
        return self.row.now - timedelta(seconds=round(min(max(self.answer.runtime, 0.0), 1e9), 2))


def _sorted_out(
    answers: Sequence[Answer], rows: Mapping[int, sa.Row[Any]]
) -> tuple[dict[int, Ending], list[tuple[Answer, Rejected]]]:
    """The answers that count, by task; and the others, each with why it does not."""
    valid: dict[int, Ending] = {}
    late: list[tuple[Answer, Rejected]] = []
    for answer in answers:
        row = rows.get(answer.ticket.task_id)
        if row is None or not row.is_living:
            late.append((answer, Rejected.GONE))
        elif row.attempt != answer.ticket.attempt:
            late.append((answer, Rejected.STALE))
        elif row.id in valid or TaskState(row.state) not in IN_FLIGHT:
            late.append((answer, Rejected.SETTLED))
        else:
            valid[row.id] = Ending(row, answer)
    return valid, late


def _done_twice(
    late: Sequence[tuple[Answer, Rejected]],
    rows: Mapping[int, sa.Row[Any]],
    valid: Mapping[int, Ending],
) -> list[Twice]:
    """Attempts that a second worker has answered, too."""
    found = []
    for answer, reason in late:
        task_id = answer.ticket.task_id
        if reason is not Rejected.SETTLED or answer.worker is None:
            continue
        first = valid[task_id].answer.worker if task_id in valid else rows[task_id].worker
        if first not in (None, answer.worker):
            found.append(Twice(task_id, rows[task_id].task_key, first, answer.worker))
    return found


def _rejection(answer: Answer, reason: Rejected) -> Rejection:
    return Rejection(ticket=answer.ticket, worker=answer.worker, reason=reason)


def found_out(row: sa.Row[Any], number: int, message: str) -> Ending:
    """An end that no worker tells of: the runner gives the number, as a worker would."""
    ticket = Ticket(task_id=row.id, attempt=row.attempt, dispatch=0, token="")
    answer = Answer(ticket=ticket, state=number, message=message, response={}, worker=row.worker)
    return Ending(row, answer, own=False)


async def settle(connection: AsyncConnection, settled: Sequence[Ending], tally: Tally) -> list[int]:
    """Write down how attempts of locked tasks ended; returns the ids of what became ready."""
    free = await _end(connection, settled, tally)
    await make_ready(connection, free)
    return [task.id for task in free]


async def _end(
    connection: AsyncConnection, settled: Sequence[Ending], tally: Tally
) -> list[sa.Row[Any]]:
    """Write down how attempts ended; returns the tasks that are free to go (see `release`)."""
    await _settle_tasks(connection, settled, tally)
    await connection.execute(sql.add_attempts(), [_attempt_row(one) for one in settled])
    await _settle_answers(connection, settled)
    leaving = [one.row for one in settled if one.lets_go and one.row.fanout]
    return await release(connection, leaving, tally) if leaving else []


async def _settle_tasks(
    connection: AsyncConnection, settled: Sequence[Ending], tally: Tally
) -> None:
    alike: defaultdict[_Kind, list[Ending]] = defaultdict(list)
    for one in settled:
        alike[_kind(one)].append(one)
        tally.move(
            one.row.job_id,
            TaskState(one.row.state),
            one.state,
            allow_failure=one.row.allow_failure,
        )
    for kind, some in sorted(alike.items()):
        await _settle_alike(connection, kind, some)


async def _settle_alike(connection: AsyncConnection, kind: "_Kind", some: Sequence[Ending]) -> None:
    ids = [one.row.id for one in some]
    values = _values(kind, some)
    if any(isinstance(value, sa.ClauseElement) for value in values.values()):
        one_off = sql.settle(ids, kind.state, values)
        await connection.execute(one_off, execution_options=_NOT_CACHED)
    else:  # as it mostly is
        values["state"] = kind.state
        same = sql.settle_alike(frozenset(values))
        await connection.execute(same, {"ids": ids, **sql.new(values)})


class _Kind(NamedTuple):
    """What endings have in common that are written down in one statement."""

    state: TaskState
    number: int
    lets_go: bool
    own: bool
    delay: float  # seconds until the next try, if there is to be one


def _kind(one: Ending) -> _Kind:
    delay = retry_delay(one.retry, one.row.tries) if one.state is TaskState.BACKOFF else 0.0
    return _Kind(one.state, one.number, one.lets_go, one.own, delay)


def _values(kind: _Kind, alike: Sequence[Ending]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "outcome": kind.number,
        "message": sql.by_task({one.row.id: one.answer.message for one in alike}),
        "worker": sql.by_task({one.row.id: one.answer.worker for one in alike}),
        **NOT_LEASED,
    }
    if kind.own:
        values |= NO_STARTS
    if kind.lets_go:
        values["released"] = True
    if kind.state is TaskState.BACKOFF:
        return values | sql.another_try(kind.delay)
    started_at = {one.row.id: one.started_at for one in alike}
    return values | {
        "started_at": sql.by_task(started_at),
        "finished_at": alike[0].row.now,
        "due_at": None,
    }


def _attempt_row(one: Ending) -> dict[str, Any]:
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


async def _settle_answers(connection: AsyncConnection, settled: Sequence[Ending]) -> None:
    """Keep the responses; one of an earlier attempt makes room for the new one."""
    said = [one for one in settled if one.is_kept]
    before = [one.row.id for one in settled if one.row.attempt > 1]
    for some in chunks(before, ROWS):
        await connection.execute(sql.drop_answers(some))
    for some in fitting([_answer_row(one) for one in said]):
        if some:
            await connection.execute(sql.add_answers(), some)
    for one in said:
        if media_type := _found_type(one):
            await connection.execute(sql.learn_type(one.row.job_id, media_type))


def _found_type(one: Ending) -> str | None:
    """The media type that DOWNLOAD saw in the source."""
    media_type = one.answer.response.get("file_type")
    if one.row.task_key != "DOWNLOAD" or not isinstance(media_type, str):
        return None
    return media_type.lower() if MEDIA_TYPE.fullmatch(media_type.lower()) else None


class _Said(NamedTuple):
    """A response as it is kept."""

    task_id: int
    task_key: str
    solo: bool
    body: str


def _said(one: Ending) -> _Said:
    body = orjson.dumps(one.answer.response).decode()
    return _Said(one.row.id, one.row.task_key, one.row.solo, body)


def _answer_row(one: Ending) -> dict[str, Any]:
    return {"job_id": one.row.job_id, "attempt": one.row.attempt, **_said(one)._asdict()}
