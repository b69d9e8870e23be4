"""`dane job`: look at jobs, and act on them."""

# ruff: noqa: PLC0415  a verb imports what it needs when it is called, so that all start quickly

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dane_core.cli.submit import follow_all
from dane_core.cli.terminal import WORK, AsJson, Config, Server, show, talk

if TYPE_CHECKING:
    from dane_core.client import Client

JobNumber = Annotated[int, typer.Argument(metavar="JOB", min=1, help="The id of a job.")]

Json = dict[str, Any]


def register(app: typer.Typer) -> None:
    jobs = typer.Typer(no_args_is_help=True, help="Look at jobs, and act on them.")
    jobs.command("list")(list_jobs)
    jobs.command("show")(show_job)
    jobs.command("watch")(watch_job)
    for act in (retry, cancel, pause, resume, priority, delete):
        jobs.command()(act)
    app.add_typer(jobs, name="job", rich_help_panel=WORK)


def list_jobs(
    *,
    status: Annotated[
        str | None,
        typer.Option(help="accepted, running, succeeded, failed, cancelled or paused."),
    ] = None,
    key: Annotated[str | None, typer.Option(help="Jobs with a task of this key.")] = None,
    source: Annotated[str | None, typer.Option(help="Jobs of this source_id.")] = None,
    owner: Annotated[str | None, typer.Option(help="Jobs of this owner.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 20,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    from dane_core.cli.render import jobs_table

    filters = {"status": status, "task_key": key, "source_id": source, "owner": owner}
    jobs = talk(server, config, lambda client: client.jobs(limit=limit, **filters))
    show(jobs, as_json=as_json, render=jobs_table)


def show_job(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Show a job, its tasks and their answers."""
    from dane_core.cli.render import job_page

    async def look(client: "Client") -> Json:
        return await anext(client.follow(job))

    show(talk(server, config, look), as_json=as_json, render=job_page)


def watch_job(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Follow a job until it ends; exits with 1 if it did not succeed."""
    if not talk(server, config, lambda client: follow_all(client, [job], as_json=as_json)):
        raise typer.Exit(1)


def retry(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Run again what failed, was cancelled or reset; keep what succeeded."""
    _act(job, lambda client: client.retry(job), server, config, as_json=as_json)


def cancel(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Cancel a job: queued tasks never start, running ones are told to stop."""
    _act(job, lambda client: client.cancel(job), server, config, as_json=as_json)


def pause(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Start no more tasks of a job."""
    _act(job, lambda client: client.pause(job), server, config, as_json=as_json)


def resume(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Go on with a paused job."""
    _act(job, lambda client: client.resume(job), server, config, as_json=as_json)


def priority(
    job: JobNumber,
    level: Annotated[int, typer.Argument(metavar="N", min=0, max=10, help="10 goes first.")],
    *,
    server: Server = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give a job another priority; its tasks that have not begun are sent by it."""
    _act(job, lambda client: client.prioritize(job, level), server, config, as_json=as_json)


def delete(
    job: JobNumber, *, server: Server = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Delete a job with its tasks and answers."""
    talk(server, config, lambda client: client.delete(job))
    show({"job_id": job, "deleted": True}, as_json=as_json, render=lambda _: f"job {job} deleted")


def _act(
    job: int,
    act: Callable[["Client"], Awaitable[object]],
    server: Server,
    config: Config,
    *,
    as_json: bool,
) -> None:
    from dane_core.cli.render import job_head

    async def acting(client: "Client") -> Json:
        await act(client)
        return await client.job(job, tasks=False)

    show(talk(server, config, acting), as_json=as_json, render=job_head)
