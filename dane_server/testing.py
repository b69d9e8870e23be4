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
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(
        run_server(
            settings,
            workers=workers,
            slots=slots,
            port=0,
            on_ready=ready.set_result,
            stop=stop,
            heed_signals=False,
        )
    )
    try:
        await asyncio.wait({server, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await server  # raises what went wrong
        async with Client(await ready) as client:
            yield client
    finally:
        ready.cancel()
        stop.set()
        await server
