"""Tasks: shown, explained, and acted on."""

from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import Response

from dane_core.exchange.base import Exchange
from dane_core.job import TaskId
from dane_server.api.answer import (
    PREFIX,
    Answer,
    ExplanationBody,
    TaskAnswer,
    UpstreamItem,
    UpstreamPage,
)
from dane_server.api.change import PriorityChange, ThePriority, described
from dane_server.api.deps import (
    WHOLE,
    After,
    Exact,
    Key,
    TheExchange,
    TheReader,
    TheRunner,
    TheTask,
)
from dane_server.api.openapi import problems
from dane_server.api.shape import task_answer
from dane_server.runner.explain import explain
from dane_server.storage.reader import Reader

router = APIRouter(prefix=PREFIX, tags=["tasks"])

_SHOWN: Final = {200: {"model": TaskAnswer}, **problems(404, 422)}
_ACTED: Final = {200: {"model": TaskAnswer}, **problems(404, 409, 422)}


async def show_task(reader: Reader, task_id: TaskId, *, exact: bool) -> Answer:
    """A task as it stands. Raises: NotFound."""
    return Answer(task_answer(await reader.task(task_id), exact=exact))


@router.get("/task/{task_id}", responses=_SHOWN)
async def get_task(task_id: TheTask, exact: Exact, reader: TheReader) -> Response:
    """A task with its attempts and its answer."""
    return await show_task(reader, task_id, exact=exact)


@router.get(
    "/task/{task_id}/explain", responses={200: {"model": ExplanationBody}, **problems(404, 422)}
)
async def explain_task(task_id: TheTask, reader: TheReader, exchange: TheExchange) -> Response:
    """The one reason why a task is not running now."""
    explanation = explain(await reader.situation(task_id), obstacle=_obstacle(exchange))
    return Answer(
        ExplanationBody(
            task_id=task_id,
            reason=explanation.reason,
            sentence=explanation.sentence,
            data=explanation.data,
        )
    )


def _obstacle(exchange: Exchange) -> str:
    """Why nothing at all is sent now."""
    if not exchange.connected:
        return "the broker cannot be reached"
    return f"the broker takes no messages ({exchange.blocked})" if exchange.blocked else ""


@router.get(
    "/task/{task_id}/upstream", responses={200: {"model": UpstreamPage}, **problems(404, 422)}
)
async def list_upstream(
    task_id: TheTask,
    reader: TheReader,
    key: Annotated[Key, Query(description="The task key of the earlier tasks.")],
    after: Annotated[After, Query(description="The `next` of the page before.")] = -1,
    limit: Annotated[int, Field(ge=1, le=100), WHOLE, Query(description="How many at most.")] = 100,
) -> Response:
    """The answers a task builds on: of its direct predecessors with a key, or of the job's only
    task with that key. Workers ask here for what was too large for their message.
    """  # noqa: D205 - one sentence and one more
    page = await reader.upstream(task_id, key, after_seq=after, limit=limit)
    answers = [
        UpstreamItem(
            task_id=task.id, task_key=task.key, name=task.name, seq=task.seq, response=response
        )
        for task, response in page.answers
    ]
    return Answer(UpstreamPage(answers=answers, next=page.next))


@router.post("/task/{task_id}/retry", responses=_ACTED)
async def retry_task(
    task_id: TheTask, exact: Exact, runner: TheRunner, reader: TheReader
) -> Response:
    """Run a task again, unless it is done or queued."""
    await runner.retry_task(task_id)
    return await show_task(reader, task_id, exact=exact)


@router.post("/task/{task_id}/forceretry", responses=_ACTED)
async def force_task(
    task_id: TheTask, exact: Exact, runner: TheRunner, reader: TheReader
) -> Response:
    """Run a task again whatever its state. What its old attempt still answers is ignored."""
    await runner.force_task(task_id)
    return await show_task(reader, task_id, exact=exact)


@router.post("/task/{task_id}/reset", responses=_ACTED)
async def reset_task(
    task_id: TheTask, exact: Exact, runner: TheRunner, reader: TheReader
) -> Response:
    """Put a task back to 201, until its predecessors finish again or its job is retried."""
    await runner.reset_task(task_id)
    return await show_task(reader, task_id, exact=exact)


@router.put(
    "/task/{task_id}/priority",
    openapi_extra=described(PriorityChange),
    responses={200: {"model": TaskAnswer}, **problems(404, 413, 415, 422)},
)
async def prioritize_task(
    task_id: TheTask, change: ThePriority, exact: Exact, runner: TheRunner, reader: TheReader
) -> Response:
    """Give a task a priority of its own: if it has not begun, it is sent by it."""
    await runner.prioritize_task(task_id, change.priority)
    return await show_task(reader, task_id, exact=exact)
