"""Rows 61 to 64: very much at once, servers that die in turn, clocks that jump, partitions."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import sqlalchemy as sa

from dane_server.storage.tables import attempts
from tests.faults.clocks import put_database_clock, put_worker_clock
from tests.faults.labor import Toil
from tests.faults.plugin import row
from tests.faults.process import Process
from tests.faults.rig import Json, Rig
from tests.faults.specs import job, toil
from tests.faults.workload import LIGHT, TINY, Workload
from tests.services.process import free_port
from tests.services.proxy import Proxy

pytestmark = pytest.mark.services

SOON: Final = 60.0


# --- row 61: very much at once ----------------------------------------------------------------

TASKS: Final = 100_000
JOBS: Final = 10_000
#: Seconds after which it hangs, on a machine that has much else to do; half of it is usual.
LONG: Final = 400.0
#: What a server may hold in memory, whatever is asked of it, in bytes.
MEMORY: Final = 300 * 2**20
#: Seconds that its event loop may stand still on a machine that has much else to do: most of it
#: is waiting for a processor then. `test_api_large` measures what the server itself takes.
STALL: Final = 1.0


class Strain:
    """What a server's own numbers say under load: its memory, and how late its event loop was."""

    TARGET: Final = 0.1  # seconds, on a machine of its own

    def __init__(self, server: Process) -> None:
        self._server = server
        self._late: list[float] = []

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                page = (await client.get(f"{self._server.url}/metrics")).text
                self._late += [
                    float(line.split()[-1])
                    for line in page.splitlines()
                    if line.startswith("dane_event_loop_stall_seconds ")
                ]
                await asyncio.sleep(0.4)

    @property
    def stall(self) -> float:
        """The longest that its event loop stood still, in seconds."""
        return max(self._late)

    @property
    def memory(self) -> int:
        """The most it has held, in bytes."""
        status = Path(f"/proc/{self._server.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def __str__(self) -> str:
        late = sorted(self._late)
        assert late
        longer = sum(one > self.TARGET for one in late)
        return (
            f"at most {self.memory / 2**20:.0f} MiB; event loop late by {late[-1] * 1000:.0f} ms "
            f"at most, by more than {self.TARGET * 1000:.0f} ms in {longer} of {len(late)} spans "
            f"of half a second (median {late[len(late) // 2] * 1000:.0f} ms)"
        )


#: Tasks of a large job that are done in a minute, whatever else the machine does.
SOME: Final = 1_000


async def goes_on(rig: Rig, job_id: int, tasks: int) -> None:
    """Wait until a job is done, for as long as that takes; but some of it is done each minute."""
    done = 0

    async def more() -> bool:
        nonlocal done
        now = (await rig.get(f"job/{job_id}?tasks=false"))["counts"]["succeeded"]
        if now < min(done + SOME, tasks):
            return False
        done = now
        return True

    while done < tasks:
        await rig.until(more, SOON)


@row(61)
async def test_a_job_of_100_000_tasks_is_done(rig: Rig) -> None:
    """One job of 100,000 tasks.

    It is done; the server's memory stays bounded, and its event loop goes on.
    """
    rig.looks_every = 30.0
    server = await rig.server()
    for _ in range(2):
        await rig.worker(Toil, slots=20)
    strain = Strain(server)
    async with strain.watched():
        # Its answer has all tasks, and comes while they are worked on.
        job_id = await rig.post(job("large", {"taskParallel": ["TOIL"] * TASKS}), within=LONG)
        rig.healed()
        await goes_on(rig, job_id, TASKS)
        took = await rig.recovered(LONG, job_id)

    assert strain.memory < MEMORY, strain
    assert strain.stall < STALL, strain
    rig.outcome = f"{TASKS:,} tasks, {TASKS / took:.0f} a second; {strain}"


@row(61)
async def test_10_000_jobs_at_once_are_done(rig: Rig) -> None:
    """10,000 jobs, posted by 100 clients at once.

    All are accepted and done, and the server's memory stays bounded.
    """
    rig.looks_every = 30.0
    server = await rig.server()
    await rig.worker(Toil, slots=20)
    strain = Strain(server)
    rig.healed()
    async with strain.watched():
        ids = await rig.load(JOBS, TINY, at_once=100)
        took = await rig.recovered(LONG)

    assert len(set(ids)) == JOBS
    assert strain.memory < MEMORY, strain
    assert strain.stall < STALL, strain
    rig.outcome = f"{JOBS:,} jobs in {took:.0f} s; {strain}"


# --- row 62: servers that die in turn ---------------------------------------------------------

DEATHS: Final = 8


class Succession:
    """Servers, each followed by another when it is killed."""

    def __init__(self, rig: Rig, number: int) -> None:
        self._rig = rig
        self._number = number
        self._servers: list[Process] = []
        self._coming: set[asyncio.Task[None]] = set()

    async def man(self) -> None:
        await asyncio.gather(*(self._add() for _ in range(self._number)))

    async def _add(self) -> None:
        self._servers.append(await self._rig.server())

    def kill(self, chance: random.Random) -> None:
        """Kill one that is ready, whichever; the next one comes at once."""
        if self._servers:
            server = self._servers.pop(chance.randrange(len(self._servers)))
            server.kill()
            coming = asyncio.create_task(self._add())
            self._coming.add(coming)

    async def complete(self) -> None:
        await asyncio.gather(*self._coming)
        assert len(self._servers) == self._number


async def post_on(rig: Rig, over: asyncio.Event, open_at_most: int) -> None:
    """Post random jobs, one after the other, until it is over."""
    supply = Workload("succession", LIGHT)
    while not over.is_set():
        spec, accepted = supply.job(), False
        while not accepted:
            try:
                accepted = await rig.accepts(spec)
            except AssertionError:  # no server is there just now
                await asyncio.sleep(0.1)
        with suppress(TimeoutError):
            await rig.until(lambda: has_room(rig, open_at_most), 5)


async def has_room(rig: Rig, open_at_most: int) -> bool:
    return await rig.open_jobs() < open_at_most


@row(62)
@pytest.mark.parametrize("number", [2, 5])
async def test_servers_that_are_killed_in_turn_lose_nothing(rig: Rig, number: int) -> None:
    """Servers at work together are killed at random, one every few seconds, under load.

    Eight of them; `make nemesis` goes on for longer. Nothing lost, doubled or in limbo.
    """
    chance = random.Random(62 + number)
    for _ in range(2):
        await rig.worker()
    servers = Succession(rig, number)
    await servers.man()
    over = asyncio.Event()
    posting = asyncio.create_task(post_on(rig, over, 20))
    for _ in range(DEATHS):
        before = len(rig.history.began())
        more = chance.randint(2, 25)
        await rig.until(lambda: len(rig.history.began()) >= before + more)  # noqa: B023
        servers.kill(chance)
    over.set()
    await posting
    await servers.complete()
    rig.healed()

    took = await rig.recovered(SOON)
    done = len(await rig.states())
    rig.outcome = f"{DEATHS} killed among {number}, {done} tasks; all done {took:.1f} s after"


# --- row 63: clocks ---------------------------------------------------------------------------

LEASED: Final[dict[str, Any]] = {"HAND_OFF": 0.5, "BEAT": 0.5}
HOUR: Final = 3600
DAY: Final = 86_400
#: The server has looked at its clock again after so many beats of a task.
BEATS: Final = 16


@row(63)
@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["+1 h", "-1 h"])
async def test_a_jump_of_the_databases_clock_ends_nothing(rig: Rig, seconds: int) -> None:
    """The database's clock jumps by an hour, under load, and later back.

    No lease and no deadline ends for it, nothing waits an hour more, and durations are true.
    """
    server = await rig.server(RUNNER={"OVERTIME": 2})
    await rig.worker(Toil, slots=20, WORKER=LEASED)
    leased = await rig.post(job("leased", {"taskParallel": [toil(hold="go")] * 4}))
    limited = await rig.post(job("limited", {"Task": {**toil(hold="go")["Task"], "timeout": 600}}))
    again = {"retry": {"limit": 2, "delay": 20, "factor": 1}}
    waiting = await rig.post(job("waiting", {"Task": {**toil(good=2)["Task"], **again}}))
    held = [task for one in (leased, limited) for task in await rig.tasks_of(one)]
    [patient] = await rig.tasks_of(waiting)
    for task in held:
        await rig.until(lambda: rig.is_leased(task))  # noqa: B023
    await rig.until(lambda: rig.is_(patient, "backoff"))
    await rig.load(5, TINY, seed="before")
    before = 0
    for clock in (seconds, 0):
        put_database_clock(rig.folder, clock)
        await server.says(f"clock was put {'forward' if clock > before else 'back'}")
        before = clock
        await asyncio.gather(*(rig.until(beaten(rig, task, BEATS)) for task in held))
    rig.healed()
    await rig.load(5, TINY, seed="after")
    rig.history.say("go")

    await rig.recovered(SOON)
    began = Counter(begin.task_id for begin in rig.history.began())
    assert {task for task, times in began.items() if times > 1} == {patient}
    assert {(await rig.row(task)).attempt for task in held} == {1}
    assert await rig.starts() == 0
    assert await untrue_durations(rig) == []
    rig.outcome = "nothing was begun twice, nothing ended early; every duration is true"


def beaten(rig: Rig, task: int, more: int) -> Any:
    """Whether so many heartbeats of a task were written down since the first time it was asked."""
    first: list[int] = []

    async def holds() -> bool:
        found = await rig.row(task)
        first.append(found.beats)
        return bool(found.beats >= first[0] + more)

    return holds


async def untrue_durations(rig: Rig) -> list[str]:
    """Attempts whose run time, or whose end less whose begin, is not what the worker saw."""
    seen = {(one.task_id, one.attempt): one.at for one in rig.history.began()}
    wrong = []
    async with rig.engine.connect() as connection:
        rows = [*await connection.execute(sa.select(attempts).where(attempts.c.outcome == 200))]
    assert rows
    ends = {(one.task_id, one.attempt): one.at for one in rig.history.ended()}
    for one in rows:
        really = ends[one.task_id, one.number] - seen[one.task_id, one.number]
        shown = (one.finished_at - one.started_at).total_seconds()
        if abs(one.runtime - really) > 1 or abs(shown - one.runtime) > 1:
            wrong.append(f"task {one.task_id}: {shown} and {one.runtime} for {really}")
    return wrong


@row(63)
@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["+1 day", "-1 day"])
async def test_the_clock_of_a_worker_matters_to_nobody(rig: Rig, seconds: int) -> None:
    """The clock of a worker is a day fast, or slow, and another one's is right.

    No lease ends for it, nothing is begun twice, nothing of a job that was cancelled while its
    tasks waited in the queue is begun, and durations are true.
    """
    await rig.server()
    put_worker_clock(rig.folder, seconds)
    wrong = await rig.worker(slots=4, WORKER=LEASED)
    put_worker_clock(rig.folder, 0)
    right = await rig.worker(slots=4, WORKER=LEASED)
    held = await rig.post(job("held", {"taskParallel": [toil(hold="go")] * 8}))
    tasks = await rig.tasks_of(held)
    for task in tasks:
        await rig.until(lambda: rig.is_leased(task))  # noqa: B023
    await asyncio.gather(*(rig.until(beaten(rig, task, BEATS)) for task in tasks))
    stopped = await rig.post(job("stopped", {"taskParallel": [toil(hold="never")] * 3}))
    await rig.act("cancel", stopped)
    rig.healed()
    rig.history.say("go")
    ids = await rig.load(10, TINY)

    await rig.recovered(SOON, held, stopped, *ids)
    began = Counter(begin.task_id for begin in rig.history.began())
    assert set(began.values()) == {1}
    assert {begin.pid for begin in rig.history.began(job_id=held)} == {wrong.pid, right.pid}
    assert [*rig.history.began(job_id=stopped)] == []  # both had to ask, and did
    assert await rig.starts() == 0
    assert await untrue_durations(rig) == []
    rig.outcome = "begun once each, by both; nothing of what was cancelled; every duration is true"


# --- row 64: partitions -----------------------------------------------------------------------

OK: Final = "200 OK"


async def ready(server: Process) -> Json:
    """What a server says of its parts."""
    async with httpx.AsyncClient(timeout=30) as client:
        body: Json = (await client.get(f"{server.url}/DANE/ready")).json()
    return body


async def says(server: Process, *, database: bool, messagequeue: bool) -> bool:
    body = await ready(server)
    return (body["database"] == OK, body["messagequeue"] == OK) == (database, messagequeue)


@contextmanager
def partition(wire: Proxy, *, silent: bool) -> Iterator[None]:
    """Nothing passes: it is dropped without a word, or refused."""
    if silent:
        wire.silence()
    else:
        wire.refuse()
    try:
        yield
    finally:
        wire.mend()


silently = pytest.mark.parametrize("silent", [True, False], ids=["silent", "refused"])


@row(64)
@silently
async def test_a_server_cut_off_from_the_broker_says_so_and_goes_on_after(
    rig: Rig,
    silent: bool,  # noqa: FBT001
) -> None:
    """The server and the broker do not reach each other; the workers and the database do.

    `/DANE/ready` names the broker, jobs are still accepted; all is done once it heals.
    """
    wire = await rig.proxy_to_broker()
    server = await rig.server(broker=wire)
    await rig.worker()
    ids = await rig.load(5)
    with partition(wire, silent=silent):
        await rig.until(lambda: says(server, database=True, messagequeue=False))
        ids += await rig.load(3, TINY, seed="meanwhile")
    rig.healed()

    await rig.until(lambda: says(server, database=True, messagequeue=True))
    await rig.recovered(SOON, *ids)
    rig.outcome = "named the broker, and accepted jobs; all done afterwards"


@row(64)
@silently
async def test_a_server_cut_off_from_the_database_says_so_and_goes_on_after(
    rig: Rig,
    silent: bool,  # noqa: FBT001
) -> None:
    """The server and the database do not reach each other; the workers and the broker do.

    `/DANE/ready` names the database, jobs get a 503; all is done once it heals.
    """
    wire = await rig.proxy_to_store()
    server = await rig.server(store=wire)
    await rig.worker()
    ids = await rig.load(5)
    with partition(wire, silent=silent):
        await rig.until(lambda: says(server, database=False, messagequeue=True))
        sent = await rig.try_post(job("meanwhile"), key="key-of-meanwhile")
    rig.healed()

    assert sent.status == 503
    assert sent.retry_after
    ids.append(await rig.post(job("meanwhile")))
    await rig.until(lambda: says(server, database=True, messagequeue=True))
    await rig.recovered(SOON, *ids)
    rig.outcome = "named the database, 503 to who posts; all done afterwards"


@row(64)
@silently
async def test_a_worker_cut_off_from_the_broker_says_so_and_goes_on_after(
    rig: Rig,
    silent: bool,  # noqa: FBT001
) -> None:
    """A worker and the broker do not reach each other; the server reaches all it needs.

    The worker's own `/health` says so, the server is ready; all is done once it heals.
    """
    wire = await rig.proxy_to_broker()
    server = await rig.server()
    port = free_port()
    await rig.worker(Toil, broker=wire, WORKER={"HEALTH_PORT": port})
    held = await rig.post(job("held", toil(hold="go")))
    await rig.begun(job_id=held)
    with partition(wire, silent=silent):
        await rig.until(lambda: health_is(port, 503))
        assert await says(server, database=True, messagequeue=True)
        ids = await rig.load(3, TINY, seed="meanwhile")
        rig.history.say("go")
        await rig.until(lambda: bool(rig.history.ended(job_id=held)))
    rig.healed()

    await rig.until(lambda: health_is(port, 200))
    await rig.recovered(SOON, held, *ids)
    rig.outcome = "the worker said so, the server was ready; all done afterwards"


async def health_is(port: int, status: int) -> bool:
    async with httpx.AsyncClient(timeout=30) as client:
        return (await client.get(f"http://127.0.0.1:{port}/health")).status_code == status
