"""DANE as a contender: a server and a worker, each a process of its own."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.ground import Books, Ground, Process, settings
from dane_core.client import Client

_HERE: Final = Path(__file__).parent
_DANE: Final = str(Path(sys.executable).with_name("dane"))
_ALL_FINISHED: Final = "SELECT COUNT(*) = COUNT(finished_at) FROM job"
_GLANCE: Final = 0.05

#: Kinds of work: files with one worker each, all of the key NOOP.
NOOP: Final = "noop.py"  # on the event loop
CLOCKED: Final = "clocked.py"  # the same, and answers when it was called
IN_THREAD: Final = "noop_in_thread.py"
IN_CHILD: Final = "noop_in_child.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dane:
    """A running DANE, warmed up, and ways to use and to watch it."""

    url: str
    client: Client
    books: Books
    server: Process

    async def finish(self, spec: dict[str, Any]) -> None:
        """Post a job and wait until everything posted is finished in the database."""
        await self.client.submit(spec)
        await self.all_finished()

    async def submit(self, spec: dict[str, Any], times: int) -> None:
        """Post a job again and again, as a client with one connection does."""
        async with Client(self.url) as client:
            for _ in range(times):
                await client.submit(spec)

    async def all_finished(self) -> None:
        """Wait until no job in the database has anything left to do."""
        await self.books.reaches(_ALL_FINISHED, 1)

    async def gauge(self, name: str) -> float:
        """A number of `GET /metrics`."""
        async with httpx.AsyncClient(timeout=60) as http:
            page = (await http.get(f"{self.url}/metrics")).text
        found = [line.split()[-1] for line in page.splitlines() if line.startswith(f"{name} ")]
        return float(found[0])


def job(tasks: Any, source: str = "T1") -> dict[str, Any]:
    """A job specification."""
    return {"source_url": f"http://127.0.0.1/{source}", "source_id": source, "tasks": tasks}


@asynccontextmanager
async def dane(
    ground: Ground,
    *,
    slots: int = 50,
    work: str | None = NOOP,
    chosen: Mapping[str, str] | None = None,
) -> AsyncIterator[Dane]:
    """A server with both roles and one worker process, with a job of 200 tasks behind them.

    Without `work` there is no worker. `chosen` are settings of the server, as `settings` makes
    them.
    """
    await make_tables(ground)
    async with AsyncExitStack() as stack:
        server, url = await stack.enter_async_context(_serving(ground, chosen))
        books = await stack.enter_async_context(Books(ground.mysql_url))
        client = await stack.enter_async_context(Client(url, timeout=120))
        running = Dane(url=url, client=client, books=books, server=server)
        if work is not None:
            broker = settings(EXCHANGE={"URL": ground.amqp_url})
            command = (_DANE, "worker", str(_HERE / work), "--slots", str(slots))
            await stack.enter_async_context(ground.process(*command, **broker, **_home(ground)))
            await running.finish(job({"taskParallel": ["NOOP"] * 200}, "warm-up"))
        yield running


@asynccontextmanager
async def api_alone(ground: Ground, chosen: Mapping[str, str] | None = None) -> AsyncIterator[str]:
    """The API in a process of its own, beside `dane`: its address."""
    async with _serving(ground, chosen, "--role", "api") as (_, url):
        yield url


@asynccontextmanager
async def _serving(
    ground: Ground, chosen: Mapping[str, str] | None, *args: str
) -> AsyncIterator[tuple[Process, str]]:
    command = (_DANE, "serve", "--port", "0", "--json", *args)
    places = {**_both_urls(ground), **_home(ground)}
    async with ground.process(*command, **places, **(chosen or {})) as server:
        yield server, json.loads((await server.says("\n")).splitlines()[0])["url"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A DANE in one process, on SQLite, with the worker inside."""

    client: Client

    async def finish(self, spec: dict[str, Any]) -> None:
        """Post a job and wait until it is finished; only the server sees its database."""
        posted = await self.client.submit(spec)
        while not await self._is_finished(posted["job_id"]):  # noqa: ASYNC110  another process is
            await asyncio.sleep(_GLANCE)

    async def _is_finished(self, job_id: int) -> bool:
        job = await self.client.job(job_id, tasks=False)
        return job["finished_at"] is not None


@asynccontextmanager
async def embedded(ground: Ground, *, slots: int = 50) -> AsyncIterator[Embedded]:
    """`dane dev`, with a job of 200 tasks behind it."""
    command = (_DANE, "dev", str(_HERE / NOOP), "--slots", str(slots), "--port", "0", "--json")
    async with ground.process(*command, **_home(ground)) as server:
        url = json.loads((await server.says("\n")).splitlines()[0])["url"]
        async with Client(url) as client:
            running = Embedded(client=client)
            await running.finish(job({"taskParallel": ["NOOP"] * 200}, "warm-up"))
            yield running


async def make_tables(ground: Ground) -> None:
    """Bring the database up to date; that it is already is fine."""
    command = (_DANE, "db", "upgrade")
    async with ground.process(*command, **_both_urls(ground), **_home(ground)) as upgrade:
        await upgrade.ended()


def _both_urls(ground: Ground) -> dict[str, str]:
    return settings(STORE={"URL": ground.mysql_url}, EXCHANGE={"URL": ground.amqp_url})


def _home(ground: Ground) -> dict[str, str]:
    folder = settings(DANE_SERVER={"DATA_FOLDER": ground.folder})
    return {"DANE_HOME": str(ground.folder), **folder}
