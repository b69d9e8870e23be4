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
from dane_server.storage.statements import release as releasing
from dane_server.storage.statements.lease import NO_STARTS, NOT_LEASED
from dane_server.storage.tally import Tally
from dane_server.storage.trip import ask, defer, read
from dane_server.storage.view import Claim, Recorded, Rejected, Rejection, Twice

#: Of so many answers it is worth to ask for two things at once.
_FEW: Final = 20


async def record(
    connection: AsyncConnection, answers: Sequence[Answer], *, window: int, lease: timedelta
) -> Recorded:
    """Record a batch of answers; of several for one task the first counts."""
    found, waiting = await _answered(connection, answers)
    rows = {row.id: row for row in found}
    valid, late = _sorted_out(answers, rows)
    if len(valid) < len(rows) or not all(one.goes_one_way for one in valid.values()):
        waiting = None  # for some that let nothing go, or otherwise than it was read
    tally = Tally()
    free = await _end(connection, list(valid.values()), tally, waiting) if valid else []
    # Whoever sent them may have died before it could write down that it did.
    jobs = {one.row.job_id for one in valid.values() if not one.row.job_started_at}
    if jobs:
        await defer(connection, dispatch.start_jobs(), {"ids": sorted(jobs)})
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
        claims=_with_earlier(claims, behind, valid),
        more=len(claimed) < len(free) or _leave_room(valid, claims),
        walks=tally.walks > 0,
    )


async def _answered(
    connection: AsyncConnection, answers: Sequence[Answer]
) -> tuple[Sequence[sa.Row[Any]], Sequence[sa.Row[Any]] | None]:
    """The tasks that answers are for; and of few, at once, what waits for those with one successor.

    A step of a chain goes to the database once less.
    """
    ids = sorted({answer.ticket.task_id for answer in answers})
    if len(ids) > _FEW:
        parts = [
            await read(connection, sql.answered(), {"ids": some}) for some in chunks(ids, ROWS)
        ]
        return [row for part in parts for row in part], None
    own = {"ids": ids}
    found, waiting = await ask(
        connection, (sql.answered(), own), (releasing.only_successors(), own)
    )
    return found, waiting


def _with_earlier(
    claims: Sequence[Claim], behind: Mapping[int, sa.Row[Any]], settled: Mapping[int, "Ending"]
) -> list[Claim]:
    """Claims with what earlier tasks answered, where that is one answer which was just recorded."""
    seen_by_all = Counter(one.row.job_id for one in settled.values() if one.is_seen_by_all)

    def known(claim: Claim) -> Claim:
        task = behind[claim.task_id]
        before = settled.get(task.first)
        if before is None or task.fanin != 1 or task.has_solo:
            return claim
        if seen_by_all[claim.job_id] > before.is_seen_by_all:  # another one of this batch, too
            return claim
        return replace(claim, earlier=inline([_said(before)] if before.is_kept else []))

    return [known(claim) for claim in claims]


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
    def found_type(self) -> str | None:
        """The media type that DOWNLOAD saw in the source."""
        media_type = self.answer.response.get("file_type")
        if self.row.task_key != "DOWNLOAD" or not isinstance(media_type, str):
            return None
        return media_type.lower() if MEDIA_TYPE.fullmatch(media_type.lower()) else None

    @property
    def goes_one_way(self) -> bool:
        """Whether it lets one node go at most, for the first time, and changes nothing of it."""
        lets_one_go = self.lets_go and self.row.fanout <= 1 and not self.row.released
        return lets_one_go and self.found_type is None

    @property
    def is_kept(self) -> bool:
        """Whether there is a response worth keeping."""
        return bool(self.answer.response) or self.state is TaskState.SUCCEEDED

    @property
    def is_seen_by_all(self) -> bool:
        """Whether its response goes to all later tasks of its job, and not to the next only."""
        return self.is_kept and bool(self.row.solo)

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
    connection: AsyncConnection,
    settled: Sequence[Ending],
    tally: Tally,
    waiting: Sequence[sa.Row[Any]] | None = None,
) -> list[sa.Row[Any]]:
    """Write down how attempts ended; returns the tasks that are free to go (see `release`)."""
    await _settle_tasks(connection, settled, tally)
    for some in fitting(_attempt_row(one) for one in settled):
        await defer(connection, sql.add_attempts(), some)
    await _settle_answers(connection, settled)
    leaving = [one.row for one in settled if one.lets_go and one.row.fanout]
    return await release(connection, leaving, tally, waiting=waiting) if leaving else []


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
        await defer(connection, one_off)
    else:  # as it mostly is
        values["state"] = kind.state
        same = sql.settle_alike(frozenset(values))
        await defer(connection, same, {"ids": ids, **sql.new(values)})


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
        await defer(connection, sql.drop_answers(), {"ids": some})
    for some in fitting([_answer_row(one) for one in said]):
        if some:
            await defer(connection, sql.add_answers(), some)
    for one in said:
        if one.found_type is not None:
            learnt = {"job": one.row.job_id, "found": one.found_type}
            await defer(connection, sql.learn_type(), learnt)


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
