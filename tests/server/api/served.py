"""A server without sockets: the real store, runner and exchange behind the real API."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from dane_core.exchange.memory import MemoryExchange
from dane_server.api import create_api
from dane_server.runner.backlog import MostOpen
from dane_server.runner.pace import Pace
from dane_server.runner.runner import Runner
from dane_server.runner.submit import Folders
from dane_server.settings import ServerSettings
from dane_server.storage.access import Access
from dane_server.storage.engine import Store, open_store
from dane_server.storage.reader import Reader
from dane_server.storage.tables import metadata
from dane_server.storage.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Served:
    http: httpx.AsyncClient
    store: Store
    reader: Reader
    writer: Writer
    runner: Runner
    exchange: MemoryExchange


@asynccontextmanager
async def serving(folder: Path, **sections: Any) -> AsyncIterator[Served]:
    exchange, settings = MemoryExchange(), ServerSettings(**sections)
    async with open_store(f"sqlite+aiosqlite:///{folder}/dane.sqlite") as store:
        async with store.engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
        access = Access.to(store)
        runner = Runner(
            access=access,
            exchange=exchange,
            folders=Folders(temp=folder / "TEMP", out=folder / "OUT"),
            pace=Pace(
                most_open=MostOpen(
                    of_all=settings.LIMITS.OPEN_TASKS, of_owner=settings.LIMITS.OPEN_TASKS_PER_OWNER
                )
            ),
        )
        api = create_api(runner=runner, reader=access.reader, settings=settings, exchange=exchange)
        transport = httpx.ASGITransport(api)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5500") as http:
            yield Served(
                http=http,
                store=store,
                reader=access.reader,
                writer=access.writer,
                runner=runner,
                exchange=exchange,
            )


#: Starts a server with some settings: `await serve(COMPAT={"EXACT_SHAPE": True})`.
Serve: TypeAlias = Callable[..., Awaitable[Served]]
