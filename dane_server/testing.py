"""For the tests of task developers and client authors: a whole DANE in the test's process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dane_core.client import Client
from dane_core.worker.worker import Worker
from dane_server.app import run_server
from dane_server.settings import ServerSettings


@asynccontextmanager
async def embedded_dane(
    *workers: type[Worker], folder: Path, slots: int = 4, **sections: Any
) -> AsyncIterator[Client]:
    """A running DANE that keeps everything in `folder`, and a client of it.

    `sections` are those of the configuration, as `RUNNER={"WINDOW": 10}` or, to test against
    the real thing, `STORE={"URL": …}, EXCHANGE={"URL": …}`. The server stops at the end, after
    its running tasks. Raises: what `run_server` raises.
    """
    sections.setdefault("DANE_SERVER", {"DATA_FOLDER": folder})
    settings = ServerSettings(**sections)
    stop = asyncio.Event()
    ready = asyncio.Event()
    urls: list[str] = []

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    server = asyncio.create_task(
        run_server(
            settings,
            workers=workers,
            slots=slots,
            port=0,
            on_ready=announce,
            stop=stop,
            heed_signals=False,
        )
    )
    server.add_done_callback(lambda _: ready.set())
    try:
        await ready.wait()
        if not urls:
            await server  # raises what went wrong
        async with Client(urls[0]) as client:
            yield client
    finally:
        stop.set()
        await server
