"""DANE in both its ways: embedded, and on a RabbitMQ and a MariaDB."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.client import Client
from dane_core.exchange.amqp import connect
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, work_queue
from dane_core.worker.worker import Worker
from dane_server.storage.engine import open_store
from dane_server.storage.tables import metadata
from dane_server.testing import embedded_dane
from tests.stories import cast
from tests.stories.late import Late
from tests.stories.marks import PATIENCE

Sections: TypeAlias = dict[str, dict[str, Any]]

#: A server that looks again soon, and workers that nobody waits for at the end.
BRISK: Final[Sections] = {"RUNNER": {"SWEEP": 0.25, "LEASE": 3}, "WORKER": {"GRACE": 0.5}}

#: Starts a DANE with these workers: `async with start(Gate, slots=1) as client`.
Start: TypeAlias = Callable[..., AbstractAsyncContextManager[Client]]

READY_MADE: Final = ("DOWNLOAD", "FILESIZE", "CHECKSUM", "MEDIAINFO", "THUMBNAIL")
_KEYS: Final = [worker.key for worker in (*cast.EVERYONE, Late)] + [*READY_MADE]


@dataclass(frozen=True)
class Real:
    """A RabbitMQ, and a MariaDB with DANE's tables."""

    amqp_url: str
    mysql_url: str

    @property
    def sections(self) -> Sections:
        return {"STORE": {"URL": self.mysql_url}, "EXCHANGE": {"URL": self.amqp_url}}

    async def renew(self) -> None:
        """Empty the tables, and remove the queues that a story before may have left."""
        async with open_store(self.mysql_url) as store:
            await store.write(_empty)
        async with connect(self.amqp_url) as exchange:
            for queue in (RESPONSE_QUEUE, DEAD_QUEUE, *map(work_queue, _KEYS)):
                await exchange.delete_queue(queue)


async def _empty(connection: AsyncConnection) -> None:
    for table in reversed(metadata.sorted_tables):
        await connection.execute(sa.delete(table))


def starting(folder: Path, real: Real | None) -> Start:
    """How to start a DANE that keeps its files in a folder: embedded, unless on something real."""

    @asynccontextmanager
    async def start(
        *workers: type[Worker], slots: int = 4, **sections: Any
    ) -> AsyncIterator[Client]:
        chosen = {**BRISK, **(real.sections if real else {}), **sections}
        async with embedded_dane(*workers, folder=folder, slots=slots, **chosen) as client:
            yield client

    return start


def as_environment(sections: Sections) -> dict[str, str]:
    """The same settings for a program."""
    return {
        f"DANE_{section}__{key}": str(value)
        for section, keys in sections.items()
        for key, value in keys.items()
    }


async def ended(client: Client, job_id: int) -> dict[str, Any]:
    """The job, once it has ended."""
    async with asyncio.timeout(PATIENCE):
        return await client.wait(job_id)
