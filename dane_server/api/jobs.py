"""Jobs: shown, listed, found, and acted on."""

from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from dane_core.job import JobId
from dane_core.states import JobStatus, TaskState
from dane_server.api.answer import (
    PREFIX,
    Answer,
    JobAnswer,
    JobHead,
    JobIds,
    JobsPage,
    Streamed,
    TasksPage,
)
from dane_server.api.body import JSON
from dane_server.api.change import PriorityChange, ThePriority, described
from dane_server.api.deps import (
    LARGE_JOB,
    After,
    Exact,
    Key,
    Limit,
    OwnerName,
    SourceId,
    SourceIdPath,
    State,
    TheJob,
    TheReader,
    TheRunner,
    Time,
    WithTasks,
)
from dane_server.api.openapi import problems
from dane_server.api.problems import Rejection
from dane_server.api.shape import job_answer, job_head, task_row
from dane_server.api.whole import whole_job
from dane_server.storage.reader import Reader
from dane_server.storage.view import JobQuery, JobView, LargeJob

router = APIRouter(prefix=PREFIX, tags=["jobs"])

#: Conditions on metadata in one query.
MOST_METADATA: Final = 8


async def show_job(
    reader: Reader, job_id: JobId, *, exact: bool = False, with_tasks: bool = True
) -> Response:
    """A job as it stands; a large one is read while it is sent. Raises: NotFound."""
    if not with_tasks:
        return Answer(job_head(await reader.job(job_id), exact=exact))
    view = await reader.small_job_view(job_id, most=LARGE_JOB)
    if isinstance(view, LargeJob):
        return Streamed(whole_job(reader, view, exact=exact), media_type=JSON)
    return show_view(view, exact=exact)


def show_view(view: JobView, *, exact: bool = False, with_tasks: bool = True) -> Response:
    """A job of few tasks, of which everything is known."""
    if not with_tasks:
        return Answer(job_head(view.job, exact=exact))
    return Answer(job_answer(view, exact=exact))


# --- found ---------------------------------------------------------------------------------------


@router.get("/job/inprogress", responses={200: {"model": JobIds}, **problems()})
async def list_unfinished(reader: TheReader) -> Response:
    """The ids of jobs that are not finished, or finished with errors."""
    return Answer(JobIds(jobs=list(await reader.unfinished())))


@router.get("/search/{source_id:path}", responses={200: {"model": JobIds}, **problems(422)})
@router.get("/job/search/{source_id:path}", responses={200: {"model": JobIds}, **problems(422)})
async def list_of_source(source_id: SourceIdPath, reader: TheReader) -> Response:
    """The ids of all jobs of a source."""
    return Answer(JobIds(jobs=list(await reader.of_source(source_id))))


async def _metadata(
    request: Request,
    _documented: Annotated[
        str | None,
        Query(
            alias="metadata.KEY",
            description=f"The member KEY of `metadata` is this text. At most {MOST_METADATA}.",
        ),
    ] = None,
) -> Mapping[str, str]:
    wanted = {
        name.removeprefix("metadata."): value
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata.")
    }
    if len(wanted) > MOST_METADATA:
        raise Rejection(422, "query.metadata", f"expected at most {MOST_METADATA} conditions")
    for key, value in wanted.items():
        if not key or len(key) > 255 or len(value) > 255 or not (key + value).isprintable():
            raise Rejection(
                422,
                f"query.metadata.{key[:100]}",
                "expected a name and a text of 1 to 255 characters",
            )
    return wanted


async def _query(  # noqa: PLR0913, PLR0917 - one per filter
    metadata: Annotated[Mapping[str, str], Depends(_metadata)],
    status: Annotated[frozenset[JobStatus], Query(description="Any of these.")] = frozenset(),
    state: Annotated[State | None, Query(description="Some task shows this number.")] = None,
    task_key: Annotated[Key | None, Query(description="Some task has this key.")] = None,
    source_id: Annotated[SourceId | None, Query(description="Of this source.")] = None,
    owner: Annotated[
        OwnerName | None, Query(description="Whose they are; nothing: nobody's in particular.")
    ] = None,
    since: Annotated[Time | None, Query(description="Created then or later.")] = None,
    until: Annotated[Time | None, Query(description="Created before then.")] = None,
    limit: Limit = 50,
    after: Annotated[
        str | None, Query(max_length=200, description="From the `next` of the page before.")
    ] = None,
) -> JobQuery:
    return JobQuery(
        statuses=status,
        state=state,
        task_key=task_key,
        source_id=source_id,
        owner=owner,
        metadata=metadata,
        since=since,
        until=until,
        limit=limit,
        after=after,
    )


@router.get("/jobs", responses={200: {"model": JobsPage}, **problems(422)})
async def list_jobs(
    request: Request, query: Annotated[JobQuery, Depends(_query)], reader: TheReader
) -> Response:
    """Jobs that meet every condition, newest first."""
    page = await reader.jobs(query)
    following = page.next and next_page(request, after=page.next)
    return Answer(JobsPage(jobs=[job_head(job) for job in page.jobs], next=following))


# --- shown ---------------------------------------------------------------------------------------


@router.get("/job/{job_id}", responses={200: {"model": JobAnswer}, **problems(404, 422)})
async def get_job(
    job_id: TheJob,
    exact: Exact,
    reader: TheReader,
    with_tasks: WithTasks = True,  # noqa: FBT002
) -> Response:
    """A job with the states of all its tasks, and their answers."""
    return await show_job(reader, job_id, exact=exact, with_tasks=with_tasks)


@router.get("/job/{job_id}/tasks", responses={200: {"model": TasksPage}, **problems(404, 422)})
async def list_tasks(
    request: Request,
    job_id: TheJob,
    reader: TheReader,
    state: Annotated[TaskState | None, Query(description="In this state.")] = None,
    key: Annotated[Key | None, Query(description="With this task key.")] = None,
    limit: Limit = 500,
    after: Annotated[After, Query(description="Behind the task of this `seq`.")] = -1,
) -> Response:
    """The tasks of a job in the order of its specification, page by page."""
    found = await reader.tasks(job_id, after_seq=after, limit=limit, state=state, key=key)
    following = next_page(request, after=found[-1].seq) if len(found) == limit else None
    return Answer(TasksPage(tasks=[task_row(task) for task in found], next=following))


def next_page(request: Request, *, after: object) -> str:
    """The address of the page that follows, with the same conditions."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f"{request.url.path}?{urlencode([*kept, ('after', after)])}"


# --- acted on ------------------------------------------------------------------------------------


@router.post(
    "/job/{job_id}/retry", responses={200: {"model": JobAnswer}, **problems(404, 409, 422)}
)
async def retry_job(
    job_id: TheJob,
    exact: Exact,
    runner: TheRunner,
    reader: TheReader,
    with_tasks: WithTasks = True,  # noqa: FBT002
) -> Response:
    """Run again what failed, was cancelled or reset; keep what succeeded.

    409 while the job is being cancelled.
    """
    await runner.retry_job(job_id)
    return await show_job(reader, job_id, exact=exact, with_tasks=with_tasks)


_ACTED: Final = {202: {"model": JobHead}, **problems(404, 409, 422)}


@router.post("/job/{job_id}/cancel", status_code=202, responses=_ACTED)
async def cancel_job(job_id: TheJob, runner: TheRunner, reader: TheReader) -> Response:
    """Cancel a job: what is queued never starts, what runs is told to stop.

    A large job is gone through behind the answer: `cancelling` is true until that is done.
    """
    await runner.cancel_job(job_id)
    return await _head(reader, job_id)


@router.post("/job/{job_id}/pause", status_code=202, responses=_ACTED)
async def pause_job(job_id: TheJob, runner: TheRunner, reader: TheReader) -> Response:
    """Start no more tasks of a job; what runs goes on."""
    await runner.pause_job(job_id)
    return await _head(reader, job_id)


@router.post("/job/{job_id}/resume", status_code=202, responses=_ACTED)
async def resume_job(job_id: TheJob, runner: TheRunner, reader: TheReader) -> Response:
    """Go on with a paused job."""
    await runner.resume_job(job_id)
    return await _head(reader, job_id)


@router.put(
    "/job/{job_id}/priority",
    status_code=202,
    openapi_extra=described(PriorityChange),
    responses={202: {"model": JobHead}, **problems(404, 413, 415, 422)},
)
async def prioritize_job(
    job_id: TheJob, change: ThePriority, runner: TheRunner, reader: TheReader
) -> Response:
    """Give a job another priority: its tasks that have not begun are sent by it.

    Tasks that have another one than the job's keep theirs. A large job is gone through behind
    the answer.
    """
    await runner.prioritize_job(job_id, change.priority)
    return await _head(reader, job_id)


@router.delete("/job/{job_id}", status_code=204, responses=problems(404, 422))
@router.post("/job/{job_id}/delete", status_code=204, responses=problems(404, 422))
async def delete_job(job_id: TheJob, runner: TheRunner) -> Response:
    """Delete a job, its tasks and their answers. What still comes in for it is ignored."""
    await runner.delete_job(job_id)
    return Response(status_code=204)


async def _head(reader: Reader, job_id: JobId) -> Answer:
    return Answer(job_head(await reader.job(job_id)), status_code=202)
