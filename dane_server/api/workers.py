"""Workers: who is there, for which task keys, and how much is waiting for them."""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange
from dane_core.routing import work_queue
from dane_server.api.answer import (
    PREFIX,
    Answer,
    HolderBody,
    KeyActed,
    KeyBody,
    KeyHeld,
    KeyLimited,
    KeyLimitsBody,
    KeyRetried,
    QueueBody,
    WorkerBody,
    WorkersBody,
)
from dane_server.api.change import LimitsChange, TheLimitsChange, described
from dane_server.api.deps import (
    After,
    KeyPath,
    Limit,
    State,
    TheExchange,
    TheReader,
    TheRunner,
)
from dane_server.api.jobs import next_page
from dane_server.api.openapi import problems
from dane_server.storage.view import Holder, KeyLimits, KeyState, WorkerState

router = APIRouter(prefix=PREFIX, tags=["workers"])

_ACTED: Final = {202: {"model": KeyActed}, **problems(422)}


@router.get("/workers", responses={200: {"model": WorkersBody}, **problems()})
async def list_workers(reader: TheReader, exchange: TheExchange) -> Response:
    """Every task key that is known: its workers, its queue, and what waits for them."""
    keys = await reader.keys()
    queues = await asyncio.gather(*(_queue(exchange, work_queue(state.key)) for state in keys))
    bodies = [_key(state, queue) for state, queue in zip(keys, queues, strict=True)]
    return Answer(WorkersBody(keys=bodies))


@router.post("/workers/{key}/pause", status_code=202, responses=_ACTED)
async def pause_key(key: KeyPath, runner: TheRunner) -> Response:
    """Start no more tasks of a key; what runs goes on."""
    await runner.pause_key(key)
    return Answer(KeyActed(task_key=key, paused=True), status_code=202)


@router.post("/workers/{key}/resume", status_code=202, responses=_ACTED)
async def resume_key(key: KeyPath, runner: TheRunner) -> Response:
    """Go on with the tasks of a paused key."""
    await runner.resume_key(key)
    return Answer(KeyActed(task_key=key, paused=False), status_code=202)


@router.post(
    "/workers/{key}/retry",
    status_code=202,
    responses={202: {"model": KeyRetried}, **problems(422)},
)
async def retry_key(
    key: KeyPath,
    runner: TheRunner,
    state: Annotated[State, Query(description="Tasks that show this number.")],
) -> Response:
    """Run again all tasks of a key that ended with a number."""
    retried = await runner.retry_key(key, state)
    return Answer(KeyRetried(task_key=key, retried=retried), status_code=202)


@router.get("/workers/{key}/limits", responses={200: {"model": KeyHeld}, **problems(422)})
async def get_key_limits(
    request: Request,
    key: KeyPath,
    runner: TheRunner,
    limit: Limit = 500,
    after: Annotated[After, Query(description="Behind the task with this id.")] = -1,
) -> Response:
    """How much of a key may be under way, and which tasks have its places."""
    limits = await runner.key_limits(key)
    found = await runner.holders(key, after=after, limit=limit)
    following = next_page(request, after=found[-1].task_id) if len(found) == limit else None
    holders = [_holder(one) for one in found]
    return Answer(KeyHeld(task_key=key, limits=_limits(limits), holders=holders, next=following))


@router.put(
    "/workers/{key}/limits",
    openapi_extra=described(LimitsChange),
    responses={200: {"model": KeyLimited}, **problems(413, 415, 422)},
)
async def limit_key(key: KeyPath, change: TheLimitsChange, runner: TheRunner) -> Response:
    """Bound how much of a key is under way, over all servers. In force at once.

    What is left out stays as it is. What is sent or runs already goes on.
    """
    limits = await runner.limit_key(key, change.given())
    return Answer(KeyLimited(task_key=key, limits=_limits(limits)))


def _limits(limits: KeyLimits) -> KeyLimitsBody:
    return KeyLimitsBody(concurrency=limits.concurrency, rate=limits.rate, burst=limits.burst)


def _holder(holder: Holder) -> HolderBody:
    return HolderBody(
        task_id=holder.task_id,
        job_id=holder.job_id,
        state=holder.state,
        worker=holder.worker,
        since=holder.since,
    )


async def _queue(exchange: Exchange, name: str) -> QueueBody | None:
    try:
        depth = await exchange.depth(name)
    except ExchangeUnreachable:
        return None  # what the store knows is still worth showing
    if depth is None:
        return None
    return QueueBody(name=name, messages=depth.waiting, consumers=depth.consumers)


def _key(state: KeyState, queue: QueueBody | None) -> KeyBody:
    offer = state.offer
    return KeyBody(
        task_key=state.key,
        paused=state.paused,
        types=list(offer.types) if offer else [],
        description=offer.description if offer else "",
        version=offer.version if offer else "",
        args_schema=offer.args_schema if offer else None,
        waiting=state.waiting,
        ready=state.ready,
        queued=state.queued,
        running=state.running,
        oldest_wait=state.oldest_wait,
        rate=state.rate,
        limits=_limits(state.limits),
        queue=queue,
        workers=[_worker(worker) for worker in state.workers],
    )


def _worker(worker: WorkerState) -> WorkerBody:
    return WorkerBody(
        worker=worker.id,
        host=worker.host,
        pid=worker.pid,
        slots=worker.slots,
        task_keys=list(worker.task_keys),
        running=list(worker.running),
        seen_at=worker.seen_at,
        since=worker.since,
    )
