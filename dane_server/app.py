"""The composition root: opens everything, connects it, and runs it until told to stop."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, Final, Literal

import uvicorn

from dane_core.errors import BadSettings, DaneError, Fault
from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from dane_core.routing import DEAD_QUEUE
from dane_core.settings import bracketed
from dane_core.worker import attempt
from dane_core.worker.serve import Serving, serve
from dane_core.worker.worker import Worker
from dane_server.api import create_api
from dane_server.bind import listen
from dane_server.metrics import Metrics
from dane_server.runner.backlog import MostOpen
from dane_server.runner.bell import LocalBell, RemoteBell
from dane_server.runner.doctor import Doctor
from dane_server.runner.pace import Pace
from dane_server.runner.retention import Housekeeper, keep_of
from dane_server.runner.runner import RECORDER, Runner
from dane_server.runner.submit import Folders
from dane_server.settings import ServerSettings
from dane_server.storage import migrate
from dane_server.storage.access import Access
from dane_server.storage.engine import Store, open_store
from dane_server.storage.sweeps import Sweeps
from dane_server.supervise import keep_running

logger = logging.getLogger(__name__)

Role = Literal["api", "runner"]
ROLES: Final[frozenset[Role]] = frozenset({"api", "runner"})

#: A broker is given this long to confirm what was sent.
_PUBLISHING: Final = timedelta(seconds=5)
#: Open requests get this long to end after a signal, in seconds.
_GRACE: Final = 10
#: What is being sent and recorded gets this long after a signal, in seconds. For as much of it as
#: that takes, and this long at most, requests are taken still: who asks hears "not ready".
_BATCHES: Final = 10.0
_NOT_READY: Final = 5.0
#: Answers that workers gave while stopping get this long to be recorded, in one process.
_LAST_ANSWERS: Final = 5.0


async def run_server(
    settings: ServerSettings,
    *,
    roles: frozenset[Role] = ROLES,
    workers: Sequence[type[Worker]] = (),
    slots: int = 2,
    port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    heed_signals: bool = True,
) -> None:
    """Serve until `stop` is set or a SIGTERM or SIGINT comes; a second signal exits at once.

    `workers` run in this process, `slots` tasks at once. `on_ready` gets the URL once the
    server answers; port 0 takes a free one. Raises: UnsafeBind, BadSettings, StoreTaken,
    StoreOutdated, StoreUnreachable, ExchangeUnreachable, QueueMismatch.
    """
    stop = stop or asyncio.Event()
    _check_roles(settings, roles)
    signals = _told_by_signals(stop) if heed_signals else nullcontext()
    with _listening(settings, roles, port) as door, signals:
        async with (
            open_store(settings.store_url) as store,
            store.apart() as apart,
            _exchange(settings) as exchange,
        ):
            await _prepare(store, exchange, starts=settings.RUNNER.STARTS)
            if "runner" in roles:
                for queue in (DEAD_QUEUE, settings.RABBITMQ.RESPONSE_QUEUE):
                    await exchange.declare_queue(queue)  # in the way: better known at once
            # Whatever the API is asked, it cannot use up the connections that move jobs.
            access = Access.to(store, cancel_grace=settings.RUNNER.CANCEL_GRACE)
            moving = Access.to(apart)
            server = _Server(settings, access, exchange, roles=roles, moving=moving)
            try:
                await server.run(door, workers, slots=slots, on_ready=on_ready, stop=stop)
            except* DaneError as faults:
                raise faults.exceptions[0] from None


@asynccontextmanager
async def open_doctor(settings: ServerSettings, exchange: Exchange | None) -> AsyncIterator[Doctor]:
    """A doctor of the store that is meant, beside servers that run or without any.

    Raises: StoreTaken, when a server holds the SQLite file; StoreUnreachable, once asked.
    """
    queue = settings.RABBITMQ.RESPONSE_QUEUE
    async with open_store(settings.store_url) as store:
        yield Doctor(
            access=Access.to(store),
            exchange=exchange,
            bell=LocalBell() if exchange is None else RemoteBell(exchange, queue),
            pace=_pace(settings),
            response_queue=queue,
        )


@asynccontextmanager
async def open_housekeeper(settings: ServerSettings) -> AsyncIterator[Housekeeper]:
    """Whoever removes what is old, without a server. Raises: StoreTaken."""
    async with open_store(settings.store_url) as store:
        await migrate.check(store)
        access = Access.to(store)
        yield Housekeeper(
            retention=access.retention,
            turns=access.turns,
            metrics=Metrics(),
            keep=keep_of(settings.RETENTION),
        )


class _Server:
    """The parts of one server process, and the order in which they start and stop."""

    def __init__(
        self,
        settings: ServerSettings,
        access: Access,
        exchange: Exchange,
        *,
        roles: frozenset[Role],
        moving: Access,
    ) -> None:
        self._settings = settings
        self._exchange = exchange
        self._reader = access.reader
        self._metrics = Metrics()
        self._runner = Runner(
            access=access,
            moving=moving,
            exchange=exchange,
            folders=Folders(
                temp=settings.DANE_SERVER.TEMP_FOLDER, out=settings.DANE_SERVER.OUT_FOLDER
            ),
            pace=_pace(settings),
            response_queue=settings.RABBITMQ.RESPONSE_QUEUE,
            remote="runner" not in roles,
            metrics=self._metrics,
        )

    async def run(
        self,
        door: socket.socket | None,
        workers: Sequence[type[Worker]],
        *,
        slots: int,
        on_ready: Callable[[str], None] | None,
        stop: asyncio.Event,
    ) -> None:
        """Start everything; once told to stop, end it in the order that loses nothing.

        First nothing more is claimed, then there are no more requests, then no more tasks, then
        the last answers are recorded.
        """
        async with asyncio.TaskGroup() as group:
            moving = await self._start_moving(group)
            loops = [group.create_task(keep_running("event loop", self._metrics.watch_loop))]
            team = _Team(workers, self._exchange, self._serving(door, slots))
            if workers:
                loops.append(group.create_task(keep_running("workers", team.work)))
            if door is not None:
                web = _Web(self._api(), on_started=lambda: _announce(door, on_ready))
                serving = group.create_task(web.serve(sockets=[door]))
                serving.add_done_callback(lambda _: stop.set())
            await stop.wait()
            until = time.monotonic() + _BATCHES
            await _ended(self._stop_moving(moving, recording=bool(workers)), _NOT_READY)
            if door is not None:
                web.should_exit = True
                await serving
            await team.drain()
            await self._last_answers()
            self._runner.recorded.tell()
            left = max(until - time.monotonic(), _LAST_ANSWERS if workers else 0.0)
            await _ended(moving.values(), left)
            for loop in (*loops, *moving.values()):
                loop.cancel()

    async def _start_moving(self, group: asyncio.TaskGroup) -> dict[str, asyncio.Task[None]]:
        runner = self._runner
        return {
            name: group.create_task(
                keep_running(
                    name, run, stopping=runner.recorded if name == RECORDER else runner.stopping
                )
            )
            for name, run in (await runner.loops()).items()
        }

    def _stop_moving(
        self, moving: dict[str, asyncio.Task[None]], *, recording: bool
    ) -> list[asyncio.Task[None]]:
        """Tell all to stop, but who is still `recording` for workers here; returns those told."""
        self._runner.stopping.tell()
        if not recording:
            self._runner.recorded.tell()
        return [loop for name, loop in moving.items() if not recording or name != RECORDER]

    def _api(self) -> Any:
        return create_api(
            runner=self._runner,
            reader=self._reader,
            settings=self._settings,
            exchange=self._exchange,
        )

    def _serving(self, door: socket.socket | None, slots: int) -> Serving:
        return Serving(
            slots=slots,
            grace=self._settings.WORKER.GRACE,
            beat=self._settings.WORKER.BEAT,
            pace=attempt.Pace(hand_off=self._settings.WORKER.HAND_OFF),
            api_url=_url(door) if door is not None else None,
            response_queue=self._settings.RABBITMQ.RESPONSE_QUEUE,
        )

    async def _last_answers(self) -> None:
        """Answers that wait in this process would be gone with it."""
        if not isinstance(self._exchange, MemoryExchange):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWERS):
                while await self._waiting_answers():  # noqa: ASYNC110 - no event for "empty"
                    await asyncio.sleep(0.01)

    async def _waiting_answers(self) -> bool:
        depth = await self._exchange.depth(self._settings.RABBITMQ.RESPONSE_QUEUE)
        return depth is not None and depth.waiting > 0


class _Team:
    """Workers in the server's own process."""

    def __init__(
        self, workers: Sequence[type[Worker]], exchange: Exchange, serving: Serving
    ) -> None:
        self._workers = workers
        self._exchange = exchange
        self._serving = serving
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()

    async def work(self) -> None:
        """Serve until drained, then stay idle, so that nobody starts it again."""
        await serve(self._workers, self._exchange, self._serving, draining=self._draining)
        if self._draining.is_set():
            self._drained.set()
            await asyncio.Event().wait()

    async def drain(self) -> None:
        """Take no more tasks, and wait for those that run, for the grace time at most."""
        if not self._workers:
            return
        self._draining.set()
        grace = self._serving.grace + timedelta(seconds=_GRACE)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace.total_seconds()):
                await self._drained.wait()


class _Web(uvicorn.Server):
    """Uvicorn, with the signals left to us: it would wait for open requests for ever."""

    def __init__(self, api: Any, on_started: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                api,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE,
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._on_started = on_started

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


async def _ended(loops: Collection[asyncio.Task[None]], patience: float) -> None:
    """Wait until all have ended, for some seconds at most."""
    if loops:
        await asyncio.wait(loops, timeout=patience)


def _announce(door: socket.socket, on_ready: Callable[[str], None] | None) -> None:
    if on_ready is not None:
        on_ready(_url(door))


def _url(door: socket.socket) -> str:
    host, port = door.getsockname()[:2]
    return f"http://{bracketed(host)}:{port}"


def _check_roles(settings: ServerSettings, roles: frozenset[Role]) -> None:
    """Parts in several processes meet on a broker and a database, or not at all."""
    in_memory = settings.exchange_url.startswith("memory:")
    embedded = settings.store_url.startswith("sqlite")
    faults = []
    if roles != ROLES and in_memory:
        faults.append(Fault("EXCHANGE.URL", "--role needs a RabbitMQ where all processes meet"))
    elif in_memory and not embedded:
        # Each would take for lost, at its start, what the others have in their memory.
        told = "a MariaDB may have several servers, and they need a RabbitMQ where they meet"
        faults.append(Fault("EXCHANGE.URL", told))
    if roles != ROLES and embedded:
        faults.append(Fault("STORE.URL", "--role needs a MariaDB that all processes share"))
    if faults:
        raise BadSettings(faults)


@contextmanager
def _listening(
    settings: ServerSettings, roles: frozenset[Role], port: int | None
) -> Iterator[socket.socket | None]:
    """Hold the door before anything else starts; a runner has none."""
    if "api" not in roles:
        yield None
        return
    with listen(settings.DANE.HOST, settings.DANE.PORT if port is None else port) as door:
        yield door


@contextmanager
def _told_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _exchange(settings: ServerSettings) -> AsyncIterator[Exchange]:
    if settings.exchange_url.startswith("memory:"):
        yield MemoryExchange()
        return
    from dane_core.exchange.amqp import connect  # noqa: PLC0415 - embedded needs no broker library

    async with connect(
        settings.exchange_url, name="dane-server", task_exchange=settings.RABBITMQ.EXCHANGE
    ) as exchange:
        yield exchange


async def _prepare(store: Store, exchange: Exchange, *, starts: int) -> None:
    """See to the tables: an embedded store is brought up to date, a shared one only checked."""
    if store.engine.dialect.name == "sqlite":
        await migrate.upgrade(store)
    await migrate.check(store)
    if isinstance(exchange, MemoryExchange):
        await Sweeps(store).recover_from_lost_exchange(limit=starts)


def _pace(settings: ServerSettings) -> Pace:
    chosen = settings.RUNNER
    if not settings.exchange_url.startswith("memory:") and chosen.LEASE <= 2 * _PUBLISHING:
        # Legal all the same: what is sent twice is recorded once.
        logger.warning(
            "RUNNER.LEASE should be more than %g s: a broker may take half of that to confirm, "
            "and what was not confirmed by then is sent twice",
            2 * _PUBLISHING.total_seconds(),
        )
    return Pace(
        window=chosen.WINDOW,
        batch=chosen.BATCH,
        sweep=chosen.SWEEP,
        lease=chosen.LEASE,
        starts=chosen.STARTS,
        patience=chosen.PATIENCE,
        overtime=chosen.OVERTIME,
        lost_after=chosen.LOST_AFTER,
        cancel_grace=chosen.CANCEL_GRACE,
        ageing=chosen.AGEING,
        check=chosen.CHECK,
        keep=keep_of(settings.RETENTION),
        most_open=MostOpen(
            of_all=settings.LIMITS.OPEN_TASKS, of_owner=settings.LIMITS.OPEN_TASKS_PER_OWNER
        ),
    )
