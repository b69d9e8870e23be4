"""Rows 43 to 48: the database is full or read-only, deserted, slow, crowded, or killed often."""

import asyncio
import json
import random
import re
import resource
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa

from dane_server.storage.tables import jobs
from dane_server.storage.tables import tasks as tasks_table
from tests.faults.history import Sent
from tests.faults.labor import Other, Toil
from tests.faults.plugin import row
from tests.faults.process import ROOT, Process
from tests.faults.rig import Json, Rig
from tests.faults.specs import job, toil
from tests.services.mariadb import execute

pytestmark = pytest.mark.services

SOON: Final = 60.0


# --- row 43: nothing can be written ---------------------------------------------------------------


@asynccontextmanager
async def plain_user(rig: Rig) -> AsyncIterator[str]:
    """The store's URL for a user who may use its tables, and nothing that an operator may."""
    root, parts = rig.database.url, urlsplit(rig.ground.mysql_url)
    name, password = f"plain_{secrets.token_hex(4)}", secrets.token_hex(16)
    rights = f"SELECT, INSERT, UPDATE, DELETE ON {parts.path[1:]}.*"
    made = [
        f"CREATE USER {name}@'127.0.0.1' IDENTIFIED BY '{password}'",
        f"GRANT {rights} TO {name}@'127.0.0.1'",
    ]
    await asyncio.to_thread(execute, root, made)
    try:
        yield parts._replace(netloc=f"{name}:{password}@127.0.0.1:{parts.port}").geturl()
    finally:
        await asyncio.to_thread(execute, root, [f"DROP USER {name}@'127.0.0.1'"])


@asynccontextmanager
async def read_only(rig: Rig) -> AsyncIterator[None]:
    root = rig.database.url
    await asyncio.to_thread(execute, root, ["SET GLOBAL read_only = 1"])
    try:
        yield
    finally:
        await asyncio.to_thread(execute, root, ["SET GLOBAL read_only = 0"])


@asynccontextmanager
async def full(rig: Rig) -> AsyncIterator[None]:
    """Every row that is added gets MariaDB's own word for a full disk (1021)."""
    name = urlsplit(rig.ground.mysql_url).path[1:]
    no = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1021, MESSAGE_TEXT = 'Disk full'"
    tables = ("job", "task", "attempt", "answer")
    add = [
        f"CREATE TRIGGER {name}.full_{t} BEFORE INSERT ON {name}.{t} FOR EACH ROW {no}"
        for t in tables
    ]
    remove = [f"DROP TRIGGER IF EXISTS {name}.full_{t}" for t in tables]
    await asyncio.to_thread(execute, rig.database.url, add)
    try:
        yield
    finally:
        await asyncio.to_thread(execute, rig.database.url, remove)


@row(43)
@pytest.mark.parametrize("befalls", [read_only, full], ids=["read-only", "full"])
async def test_a_database_that_takes_nothing_is_told_and_can_be_read(
    rig: Rig, befalls: Callable[[Rig], AbstractAsyncContextManager[None]]
) -> None:
    """The database is read-only for a while, or full (it says so: no disk was filled).

    503 with Retry-After for what would write; reading works; then all goes on by itself.
    """
    async with plain_user(rig) as url:
        await rig.server(STORE={"URL": url})
        await rig.worker()
        held = await rig.post(job("held", toil(hold="go")))
        await rig.begun(job_id=held)
        ids = await rig.load(5)
        async with befalls(rig):
            sent = [await rig.try_post(job(f"new {n}"), key=f"new-{n}") for n in range(10)]
            rig.history.say("go")
            await rig.until(lambda: bool(rig.history.ended(job_id=held)))
            seen = await rig.get(f"job/{held}")
            listed = await rig.get("jobs")
        rig.healed()
        again = [await rig.post(job(f"new {n}"), key=f"new-{n}") for n in range(10)]
        await rig.recovered(SOON, held, *ids, *again)

    assert {one.status for one in sent} == {503}
    assert all(one.retry_after for one in sent)
    assert max(one.took for one in sent) < 10
    assert (seen, listed) != ({}, {})
    rig.outcome = "503 to all that would write, reading went on; all done afterwards"


@contextmanager
def no_file_grows(server: Process, most: int) -> Iterator[None]:
    """No file of a process may be larger (RLIMIT_FSIZE), as when its disk is full."""
    limit = resource.RLIMIT_FSIZE
    before = resource.prlimit(server.pid, limit)
    resource.prlimit(server.pid, limit, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.pid, limit, before)


@row(43)
async def test_a_full_disk_under_an_embedded_dane_harms_nothing(small_rig: Rig) -> None:
    """In one process on SQLite: its files may grow no more, as on a full disk.

    503 for what would write; reading works; then all goes on, and the file is whole.
    """
    rig = small_rig
    server = await rig.dev(Toil)
    first = await rig.post(job("first"))
    await rig.recovered(SOON, first)
    path = rig.folder / "dane-data" / "dane.sqlite"
    log = path.with_name(path.name + "-wal")
    large = {f"n{n}": {"task": toil(size=n)} for n in range(200)}
    with no_file_grows(server, max(file.stat().st_size for file in (path, log))):
        sent: list[Sent] = []
        for number in range(200):
            name = f"large {number}"
            sent.append(await rig.try_post(job(name, {"taskGraph": large}), key=f"l-{number}"))
            if sent[-1].status != 201:
                break
        refused = await rig.try_post(job("refused"), key="refused")
        seen = await rig.get(f"job/{first}")
    rig.healed()
    again = await rig.post(job("refused"), key="refused")
    await rig.recovered(SOON)

    assert {one.status for one in sent} <= {201, 503}
    assert sent[-1].status == refused.status == 503
    assert refused.retry_after
    assert again
    assert seen
    rig.outcome = f"503 after {len(sent) - 1} large jobs, reading went on; all done afterwards"


# --- row 44: clients that leave -------------------------------------------------------------------

REQUESTS: Final = 10_000
CLIENTS: Final = 16


class Client:
    """Asks for this and that, and mostly does not wait for the answer."""

    def __init__(self, rig: Rig, server: Process, jobs_there: list[int], seed: int) -> None:
        self._rig = rig
        self._port = urlsplit(server.url).port
        self._jobs = jobs_there
        self._chance = random.Random(seed)
        self._name = f"client-{seed}"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.left: list[Json] = []  # jobs it posted, and left before the answer
        self.wrong: list[str] = []
        self.counted: Counter[str] = Counter()

    async def ask(self, times: int) -> None:
        for number in range(times):
            if self._chance.random() < 0.05:
                await self._post(job(f"{self._name} {number}", toil(size=10)))
            else:
                await self._look(self._chance.choice(self._jobs))
        self._hang_up()

    async def _look(self, job_id: int) -> None:
        path = self._chance.choice([f"/DANE/job/{job_id}", f"/DANE/job/{job_id}/tasks"])
        answer = await self._request("GET", path)
        if answer is None or self._was_refused(answer):
            return
        told = {int(number) for number in re.findall(r'"job_id": ?([0-9]+)', answer[1])}
        if answer[0] != 200 or told != {job_id}:
            self._note_wrong(f"{path} was answered with {answer}")

    async def _post(self, spec: Json) -> None:
        answer = await self._request("POST", "/DANE/job", spec)
        if answer is None or self._was_refused(answer):
            self.left.append(spec)
            return
        status, body = answer
        if status != 201:
            self._note_wrong(f"a job was answered with {answer}")
            return
        number = int(json.loads(body)["job_id"])
        source = str(spec["source_id"])
        self._rig.history.note(Sent(source_id=source, status=201, key=_key(spec), job_id=number))

    def _was_refused(self, answer: tuple[int, str]) -> bool:
        """Whether the server had too much to do: those who leave leave it their work."""
        self.counted["refused"] += answer[0] == 503
        return answer[0] == 503

    def _note_wrong(self, sentence: str) -> None:
        self.wrong.append(sentence[:300])

    async def _request(
        self, method: str, path: str, body: Json | None = None
    ) -> tuple[int, str] | None:
        """The status and the body; None when we did not wait for them."""
        # As httpx writes it: what is posted again with its key has to be the same bytes.
        data = json.dumps(body, separators=(",", ":")).encode() if body else b""
        key = f"Idempotency-Key: {_key(body)}\r\n" if body else ""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(head.encode() + data)
        patience = self._chance.choice([60.0, self._chance.uniform(0, 0.1)])
        try:
            async with asyncio.timeout(patience):
                answer = await _read(reader)
        except TimeoutError:
            self._hang_up()
            self.counted["left"] += 1
            return None
        self.counted["answered"] += 1
        return answer

    def _hang_up(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read(reader: asyncio.StreamReader) -> tuple[int, str]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].split()[0])
    return int(head.split()[1]), (await reader.readexactly(length)).decode()


def _key(spec: Json) -> str:
    return f"key-of-{spec['source_id']}".replace(" ", "-")


class OldTransactions:
    """Looks for transactions that have been open for long, and so for their locks."""

    LONG: Final = 15  # seconds

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.found: list[Any] = []
        self.looks = 0

    async def look(self) -> None:
        query = sa.text(
            "SELECT trx_started, trx_query FROM information_schema.innodb_trx "
            f"WHERE trx_started < NOW() - INTERVAL {self.LONG} SECOND"
        )
        while True:
            async with self._rig.engine.connect() as connection:
                self.found += [*await connection.execute(query)]
            self.looks += 1
            await asyncio.sleep(1)


@row(44)
async def test_clients_that_leave_take_nothing_along(rig: Rig) -> None:
    """10,000 requests, every other one deserted by its client at a random moment.

    Who waits gets their own answer; no connection is lost to the pool, no lock is older than 15 s.
    """
    server = await rig.server()
    await rig.worker(Toil, slots=8)
    there = [await rig.post(job(f"there {number}")) for number in range(20)]
    clients = [Client(rig, server, there, seed) for seed in range(CLIENTS)]
    old = OldTransactions(rig)
    looking = asyncio.create_task(old.look())
    await asyncio.gather(*(client.ask(REQUESTS // CLIENTS) for client in clients))
    rig.healed()
    for spec in [spec for client in clients for spec in client.left]:
        await rig.post(spec, key=_key(spec))
    await rig.recovered(SOON)
    await rig.until(lambda: idle(server))
    looking.cancel()
    await asyncio.wait([looking])

    assert [wrong for client in clients for wrong in client.wrong] == []
    assert old.looks > 0
    assert old.found == []
    counted = sum((client.counted for client in clients), Counter[str]())
    left, refused = counted["left"], counted["refused"]
    own = counted["answered"] - refused
    assert left + own + refused == REQUESTS // CLIENTS * CLIENTS == REQUESTS
    assert min(left, own) > REQUESTS / 10
    rig.outcome = (
        f"{left} left, {own} got their own answer, {refused} a 503; all connections came back"
    )


async def idle(server: Process) -> bool:
    """Whether no connection to the store is in use, in any of a server's pools."""
    numbers = [value for name, value in (await metrics(server)).items() if "connections" in name]
    assert numbers
    return not any(numbers)


async def metrics(server: Process) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"{server.url}/metrics")).text
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


# --- row 45: slow queries -------------------------------------------------------------------------

#: More than a pool has connections, in seconds more than one waits for one.
CROWD: Final = 30
AT_ONCE: Final = 5.0
OVERHEAD: Final = 3.0


@row(45)
async def test_slow_reading_leaves_the_runner_its_connections(rig: Rig) -> None:
    """Every connection that reads for the API hangs in a slow query: a locked table.

    The next who ask get a 503 in 5 s; what was accepted is done meanwhile.
    """
    server = await rig.server()
    await rig.worker(Toil)
    first = await rig.post(job("first"))
    await rig.recovered(SOON, first)
    [task] = await rig.tasks_of(first)
    accepted = await rig.post(job("accepted", {"taskSequential": [toil(hold="go"), "TOIL"]}))
    await rig.begun(job_id=accepted)
    async with rig.engine.connect() as connection:
        await connection.exec_driver_sql("LOCK TABLES rejected WRITE")  # read by nobody else
        over = asyncio.Event()
        crowd = [asyncio.create_task(ask_on(server, f"task/{task}", over)) for _ in range(CROWD)]
        await rig.until(lambda: hang(rig, 10))
        status, took, retry_after = await ask(server, f"job/{first}")
        rig.history.say("go")
        rig.healed()
        done = await rig.recovered(SOON, accepted)
        still_slow = await hang(rig, 1)
        over.set()
        await connection.exec_driver_sql("UNLOCK TABLES")
    answers = {status for statuses in await asyncio.gather(*crowd) for status in statuses}

    assert (status, bool(retry_after)) == (503, True)
    assert took < AT_ONCE + OVERHEAD
    assert still_slow
    assert answers <= {200, 503}
    assert (await ask(server, f"job/{first}"))[0] == 200
    rig.outcome = f"503 in {took:.1f} s; what was accepted took {done:.1f} s meanwhile"


@row(45)
async def test_slow_writing_leaves_the_runner_its_connections(rig: Rig) -> None:
    """Every connection that writes for the API waits for a lock.

    Who posts has an answer in seconds, 503 or 201; what was accepted is done meanwhile.
    """
    server = await rig.server()
    await rig.worker(Toil)
    locked = [await rig.post(job(f"locked {n}", toil(hold="go"))) for n in range(8)]
    await rig.begun(4)
    other = await rig.post(job("other", {"taskSequential": [toil("OTHER")] * 3}))
    async with rig.engine.begin() as connection:
        rows = sa.select(jobs.c.id).where(jobs.c.id.in_(locked)).order_by(jobs.c.id)
        await connection.execute(rows.with_for_update())
        acts = [asyncio.create_task(ask(server, f"job/{one}/pause", "POST")) for one in locked]
        await rig.until(lambda: hang(rig, 5))
        sent = await rig.try_post(job("refused"), key="refused")
        await rig.worker(Other)
        rig.healed()
        done = await rig.recovered(SOON, other)
    await asyncio.gather(*acts)
    await act_until_done(rig, locked)

    assert sent.status in (201, 503)
    assert sent.took < AT_ONCE + OVERHEAD
    rig.outcome = f"{sent.status} in {sent.took:.1f} s; what was accepted took {done:.1f} s"


async def act_until_done(rig: Rig, ids: list[int]) -> None:
    rig.history.say("go")
    for one in ids:
        await rig.act("resume", one)
    await rig.recovered(SOON)


async def ask(server: Process, path: str, method: str = "GET") -> tuple[int, float, str]:
    """What came back, after how many seconds, and when to come again."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.request(method, f"{server.url}/DANE/{path}")
    return answer.status_code, loop.time() - began, answer.headers.get("retry-after", "")


async def ask_on(server: Process, path: str, over: asyncio.Event) -> set[int]:
    """Ask again and again until it is over; what came back."""
    statuses: set[int] = set()
    while not over.is_set():
        statuses.add((await ask(server, path))[0])
    return statuses


async def hang(rig: Rig, number: int) -> bool:
    """Whether so many statements have been under way for half a second or more."""
    query = sa.text(
        "SELECT COUNT(*) FROM information_schema.processlist "
        "WHERE command = 'Query' AND time_ms > 500 AND id <> CONNECTION_ID()"
    )
    async with rig.engine.connect() as connection:
        return int((await connection.scalars(query)).one()) >= number


# --- row 46: a crowd at one counter ---------------------------------------------------------------

#: As many as one worker does in half a minute on two cores; the matrix asks for 100,000.
CHILDREN: Final = 5_000
#: So long a worker that has come asks about all that it is sent, in seconds.
UNSURE: Final = 6.0


@row(46)
async def test_three_runners_count_the_children_of_one_node_to_zero_once(rig: Rig) -> None:
    """Three runners record 5,000 answers for the children of one node, all at once.

    (100,000 take longer than a row may.) What waits for them begins once; no deadlock is seen.
    """
    rig.looks_every = 5.0
    await rig.server("api")
    patient = {"WINDOW": 2 * CHILDREN, "LEASE": 30}  # or what is slow to be sent is sent twice
    runners = [await rig.server("runner", RUNNER=patient) for _ in range(3)]
    await rig.worker(Toil, Other, slots=20)
    came = time.monotonic()
    # Asked about what it is sent first, held runners would not say a word.
    await rig.until(lambda: time.monotonic() - came > UNSURE)
    tasks = {"taskSequential": [{"taskParallel": ["TOIL"] * CHILDREN}, "OTHER"]}
    job_id = await rig.post(job("crowd", tasks))
    async with rig.engine.begin() as connection:
        node, _ = (await connection.execute(crowded(job_id))).one()
        held = sa.select(tasks_table).where(tasks_table.c.id == node).with_for_update()
        await connection.execute(held)  # no child counts it down
        await rig.until(lambda: have_ended(rig) >= CHILDREN, 70)
        _, left = (await connection.execute(crowded(job_id))).one()
    rig.healed()

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began(key="OTHER")) == 1
    assert not any("1213" in runner.log or "Deadlock" in runner.log for runner in runners)
    rig.outcome = (
        f"{left:,} of {CHILDREN:,} answers at once by three runners, in {rig.seconds:.1f} s; "
        "the counter was 0 once"
    )


def crowded(job_id: int) -> sa.Select[Any]:
    """The node of a job that waits for most, and for how many."""
    return (
        sa.select(tasks_table.c.id, tasks_table.c.pending)
        .where(tasks_table.c.job_id == job_id, tasks_table.c.pending > 0)
        .order_by(tasks_table.c.pending.desc())
        .limit(1)
    )


def have_ended(rig: Rig) -> int:
    """How many executions have ended; counted without reading each."""
    return (rig.folder / "history.jsonl").read_bytes().count(b'"is": "Ended"')


# --- row 48: SQLite is killed ---------------------------------------------------------------------

KILLS: Final = 200


@row(48)
async def test_sqlite_is_whole_however_often_its_writer_is_killed(small_rig: Rig) -> None:
    """A process that writes to SQLite, with a checkpoint at every commit, is killed 200 times.

    The file is whole each time, what was accepted is there, and a server does what was left.
    """
    rig = small_rig
    path = rig.folder / "dane-data" / "dane.sqlite"
    path.parent.mkdir()
    args = ["-m", "tests.faults.mortal", str(rig.folder), str(path), str(KILLS)]
    mortal = await asyncio.create_subprocess_exec(
        sys.executable, *args, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await mortal.communicate()
    finally:
        with suppress(ProcessLookupError):
            mortal.kill()
    assert mortal.returncode == 0, "it says why on stderr"
    told = json.loads(out)
    rig.healed()
    await rig.dev(Toil)

    await rig.recovered(SOON)
    assert told["killed"] == told["with_log"] == KILLS
    assert told["found"] == ["ok"]
    rig.outcome = f"whole {KILLS} times; what was left was done by the next server"
