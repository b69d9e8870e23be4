"""Rows 65 and 66: the server's loop is blocked; no file descriptors, no space."""

import asyncio
import errno
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.faults.labor import ChildToil, Toil
from tests.faults.plugin import row
from tests.faults.process import BLOCKED, Process
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

SOON: Final = 30.0
FILES: Final = 64
KIB: Final = 1024
#: Largest file that a worker may write in these stories: its log fits, a large answer does not.
ROOM: Final = 64 * KIB


@row(65)
async def test_a_server_whose_loop_is_blocked_comes_back_and_loses_nothing(rig: Rig) -> None:
    """The event loop of the only server is blocked for 30 s, under load.

    The broker ends its connections, which have no heartbeats; requests wait or are tried again.
    It connects again: nothing is lost, nothing executed twice.
    """
    impatient = f"{rig.ground.amqp_url}?heartbeat=5"
    server = await rig.server(EXCHANGE={"URL": impatient})
    await rig.worker()
    ids = await rig.load(10)
    await rig.begun(5)

    server.block()
    blocked = await rig.try_post(job("blocked"), key="blocked")
    assert blocked.took > BLOCKED / 2
    rig.healed()
    ids += [await rig.post(job("blocked"), key="blocked"), *await rig.load(10, seed=2)]

    await rig.recovered(SOON, *ids)
    begun = [(begin.task_id, begin.attempt) for begin in rig.history.began()]
    assert len(begun) == len(set(begun))
    rig.outcome = f"a request took {blocked.took:.0f} s; every attempt was executed once"


async def started_with(
    starting: "asyncio.Task[Process]", rig: Rig, what: int, most: int
) -> Process:
    """A process that had a limit from its first moment."""
    number = len(rig.processes)
    await rig.until(lambda: starting.done() or len(rig.processes) > number)
    rig.processes[-1].limit(what, most)
    return await starting


@asynccontextmanager
async def callers(url: str, number: int) -> AsyncIterator[None]:
    """So many connections to a server, which ask for nothing, and stay."""
    address = httpx.URL(url)
    opened = [await asyncio.open_connection(address.host, address.port) for _ in range(number)]
    try:
        yield
    finally:
        for _, writer in opened:
            writer.close()


@row(66)
async def test_a_server_without_file_descriptors_says_so_and_recovers(rig: Rig) -> None:
    """A server may have 64 files, and 100 clients keep connections open, with load from others.

    It says what it lacks, without filling the disk with that; once they are gone it does what
    it has taken and accepts more, all of it once.
    """
    starting = asyncio.create_task(rig.server())
    server = await started_with(starting, rig, resource.RLIMIT_NOFILE, FILES)
    rig.expects("Too many open files")
    await rig.worker()
    ids = await rig.load(5)
    async with callers(server.url, 100):
        await server.says("Too many open files")
        await server.says("the database does not answer: [Errno 24]")  # our own looks open files
    rig.healed()

    assert len(server.log) < 200 * KIB
    ids += await rig.load(10, seed=2)
    took = await rig.recovered(SOON, *ids)
    assert server.alive
    begun = [(begin.task_id, begin.attempt) for begin in rig.history.began()]
    assert len(begun) == len(set(begun))
    rig.seconds = took
    rig.outcome = "said so, did what it had taken, accepted jobs again"


@row(66)
async def test_a_worker_without_file_descriptors_hands_back_what_it_cannot_begin(rig: Rig) -> None:
    """A worker may have 32 files, and child processes for 30 tasks need more.

    It says what it lacks; what it cannot begin goes back and is done later, all of it once.
    """
    await rig.server()
    starting = asyncio.create_task(rig.worker(ChildToil, slots=30))
    worker = await started_with(starting, rig, resource.RLIMIT_NOFILE, FILES // 2)
    many = {"taskParallel": [toil("CHILDTOIL", hold="go")] * 30}
    job_id = await rig.post(job("children", many))
    await worker.says(os.strerror(errno.EMFILE))
    rig.history.say("go")
    rig.healed()

    await rig.recovered(90, job_id)
    assert worker.alive
    assert set((await rig.states(job_id)).values()) == {"succeeded"}
    begun = [(begin.task_id, begin.attempt) for begin in rig.history.began()]
    assert len(begun) == len(set(begun)) == 30
    rig.outcome = "said so; the tasks it could not begin were handed back, and done later"


def kept(rig: Rig) -> list[Path]:
    """The answers that workers have on disk, whole or half written."""
    spool = rig.folder / "home" / "spool"
    return sorted(path for path in spool.rglob("*") if path.suffix in (".json", ".new"))


@row(66)
async def test_an_answer_that_the_disk_does_not_take_is_sent_from_memory(rig: Rig) -> None:
    """A worker may write no file of the size of its answer, and the broker is away.

    It says so, keeps nothing half written, and sends the answer once the broker is there. (By
    a limit on the size of files: a full file system of its own would need root.)
    """
    await rig.server()
    wire = await rig.proxy_to_broker()
    worker = await rig.worker(Toil, broker=wire)
    worker.limit(resource.RLIMIT_FSIZE, ROOM)
    job_id = await rig.post(job("no space", toil(hold="go", size=4 * ROOM)))
    [task] = await rig.tasks_of(job_id)
    await rig.begun(task_id=task)
    wire.refuse()
    rig.history.say("go")

    await worker.says(f"answers are not kept on disk: [Errno {errno.EFBIG}]")
    assert kept(rig) == []
    wire.mend()
    rig.healed()

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began(task_id=task)) == 1
    worker.limit(resource.RLIMIT_FSIZE, None)
    rig.outcome = "said so; sent from memory, executed once, nothing half written"
