"""Following jobs in a terminal, or as lines of JSON."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from dane_core.cli.render import job_tree
from dane_core.cli.terminal import print_lines
from dane_core.client import Client
from dane_core.states import JobStatus

Json = dict[str, Any]


async def watch(client: Client, job_ids: Sequence[int], console: Console) -> list[Json]:
    """Show jobs until all have ended; return them as they ended.

    A terminal shows how they go; a file or a pipe gets the end of it.
    """
    latest: dict[int, Json] = {}

    def picture() -> Group:
        return Group(*(job_tree(latest[seen]) for seen in job_ids if seen in latest))

    if console.is_terminal:
        with Live(console=console, get_renderable=picture, refresh_per_second=10):
            await _follow(client, job_ids, latest)
    else:
        await _follow(client, job_ids, latest)
        console.print(picture())
    return [latest[job_id] for job_id in job_ids]


async def stream(client: Client, job_ids: Sequence[int]) -> list[Json]:
    """Print each change of each job as a line of JSON; return the jobs as they ended."""
    latest: dict[int, Json] = {}
    await _follow(client, job_ids, latest, lambda job: print_lines([job]))
    return [latest[job_id] for job_id in job_ids]


async def _follow(
    client: Client,
    job_ids: Sequence[int],
    latest: dict[int, Json],
    tell: Callable[[Json], object] = lambda _: None,
) -> None:
    """Keep `latest` as the jobs are, until all have ended."""

    async def follow(job_id: int) -> None:
        async for job in client.follow(job_id):
            latest[job_id] = job
            tell(job)

    async with asyncio.TaskGroup() as group:
        for job_id in job_ids:
            group.create_task(follow(job_id))


def all_succeeded(jobs: Sequence[Json]) -> bool:
    """Whether every job ended as its owner hoped."""
    return all(job["status"] == JobStatus.SUCCEEDED for job in jobs)
