"""A runner at work on a store and an exchange, and workers that answer as a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_core.message import Answer, Hello, Offer, TaskMessage, open_task
from dane_core.routing import RESPONSE_QUEUE, binding_keys, inbox_queue, work_queue
from dane_core.states import JobStatus
from dane_server.runner.pace import Pace
from dane_server.runner.runner import Runner
from dane_server.runner.submit import Folders
from dane_server.storage.access import Access
from dane_server.supervise import keep_running
from tests.server.ledger import Ledger, spec

DEADLINE = 15.0
#: Nothing happens by the clock: what a test sees was caused by a message.
PATIENT = Pace(lease=timedelta(hours=1), sweep=timedelta(hours=1), route_again=timedelta(hours=1))
#: Whatever was lost is found again soon.
HASTY = Pace(
    lease=timedelta(seconds=0.5), sweep=timedelta(seconds=0.1), route_again=timedelta(hours=1)
)

#: What a worker makes of a task; None: nothing, and the message stays with it.
Script = Callable[[TaskMessage], Answer | None]


def done(task: TaskMessage, **response: Any) -> Answer:
    return Answer(ticket=task.ticket, state=200, message="Success", response=response)


def failed(task: TaskMessage, state: int = 500) -> Answer:
    return Answer(ticket=task.ticket, state=state, message="no", response={})


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look again and again until something holds; fail after the deadline."""
    async with asyncio.timeout(DEADLINE):
        while not await holds():  # noqa: ASYNC110 - there is no event for "anything"
            await asyncio.sleep(0.005)


@dataclass
class Office:
    """A runner and those who work for it."""

    ledger: Ledger
    exchange: Exchange
    runner: Runner
    group: asyncio.TaskGroup
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    seen: list[TaskMessage] = field(default_factory=list)

    def keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside the test, until its end."""
        self.tasks.append(self.group.create_task(work))
        return self.tasks[-1]

    async def open(self, runner: Runner) -> None:
        """Start the loops of a runner."""
        for name, run in (await runner.loops()).items():
            self.keep(keep_running(name, run, pause=0.01))

    async def submit(self, tasks: Any, **members: Any) -> JobId:
        return (await self.runner.submit(spec(tasks, **members))).job_id

    async def ended(self, job: JobId, status: JobStatus = JobStatus.SUCCEEDED) -> None:
        """Wait until a job has a status."""

        async def holds() -> bool:
            return await self.ledger.status(job) is status

        await until(holds)

    async def hire(
        self, *keys: str, script: Script = done, name: str = "w1", types: tuple[str, ...] = ()
    ) -> asyncio.Task[None]:
        """Let a worker bind its queues, say hello, and work until it is cancelled."""
        for key in keys:
            await self.exchange.declare_queue(work_queue(key), binding_keys(key, types))
        offers = tuple(Offer(key=key, types=types) for key in keys)
        hello = Hello(
            worker=name,
            host="h",
            pid=1,
            slots=1,
            inbox=inbox_queue(name),
            offers=offers,
            fresh=True,
        )
        await self.exchange.declare_queue(RESPONSE_QUEUE)
        await self.exchange.send(RESPONSE_QUEUE, [hello.seal()])
        return self.keep(self._work(keys, script))

    async def _work(self, keys: Sequence[str], script: Script) -> None:
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(self._work_on(key, script))

    async def _work_on(self, key: str, script: Script) -> None:
        async with self.exchange.consume(work_queue(key), prefetch=100) as deliveries:
            while True:
                for delivery in await deliveries.take(100):
                    task = open_task(delivery.envelope)
                    self.seen.append(task)
                    if (answer := script(task)) is not None:
                        await self.exchange.send(RESPONSE_QUEUE, [answer.seal()])
                        await deliveries.ack(delivery)

    def seen_keys(self) -> list[str]:
        return [task.key for task in self.seen]


def new_runner(
    ledger: Ledger, exchange: Exchange, pace: Pace = PATIENT, *, remote: bool = False
) -> Runner:
    return Runner(
        access=Access.to(ledger.store),
        exchange=exchange,
        folders=Folders(temp=Path("/srv/TEMP"), out=Path("/srv/OUT")),
        pace=pace,
        remote=remote,
    )


@asynccontextmanager
async def at_work(
    ledger: Ledger, *, pace: Pace = PATIENT, exchange: Exchange | None = None
) -> AsyncIterator[Office]:
    """A runner with its loops running, until the block ends."""
    exchange = exchange or MemoryExchange()
    runner = new_runner(ledger, exchange, pace)
    async with asyncio.TaskGroup() as group:
        office = Office(ledger, exchange, runner, group)
        await office.open(runner)
        try:
            yield office
        finally:
            for task in office.tasks:
                task.cancel()
