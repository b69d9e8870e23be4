"""A whole DANE in processes of its own, with everything that can happen to it.

    async with rigged(ground, folder) as rig:
        await rig.worker()
        server = await rig.server(crash="claimed:1")
        await rig.load(10)
        ...

At the end of the block the oracle judges all that was written down.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import httpx
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dane_core.exchange.amqp import connect
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, epoch_queue, work_queue
from dane_core.worker.worker import Worker
from dane_server.storage import migrate
from dane_server.storage.engine import open_store
from dane_server.storage.tables import jobs, rejected, tasks
from tests.faults import clocks, evidence
from tests.faults.history import FOLDER_VARIABLE, Acted, History, Sent
from tests.faults.labor import CREW, EVERYONE
from tests.faults.oracle import SETTLED, Evidence, Footprint, violations
from tests.faults.process import PATIENCE, Process, watchmen
from tests.faults.seams import CRASH_VARIABLE, PASSED_VARIABLE
from tests.faults.workload import LIGHT, Load, Workload
from tests.services.mariadb import Database
from tests.services.proxy import Proxy, proxy_to
from tests.services.rabbitmq import Broker
from tests.stories.both_ways import Sections, as_environment
from tests.stories.programs import environment

Json = dict[str, Any]

#: Servers that look again soon, and workers that nobody waits for long at the end.
BRISK: Final[Sections] = {"RUNNER": {"SWEEP": 0.5, "LEASE": 3}, "WORKER": {"GRACE": 5}}
#: Between two looks at what other processes do, in seconds.
_LOOK: Final = 0.05
_WATCH: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The services under a rig; those that are ours alone may be stopped, killed and wiped."""

    amqp_url: str
    mysql_url: str  # of a database with DANE's tables
    broker: Broker | None = None
    database: Database | None = None


async def make_tables(url: str) -> None:
    async with open_store(url) as store:
        await migrate.upgrade(store)


class Rig:
    """Servers, workers, clients and faults of one test, and what they have written down."""

    def __init__(self, folder: Path, engine: AsyncEngine, *, embedded: bool) -> None:
        self.folder = folder
        self.history = History(folder)
        self.engine = engine
        self.processes: list[Process] = []
        #: What the row has shown, for the report.
        self.outcome = ""
        self.seconds: float | None = None
        #: Between two looks at what is settled, in seconds; a row with very many tasks looks less.
        self.looks_every = _WATCH
        self.embedded = embedded
        self._healed_at: float | None = None
        self._ground: Ground | None = None
        self._stack = AsyncExitStack()
        self._numbers = count(1)
        self._client = httpx.AsyncClient(timeout=35)
        self._footprints: dict[Process, Footprint] = {}
        self._secrets: dict[str, str] = {}
        #: The test has failed: what is left of it is told, not judged.
        self.given_up = False
        self._expected: set[str] = set()
        self._to_fail: set[int] = set()

    @property
    def ground(self) -> Ground:
        assert self._ground is not None, "an embedded rig stands on nothing"
        return self._ground

    @property
    def broker(self) -> Broker:
        """A RabbitMQ of our own. Its verbs block: `await asyncio.to_thread(rig.broker.kill)`."""
        assert self.ground.broker is not None, "this row needs `make faults`"
        return self.ground.broker

    @property
    def database(self) -> Database:
        """A MariaDB of our own; its verbs block too."""
        assert self.ground.database is not None, "this row needs `make faults`"
        return self.ground.database

    # --- who takes part ------------------------------------------------------------------------

    async def proxy_to_broker(self) -> Proxy:
        """A wire to the broker, to give to `server` or `worker`."""
        return await self._stack.enter_async_context(proxy_to(self.ground.amqp_url))

    async def proxy_to_store(self) -> Proxy:
        return await self._stack.enter_async_context(proxy_to(self.ground.mysql_url))

    async def server(
        self,
        role: str | None = None,
        *,
        crash: str = "",
        broker: Proxy | None = None,
        store: Proxy | None = None,
        **sections: Mapping[str, Any],
    ) -> Process:
        """Start a server, and wait until it is ready; `crash` arms a point of `seams`."""
        args = ["serve", "--json", *(["--role", role] if role else [])]
        if role != "runner":
            args += ["--port", "0"]
        chosen = self._sections(broker, store, sections)
        server = self._start("server", "tests.faults.server", args, crash, chosen)
        server.url = (await self._ready(server)).get("url", "")
        self._measure(server, chosen)
        if role == "runner":  # says that it is at work before it has connected
            await self._connected(server)
        return server

    async def worker(
        self,
        *kinds: type[Worker],
        slots: int = 4,
        crash: str = "",
        broker: Proxy | None = None,
        **sections: Mapping[str, Any],
    ) -> Process:
        """Start a worker of these kinds, else of the whole crew, and wait until it takes tasks."""
        targets = [f"tests.faults.labor:{kind.__name__}" for kind in kinds or CREW]
        args = ["worker", *targets, "--slots", str(slots), "--json"]
        chosen = self._sections(broker, None, sections)
        del chosen["STORE"]  # workers know of no store
        worker = self._start("worker", "tests.faults.worker", args, crash, chosen)
        worker.wire = broker
        await self._ready(worker)
        if broker is None:
            await self._consumed(worker, kinds or CREW)
        self._measure(worker, chosen)
        return worker

    async def dev(self, *kinds: type[Worker], crash: str = "", slots: int = 4) -> Process:
        """Start everything in one process, on SQLite."""
        targets = [f"tests.faults.labor:{kind.__name__}" for kind in kinds or CREW]
        args = ["dev", *targets, "--slots", str(slots), "--port", "0", "--json"]
        server = self._start("dev", "tests.faults.server", args, crash, dict(BRISK))
        server.url = (await self._ready(server))["url"]
        self._measure(server, {})
        return server

    def _sections(
        self, broker: Proxy | None, store: Proxy | None, chosen: Mapping[str, Mapping[str, Any]]
    ) -> Sections:
        ground = self.ground
        sections: Sections = {
            "EXCHANGE": {"URL": broker.url if broker else ground.amqp_url},
            "STORE": {"URL": store.url if store else ground.mysql_url},
        }
        for layer in (BRISK, chosen):
            for section, keys in layer.items():
                sections[section] = {**sections.get(section, {}), **keys}
        return sections

    def _start(
        self, kind: str, module: str, args: Sequence[str], crash: str, sections: Sections
    ) -> Process:
        own = {
            FOLDER_VARIABLE: str(self.folder),
            PASSED_VARIABLE: str(self.folder / "passed"),
            **({CRASH_VARIABLE: crash} if crash else {}),
        }
        process = Process(
            f"{kind}-{next(self._numbers)}",
            module,
            args,
            folder=self.folder,
            environment={**environment(self.folder, **as_environment(sections)), **own},
        )
        process.may_end = bool(crash)
        self.processes.append(process)
        return process

    async def _ready(self, process: Process) -> Json:
        try:
            return await process.facts()
        except (AssertionError, TimeoutError):
            process.may_end = True  # whoever starts it hears of it
            raise

    def _measure(self, process: Process, sections: Sections) -> None:
        if sections:
            process.broker_port = _port(sections.get("EXCHANGE", {}).get("URL"))
            process.store_port = _port(sections.get("STORE", {}).get("URL"))
        with suppress(OSError):  # crashed already
            self._footprints[process] = _footprint(process)

    async def _connected(self, process: Process) -> None:
        """Measure a process once it has its connections, unless it ends first."""
        connections = 2  # to publish, and to consume

        def connected() -> bool:
            self._measure(process, {})
            return not process.alive or self._footprints[process].to_broker >= connections

        await self.until(connected)
        if not process.alive and not process.may_end:
            process.may_end = True  # whoever starts it hears of it
            raise AssertionError(f"{process.name} has ended: {process.tail()}")

    async def _consumed(self, worker: Process, kinds: Iterable[type[Worker]]) -> None:
        """Wait until the queues of these kinds have consumers, or the worker has ended."""
        async with connect(self.ground.amqp_url) as exchange:

            async def consumed() -> bool:
                depths = [await exchange.depth(work_queue(kind.key)) for kind in kinds]
                served = all(depth is not None and depth.consumers > 0 for depth in depths)
                return served or not worker.alive

            await self.until(consumed)

    @property
    def passed(self) -> set[str]:
        """The crash points that the processes have passed."""
        path = self.folder / "passed"
        return set(path.read_text().split()) if path.exists() else set()

    # --- clients -------------------------------------------------------------------------------

    async def try_post(
        self,
        spec: Json,
        *,
        key: str | None = None,
        server: Process | None = None,
        sound: bool = True,
    ) -> Sent:
        """Post a job once, and write down what came of it."""
        headers = {"Idempotency-Key": key} if key else {}
        server = server or self._some_server()
        source_id = str(spec.get("source_id"))
        began = time.monotonic()
        try:
            answer = await self._client.post(f"{server.url}/DANE/job", json=spec, headers=headers)
        except httpx.TransportError as fault:
            sent = Sent(source_id=source_id, status=0, key=key, sound=sound, body=repr(fault))
        else:
            sent = _sent(source_id, key, answer, sound=sound)
        sent = replace(sent, took=round(time.monotonic() - began, 3))
        self.history.note(sent)
        return sent

    async def post(self, spec: Json, *, key: str | None = None, within: float = PATIENCE) -> int:
        """Post a job until it is accepted, always with the same key; its id."""
        key = key or _key_of(spec)
        async with asyncio.timeout(within):
            while True:
                sent = await self.try_post(spec, key=key)
                if sent.status == 201:
                    assert sent.job_id is not None
                    return sent.job_id
                assert sent.status in (0, 503), sent
                await asyncio.sleep(_LOOK)

    async def accepts(self, spec: Json) -> bool:
        """Whether a job is accepted now; asked with one key, it is one job."""
        return (await self.try_post(spec, key=_key_of(spec))).status == 201

    async def load(
        self, number: int, load: Load = LIGHT, *, seed: int | str = 1, at_once: int = 8
    ) -> list[int]:
        """Post random jobs, some at once; their ids."""
        supply, turns = Workload(seed, load), asyncio.Semaphore(at_once)

        async def post(spec: Json) -> int:
            async with turns:
                return await self.post(spec)

        return [*await asyncio.gather(*(post(spec) for spec in supply.jobs(number)))]

    async def get(self, path: str) -> Json:
        """What any server answers at a path under /DANE."""
        answer = await self._client.get(f"{self._some_server().url}/DANE/{path}")
        answer.raise_for_status()
        body: Json = answer.json()
        return body

    async def act(self, act: str, job_id: int) -> None:
        """`cancel`, `retry`, `pause` and so on, or `delete`, of a job."""
        url = f"{self._some_server().url}/DANE/job/{job_id}"
        if act == "delete":
            answer = await self._client.delete(url)
        else:
            answer = await self._client.post(f"{url}/{act}")
        answer.raise_for_status()
        self.history.note(Acted(act=act, job_id=job_id))

    async def act_on_task(self, act: str, task_id: int) -> None:
        """`retry`, `forceretry` or `reset` of one task."""
        answer = await self._client.post(f"{self._some_server().url}/DANE/task/{task_id}/{act}")
        answer.raise_for_status()
        job_id = (await self.row(task_id)).job_id
        self.history.note(Acted(act=act, job_id=job_id, task_id=task_id))

    async def try_act(self, act: str, job_id: int, task_id: int | None = None) -> int:
        """Act on a job, or on one of its tasks, once; the status, 0 without an answer.

        It is written down unless it was refused: what nobody answered may have been done.
        """
        path = f"job/{job_id}" if task_id is None else f"task/{task_id}"
        try:
            status = await self._ask_for(act, path)
        except (httpx.TransportError, AssertionError):
            status = 0
        assert status != 500, f"{act} of {path} was answered with 500"
        if not 400 <= status < 500:
            self.history.note(Acted(act=act, job_id=job_id, task_id=task_id))
        return status

    async def act_on_key(self, act: str, key: str) -> None:
        """`pause` or `resume` of a key, until it is accepted."""

        async def accepted() -> bool:
            try:
                return await self._ask_for(act, f"workers/{key}") == 202
            except (httpx.TransportError, AssertionError):
                return False

        await self.until(accepted)

    async def _ask_for(self, act: str, path: str) -> int:
        """The status that an act is answered with. Raises: TransportError, AssertionError."""
        url = f"{self._some_server().url}/DANE/{path}"
        if act == "delete":
            return (await self._client.delete(url)).status_code
        return (await self._client.post(f"{url}/{act}")).status_code

    def _some_server(self) -> Process:
        serving = [process for process in self.processes if process.url and process.alive]
        assert serving, "no server is there"
        return serving[next(self._numbers) % len(serving)]

    # --- waiting and measuring -----------------------------------------------------------------

    async def until(
        self, holds: Callable[[], bool] | Callable[[], Awaitable[bool]], within: float = PATIENCE
    ) -> None:
        """Wait until something holds that other processes bring about."""
        async with asyncio.timeout(within):
            while True:
                held = holds()
                if held if isinstance(held, bool) else await held:
                    return
                await asyncio.sleep(_LOOK)

    async def begun(self, number: int = 1, within: float = PATIENCE, **where: object) -> None:
        """Wait until so many tasks were begun, as in `begun(2, task_id=7)`."""
        await self.until(lambda: len(self.history.began(**where)) >= number, within)

    async def states(self, *ids: int) -> dict[int, str]:
        """The state of each task, of these jobs or of all."""
        query = sa.select(tasks.c.id, tasks.c.state).where(tasks.c.task_key.is_not(None))
        if ids:
            query = query.where(tasks.c.job_id.in_(ids))
        async with self.engine.connect() as connection:
            return {row.id: row.state for row in await connection.execute(query)}

    async def row(self, task_id: int) -> sa.Row[Any]:
        """A task as it stands in the table."""
        async with self.engine.connect() as connection:
            return (await connection.execute(sa.select(tasks).where(tasks.c.id == task_id))).one()

    async def is_(self, task_id: int, state: str) -> bool:
        """Whether a task is in this state."""
        return bool((await self.row(task_id)).state == state)

    async def all_are(self, job_id: int, state: str) -> bool:
        """Whether all tasks of a job are in this state."""
        return set((await self.states(job_id)).values()) == {state}

    async def is_leased(self, task_id: int) -> bool:
        """Whether a task lives on a lease in the store, and not on its message."""
        row = await self.row(task_id)
        return bool(row.leased and row.state == "running")

    async def is_running(self, task_id: int) -> bool:
        """Whether the store knows that a worker has begun a task."""
        return bool((await self.row(task_id)).state == "running")

    async def was_rejected(self, task_id: int, reason: str) -> bool:
        """Whether answers for a task were refused for this reason, and counted."""
        return await self.rejections(task_id, reason) > 0

    async def counts(self, task_id: int, reason: str, times: int) -> bool:
        return await self.rejections(task_id, reason) >= times

    async def all_settled(self, job_id: int) -> bool:
        return set((await self.states(job_id)).values()) <= SETTLED

    async def rejections(self, task_id: int, reason: str) -> int:
        query = sa.select(sa.func.coalesce(sa.func.sum(rejected.c.times), 0)).where(
            rejected.c.task_id == task_id, rejected.c.reason == reason
        )
        async with self.engine.connect() as connection:
            return int((await connection.scalars(query)).one())

    async def last_words(self, task_id: int) -> str:
        """What the API says of how the last attempt at a task ended."""
        attempts = (await self.get(f"task/{task_id}"))["Task"]["attempts"]
        return str(attempts[-1]["message"])

    async def starts(self) -> int:
        """How often tasks were let start again because they may have ended a worker."""
        async with self.engine.connect() as connection:
            return int((await connection.scalars(sa.select(sa.func.sum(tasks.c.starts)))).one())

    async def tasks_of(self, job_id: int) -> list[int]:
        """The ids of a job's tasks, in the order of its specification."""
        query = sa.select(tasks.c.id).where(tasks.c.job_id == job_id, tasks.c.task_key.is_not(None))
        async with self.engine.connect() as connection:
            return [*await connection.scalars(query.order_by(tasks.c.seq))]

    def healed(self) -> None:
        """The fault is over: from here on the time to recover is measured."""
        self._healed_at = time.monotonic()

    async def recovered(self, within: float, *ids: int) -> float:
        """Wait until these jobs, or all, have ended; the seconds since `healed`."""
        try:
            await self.until(lambda: self._all_ended(ids), within)
        except TimeoutError as late:
            late.add_note(f"not settled after {within:g} s:\n{await self._unsettled()}")
            raise
        self.seconds = time.monotonic() - (self._healed_at or time.monotonic())
        return self.seconds

    async def _unsettled(self) -> str:
        """The tasks that somebody has to move on, and how they stand."""
        columns = ("id", "job_id", "task_key", "state", "attempt", "dispatch", "worker", "leased")
        query = sa.select(*(tasks.c[name] for name in (*columns, "starts", "due_at", "queued_at")))
        query = query.where(tasks.c.state.not_in([*SETTLED, "blocked"])).limit(20)
        try:
            async with self.engine.connect() as connection:
                found = [str(row._asdict()) for row in await connection.execute(query)]
        except (DBAPIError, OSError):
            return "the database is not there"
        return "\n".join(found) or "no task, but jobs that have not ended"

    async def open_jobs(self) -> int:
        """Jobs that have not ended; very many when the database is not there."""
        query = sa.select(sa.func.count()).where(jobs.c.finished_at.is_(None))
        try:
            async with self.engine.connect() as connection:
                return int((await connection.scalars(query)).one())
        except (DBAPIError, OSError):
            return 1_000_000

    async def _all_ended(self, ids: Sequence[int]) -> bool:
        unfinished = sa.select(sa.func.count()).where(jobs.c.finished_at.is_(None))
        if ids:
            unfinished = unfinished.where(jobs.c.id.in_(ids))
        try:
            async with self.engine.connect() as connection:
                return (await connection.scalars(unfinished)).one() == 0
        except (DBAPIError, OSError):  # the database is not there now
            return False

    # --- the end -------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Write down what is seen settled, until cancelled.

        A driver may lose the cancellation (`asyncio.wait_for` in Python 3.11 does).
        """
        watch, task = evidence.Watch(self.engine, self.history), asyncio.current_task()
        while task is None or not task.cancelling():
            with suppress(DBAPIError, OSError):
                await watch.look()
            await asyncio.sleep(self.looks_every)

    def expects(self, *words: str) -> None:
        """No traceback with one of these in it, or in its message, is a surprise."""
        self._expected.update(words)

    def expects_failure(self, *ids: int) -> None:
        """These tasks fail, though no worker has written down why."""
        self._to_fail.update(ids)

    async def judge(self) -> None:
        """Have the oracle look at everything, once all is at rest; ends all processes."""
        surprises = [
            f"{process.name} ended by itself with {process.code}: {process.tail()}"
            for process in self.processes
            if not process.alive and not process.may_end
        ]
        surprises += [f"{name} has died by itself" for name in self._dead_services()]
        queues = {} if self.embedded else await self._at_rest()
        footprints = {
            process.name: (start, _footprint(process))
            for process, start in self._footprints.items()
            if process.alive
        }
        await self._stop_all()
        found = Evidence(
            events=self.history.events(),
            queues=queues,
            left_in_queues={} if self.embedded else await self._depths(),
            footprints=footprints,
            logs={process.name: process.log for process in self.processes},
            secrets=await self._known_secrets(),
            harmed={process.pid for process in self.processes if process.harmed},
            to_fail=self._to_fail,
            expected=self._expected,
            **await evidence.rows(self.engine, ahead=clocks.database_is_ahead(self.folder)),
        )
        wrong = [*surprises, *violations(found)]
        assert not wrong, "\n".join(wrong)

    async def _stop_all(self) -> None:
        """Workers first, so that somebody hears them leave, and what their watchmen have to say."""
        workers = [process for process in self.processes if process.name.startswith("worker")]
        await asyncio.gather(*(worker.stop() for worker in workers))
        if not self.embedded:
            with suppress(TimeoutError):
                await self.until(lambda: not watchmen(self.folder), 10)
            await self._at_rest()
        await asyncio.gather(*(process.stop() for process in self.processes))

    async def _at_rest(self) -> dict[str, int]:
        """What lies in the queues once it gets no less, or after a while."""
        with suppress(TimeoutError):
            await self.until(self._empty, 10)
        return await self._depths()

    async def _empty(self) -> bool:
        return not any((await self._depths()).values())

    async def _depths(self) -> dict[str, int]:
        queues = (RESPONSE_QUEUE, DEAD_QUEUE, *(work_queue(kind.key) for kind in EVERYONE))
        async with connect(self.ground.amqp_url) as exchange:
            depths = {queue: await exchange.depth(queue) for queue in queues}
        return {queue: depth.waiting for queue, depth in depths.items() if depth}

    async def _known_secrets(self) -> dict[str, str]:
        urls = (
            {}
            if self.embedded
            else {"broker": self.ground.amqp_url, "store": self.ground.mysql_url}
        )
        passwords = {
            f"the password of the {name}": unquote(urlsplit(url).password or "")
            for name, url in urls.items()
        }
        return {**passwords, "the signing key": await evidence.secret(self.engine, "tickets")}

    async def renew(self) -> None:
        """Empty the store and remove the queues that a test before has left."""
        epoch = await evidence.secret(self.engine, "epoch")
        await evidence.empty(self.engine)
        queues = (RESPONSE_QUEUE, DEAD_QUEUE, *(work_queue(kind.key) for kind in EVERYONE))
        async with connect(self.ground.amqp_url) as exchange:
            for queue in (*queues, *([epoch_queue(epoch)] if epoch else [])):
                await exchange.delete_queue(queue)

    async def close(self) -> None:
        for process in self.processes:
            await process.end()
        await self._stack.aclose()
        await self._client.aclose()
        await self.engine.dispose()

    def logs(self) -> str:
        """The last words of every process, for the message of a test that fails."""
        words = [f"--- {one.name} ({one.code}):\n{one.tail()}" for one in self.processes]
        words += [f"--- {name}:\n{log}" for name, log in self._dead_services().items()]
        return "\n".join(words)

    def _dead_services(self) -> dict[str, str]:
        """The services that are not there although they should be, and their last words."""
        if self._ground is None:
            return {}
        services = {"the broker": self._ground.broker, "the database": self._ground.database}
        return {
            name: service.last_words.replace(" | ", "\n")
            for name, service in services.items()
            if service is not None and not service.running
        }


@asynccontextmanager
async def rigged(ground: Ground, folder: Path) -> AsyncIterator[Rig]:
    """A rig on RabbitMQ and MariaDB, as new; judged at the end, unless it has failed before."""
    rig = Rig(folder, create_async_engine(ground.mysql_url, pool_pre_ping=True), embedded=False)
    rig._ground = ground
    await rig.renew()
    async with _running(rig):
        yield rig


@asynccontextmanager
async def rigged_embedded(folder: Path) -> AsyncIterator[Rig]:
    """A rig of one process, on SQLite; start it with `dev`."""
    path = folder / "dane-data" / "dane.sqlite"
    url = f"sqlite+aiosqlite:///file:{path}?mode=ro&uri=true"
    async with _running(Rig(folder, create_async_engine(url), embedded=True)) as rig:
        yield rig


@asynccontextmanager
async def _running(rig: Rig) -> AsyncIterator[Rig]:
    watching = asyncio.create_task(rig.watch())
    try:
        yield rig
        if rig.given_up:
            print(rig.logs())
        else:
            await rig.judge()
    except Exception as fault:
        fault.add_note(rig.logs())
        raise
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await rig.close()


def _key_of(spec: Json) -> str:
    return f"key-of-{spec['source_id']}".replace(" ", "-")


def _port(url: str | None) -> int | None:
    return urlsplit(url).port if url else None


def _footprint(process: Process) -> Footprint:
    return evidence.footprint(process.pid, broker=process.broker_port, store=process.store_port)


def _sent(source_id: str, key: str | None, answer: httpx.Response, *, sound: bool) -> Sent:
    good = answer.status_code == 201
    kind = answer.headers.get("content-type", "")
    body = answer.json() if "json" in kind else {}
    return Sent(
        source_id=source_id,
        status=answer.status_code,
        key=key,
        sound=sound,
        job_id=body.get("job_id") if good else None,
        content_type=kind,
        retry_after=answer.headers.get("retry-after", ""),
        paths=[] if good else [str(fault.get("path")) for fault in body.get("errors", ())],
        body="" if good else answer.text[:2000],
    )
