"""Submitting one job."""

import hashlib

from fastapi import APIRouter, Request
from starlette.responses import Response

from dane_server.api.answer import PREFIX, JobAnswer
from dane_server.api.body import read_body
from dane_server.api.deps import (
    LARGE_BODY,
    LARGE_JOB,
    ExactForSender,
    OnceKey,
    TheOwner,
    TheParts,
    WithTasks,
    beside,
)
from dane_server.api.jobs import show_job, show_view
from dane_server.api.openapi import JOB_REQUEST, problems
from dane_server.storage.view import Once

router = APIRouter(prefix=PREFIX, tags=["jobs"])


@router.post("/job/", status_code=201, include_in_schema=False)
@router.post(
    "/job",
    status_code=201,
    openapi_extra=JOB_REQUEST,
    responses={201: {"model": JobAnswer}, **problems(400, 409, 413, 415, 422, 429)},
)
async def submit_job(
    request: Request,
    exact: ExactForSender,
    once_key: OnceKey,
    owner: TheOwner,
    parts: TheParts,
    with_tasks: WithTasks = True,  # noqa: FBT002
) -> Response:
    """Submit one job.

    Follow it at the address in `Location`. With an `Idempotency-Key` a request that is sent
    again gives the job of the first one, and `Idempotent-Replayed: true`.
    """
    raw = await read_body(request, parts.limits.body)
    draft = await parts.runner.read(raw, parts.limits)
    once = await _once(once_key, raw) if once_key else None
    submitted = await parts.runner.submit(draft, once=once, owner=owner)
    if submitted.view is None or (with_tasks and draft.graph.total > LARGE_JOB):
        reader, job_id = parts.reader, submitted.job_id
        answer = await show_job(reader, job_id, exact=exact, with_tasks=with_tasks)
    else:
        answer = show_view(submitted.view(), exact=exact, with_tasks=with_tasks)
    answer.status_code = 201
    answer.headers["Location"] = f"{PREFIX}/job/{submitted.job_id}"
    if submitted.replayed:
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


async def _once(key: str, raw: bytes) -> Once:
    digest = await beside(len(raw) > LARGE_BODY, hashlib.sha256, raw)
    return Once(key=key, digest=digest.hexdigest())
