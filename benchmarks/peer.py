"""Celery as a contender: one worker of two processes on the same broker and database."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ground import Books, Ground, python

_HOME = str(Path(__file__).parents[1])
_DONE = "SELECT COUNT(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"
_TABLE = (
    "SELECT COUNT(*) FROM information_schema.tables"
    " WHERE table_schema = DATABASE() AND table_name = 'celery_taskmeta'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Celery:
    """A running worker of Celery."""

    ground: Ground
    books: Books

    async def finish(self, kind: str, number: int, results: int) -> float:
        """Have a client post work; seconds from then until its results are in the database."""
        before = await self.books.number(_DONE) if await self.books.number(_TABLE) else 0
        command = python("-m", "benchmarks.celery_post", kind, str(number))
        async with self.ground.process(*command, **environment(self.ground)) as client:
            began = float((await client.says("\n")).splitlines()[0])
            await self.books.reaches(_TABLE, 1)
            await self.books.reaches(_DONE, before + results)
            return time.time() - began


def environment(ground: Ground) -> dict[str, str]:
    """What the peer's processes have to know."""
    return {
        "PEER_BROKER": ground.amqp_url,
        "PEER_BACKEND": f"db+{ground.mysql_as('mysql+pymysql')}",
        "PYTHONPATH": _HOME,
    }


@asynccontextmanager
async def celery(ground: Ground) -> AsyncIterator[Celery]:
    """A worker with two processes, with 200 tasks behind it."""
    command = python(
        *("-m", "celery", "-A", "benchmarks.celery_app", "worker"),
        *("--concurrency", "2", "--loglevel", "INFO", "--without-gossip", "--without-mingle"),
    )
    async with ground.process(*command, **environment(ground)) as worker:
        await worker.says("ready.")
        async with Books(ground.mysql_url) as books:
            contender = Celery(ground=ground, books=books)
            await contender.finish("group", 200, 200)
            yield contender
