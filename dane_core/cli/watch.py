"""Following jobs in a terminal, or as lines of JSON."""

import asyncio
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from dane_core.cli.render import job_tree
from dane_core.cli.terminal import print_lines
from dane_core.client import Client
from dane_core.states import JobStatus

Json = dict[str, Any]


async def watch(client: Client, job_ids: Sequence[int], console: Console) -> list[Json]:
    """Show jobs until all have ended; return them as they ended."""
    latest: dict[int, Json] = {}
    with Live(console=console, refresh_per_second=10) as live:

        async def follow(job_id: int) -> None:
            async for job in client.follow(job_id):
                latest[job_id] = job
                live.update(Group(*(job_tree(latest[seen]) for seen in job_ids if seen in latest)))

        async with asyncio.TaskGroup() as group:
            for job_id in job_ids:
                group.create_task(follow(job_id))
    return [latest[job_id] for job_id in job_ids]


async def stream(client: Client, job_ids: Sequence[int]) -> list[Json]:
    """Print each change of each job as a line of JSON; return the jobs as they ended."""
    latest: dict[int, Json] = {}

    async def follow(job_id: int) -> None:
        async for job in client.follow(job_id):
            latest[job_id] = job
            print_lines([job])

    async with asyncio.TaskGroup() as group:
        for job_id in job_ids:
            group.create_task(follow(job_id))
    return [latest[job_id] for job_id in job_ids]


def all_succeeded(jobs: Sequence[Json]) -> bool:
    """Whether every job ended as its owner hoped."""
    return all(job["status"] == JobStatus.SUCCEEDED for job in jobs)
