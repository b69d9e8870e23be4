"""DANE 0.1's acts on GET, for old scripts: only with COMPAT.GET_ACTIONS."""

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from dane_server.api.answer import PREFIX
from dane_server.api.deps import TheJob, TheReader, TheRunner, TheTask
from dane_server.api.guard import foreign_page, is_foreign
from dane_server.api.jobs import show_job
from dane_server.api.problems import Rejection
from dane_server.api.tasks import show_task


async def _meant(request: Request) -> None:
    """Refuse what a browser fetches unasked, or for another site's page. Raises: Rejection."""
    if is_foreign(request.headers):
        raise foreign_page()
    if "dane.head" in request.scope:
        raise Rejection(405, "method", "HEAD may not change anything", headers={"Allow": "POST"})
    for name in ("purpose", "sec-purpose", "x-moz", "x-purpose"):
        if "prefetch" in request.headers.get(name, ""):
            raise Rejection(403, f"header.{name}", "a prefetch may not change anything here")


router = APIRouter(prefix=PREFIX, include_in_schema=False, dependencies=[Depends(_meant)])


@router.get("/job/{job_id}/retry")
async def retry_job(job_id: TheJob, runner: TheRunner, reader: TheReader) -> Response:
    await runner.retry_job(job_id)
    return await show_job(reader, job_id, exact=True)


@router.get("/job/{job_id}/delete")
async def delete_job(job_id: TheJob, runner: TheRunner) -> Response:
    await runner.delete_job(job_id)
    return Response()


@router.get("/task/{task_id}/retry")
async def retry_task(task_id: TheTask, runner: TheRunner, reader: TheReader) -> Response:
    await runner.retry_task(task_id)
    return await show_task(reader, task_id, exact=True)


@router.get("/task/{task_id}/forceretry")
async def force_task(task_id: TheTask, runner: TheRunner, reader: TheReader) -> Response:
    await runner.force_task(task_id)
    return await show_task(reader, task_id, exact=True)


@router.get("/task/{task_id}/reset")
async def reset_task(task_id: TheTask, runner: TheRunner, reader: TheReader) -> Response:
    await runner.reset_task(task_id)
    return await show_task(reader, task_id, exact=True)
