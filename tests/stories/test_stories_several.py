"""Several servers on one RabbitMQ and one MariaDB: any of them may die at any time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from dane_core.client import Client
from dane_core.errors import ServerUnreachable
from tests.faults.plugin import long
from tests.services.mariadb import database_at
from tests.stories.both_ways import BRISK, Real, as_environment, ended
from tests.stories.programs import Program, finished, running

Json = dict[str, Any]

JOBS: Final = 12
KILLS: Final = 3
STEPS: Final = {"taskSequential": ["ECHO", {"taskParallel": ["ECHO", "THREADED"]}, "ECHO"]}
SPEC: Final = {"source_url": "/several", "tasks": STEPS}


class Fleet:
    """Servers of both halves; one that is killed is started again."""

    def __init__(self, folder: Path, settings: dict[str, str], stack: AsyncExitStack) -> None:
        self._folder = folder
        self._settings = settings
        self._stack = stack
        self._places: list[tuple[str, Program]] = []
        self.clients: list[Client] = []

    async def start(self, *roles: str) -> None:
        """Start a server for each of these, all at once."""
        self._places += await asyncio.gather(*(self._started(role) for role in roles))
        await self._note_addresses()

    async def lose(self, dice: random.Random) -> None:
        """Kill one of them, and put another in its place."""
        place = dice.randrange(len(self._places))
        role, program = self._places[place]
        program.kill()
        await program.ended()
        self._places[place] = await self._started(role)
        await self._note_addresses()

    async def _started(self, role: str) -> tuple[str, Program]:
        port = ["--port", "0"] if role == "api" else []
        program = await self._stack.enter_async_context(
            running("serve", "--role", role, *port, "--json", folder=self._folder, **self._settings)
        )
        return role, program

    async def _note_addresses(self) -> None:
        urls = [(await program.facts())["url"] for role, program in self._places if role == "api"]
        self.clients = [await self._stack.enter_async_context(Client(url)) for url in urls]

    async def submit(self, number: int, dice: random.Random) -> int:
        """Submit a job as a careful client does: again, by the same key, until it is told."""
        while True:
            client = dice.choice(self.clients)
            try:
                spec = {**SPEC, "source_id": f"several {number}"}
                job = await client.submit(spec, idempotency_key=f"several-{number}")
            except ServerUnreachable:
                await asyncio.sleep(0.05)
            else:
                return int(job["job_id"])


@asynccontextmanager
async def fleet(real: Real, folder: Path, *roles: str) -> AsyncIterator[Fleet]:
    settings = as_environment(BRISK | real.sections)
    async with AsyncExitStack() as stack:
        servers = Fleet(folder, settings, stack)
        await servers.start(*roles)
        yield servers


@pytest.mark.services
@long
async def test_two_apis_and_two_runners_that_are_killed_at_random_lose_and_double_nothing(
    real: Real, tmp_path: Path
) -> None:
    """Whoever is left goes on; what a killed one had in its hands is taken over."""
    dice = random.Random(11)
    cast = [f"tests.stories.cast:{name}" for name in ("Echo", "Threaded")]
    settings = as_environment(real.sections)
    async with (
        running("worker", *cast, "--slots", "4", folder=tmp_path, **settings),
        fleet(real, tmp_path, "api", "api", "runner", "runner") as servers,
    ):
        submitting = asyncio.create_task(_submit_all(servers, dice))
        for _ in range(KILLS):
            await servers.lose(dice)
        ids = await submitting
        client = servers.clients[0]
        jobs = [await ended(client, job_id) for job_id in ids]
        tasks = [
            await client.task(row["task_id"])
            for job in jobs
            for row in await client.tasks(job["job_id"])
        ]
        listed = await client.jobs(limit=100)

    assert len(set(ids)) == JOBS == len(listed)
    assert Counter(job["status"] for job in jobs) == {"succeeded": JOBS}
    assert [attempts for attempts in map(_good, tasks) if attempts != 1] == []
    assert len(tasks) == 4 * JOBS


async def _submit_all(servers: Fleet, dice: random.Random) -> Sequence[int]:
    return [await servers.submit(number, dice) for number in range(JOBS)]


def _good(task: Json) -> int:
    return [attempt["state"] for attempt in task["attempts"]].count(200)


@pytest.mark.services
async def test_two_servers_may_upgrade_one_database_at_once(mysql_url: str, tmp_path: Path) -> None:
    with database_at(mysql_url) as url:
        settings = as_environment({"STORE": {"URL": url}})
        ends = await asyncio.gather(
            *(finished("db", "upgrade", folder=tmp_path, **settings) for _ in range(2))
        )
        checked = await finished("db", "check", folder=tmp_path, **settings)

    assert [code for code, _, _ in (*ends, checked)] == [0, 0, 0], (ends, checked)
