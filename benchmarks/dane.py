"""DANE as a contender: a server and a worker, each a process of its own."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.ground import Books, Ground, Process, settings
from dane_core.client import Client

_NOOP = Path(__file__).with_name("noop.py")
_DANE = str(Path(sys.executable).with_name("dane"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dane:
    """A running DANE, warmed up, and ways to use and to watch it."""

    url: str
    client: Client
    books: Books
    server: Process
    worker: Process | None

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


_ALL_FINISHED: Final = "SELECT COUNT(*) = COUNT(finished_at) FROM job"


def job(tasks: Any, source: str = "T1") -> dict[str, Any]:
    """A job specification."""
    return {"source_url": f"http://127.0.0.1/{source}", "source_id": source, "tasks": tasks}


@asynccontextmanager
async def dane(
    ground: Ground, *, slots: int = 50, target: str = str(_NOOP), worker: bool = True
) -> AsyncIterator[Dane]:
    """A server with both roles and one worker process, with a job of 200 tasks behind them."""
    urls = settings(STORE={"URL": ground.mysql_url}, EXCHANGE={"URL": ground.amqp_url})
    home = {"DANE_HOME": str(ground.folder)} | settings(DANE_SERVER={"DATA_FOLDER": ground.folder})
    async with AsyncExitStack() as stack:
        async with ground.process(_DANE, "db", "upgrade", **urls, **home) as upgrade:
            await upgrade.ended()
        server = await stack.enter_async_context(
            ground.process(_DANE, "serve", "--port", "0", "--json", **urls, **home)
        )
        url = json.loads((await server.says("\n")).splitlines()[0])["url"]
        books = await stack.enter_async_context(Books(ground.mysql_url))
        client = await stack.enter_async_context(Client(url))
        team = None
        if worker:
            team = await stack.enter_async_context(
                ground.process(
                    _DANE, "worker", target, "--slots", str(slots), **_for_worker(ground), **home
                )
            )
        running = Dane(url=url, client=client, books=books, server=server, worker=team)
        if worker:
            await running.finish(job({"taskParallel": ["NOOP"] * 200}, "warm-up"))
        yield running


def _for_worker(ground: Ground) -> dict[str, str]:
    return settings(EXCHANGE={"URL": ground.amqp_url})
