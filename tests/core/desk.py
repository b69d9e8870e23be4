"""The server's side of the wire, for tests of a worker process."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel

from dane_core import TaskContext, Worker
from dane_core.errors import BadMessage
from dane_core.exchange.base import Exchange, Fate, Subscription
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId, TaskId
from dane_core.message import (
    Ask,
    Control,
    Hello,
    Report,
    TaskMessage,
    Ticket,
    Verdict,
    open_reports,
)
from dane_core.routing import RESPONSE_QUEUE, work_queue
from dane_core.worker.attempt import Pace
from dane_core.worker.serve import Serving, serve

R = TypeVar("R", bound=Report)
S = TypeVar("S", bound=Report)

MOMENT = timedelta(milliseconds=20)
LONG = timedelta(hours=1)

#: Nothing is said, and nobody loses patience, unless a test wants it.
QUIET = Serving(
    worker_id="w1",
    grace=LONG,
    hello_every=LONG,
    ask_patience=LONG,
    pace=Pace(started=LONG, progress=MOMENT, courtesy=LONG),
)


def message(worker: type[Worker], number: int = 1, **changes: Any) -> TaskMessage:
    """Task `number` for a worker, sent well after the worker was welcomed."""
    whole = TaskMessage(
        ticket=Ticket(task_id=TaskId(number), attempt=1, dispatch=1, token="t"),
        job_id=JobId(1),
        source_url="/x",
        source_id="x",
        type="video",
        priority=1,
        metadata={},
        key=worker.key,
        name=None,
        args={},
        timeout=None,
        response={},
        sent_at=time.time() + 60,
    )
    return replace(whole, **changes)


class Echo(Worker):
    """Answers its arguments at once."""

    key = "ECHO"

    class Args(BaseModel):
        say: str = ""

    async def work(self, task: TaskContext, args: Args) -> dict[str, Any]:
        return {"said": args.say, "attempt": task.attempt}


class Gate(Worker):
    """Works until the test opens the gate, or the task is cancelled."""

    key = "GATE"
    entered: ClassVar[asyncio.Queue[int]]
    gate: ClassVar[asyncio.Event]

    async def work(self, task: TaskContext) -> dict[str, Any]:
        await self.entered.put(int(task.task_id))
        task.progress(0.5, "half")
        ways_out = [asyncio.create_task(self.gate.wait()), asyncio.ensure_future(_heard(task))]
        try:
            await asyncio.wait(ways_out, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways_out:
                way.cancel()
        return {"cancelled": bool(task.cancelled)}


async def _heard(task: TaskContext) -> None:
    await task.cancelled


class Deaf(Gate):
    """Works until the gate is opened or somebody makes it stop."""

    key = "DEAF"

    async def work(self, task: TaskContext) -> dict[str, Any]:
        await self.entered.put(int(task.task_id))
        await self.gate.wait()
        return {}


class Desk:
    """What a server hears from its workers, and tells them."""

    def __init__(self, exchange: Exchange, reports: Subscription) -> None:
        self.exchange = exchange
        self.heard: list[Report] = []
        self._unheard: list[Report] = []
        self._reports = reports
        self.welcomes = True

    async def send(self, *messages: TaskMessage) -> None:
        fates = await self.exchange.publish(
            [(message.routing_key, message.seal(RESPONSE_QUEUE)) for message in messages]
        )
        assert set(fates) == {Fate.ROUTED}

    async def hear(self, kind: type[R]) -> R:
        """The next report of a kind; others are kept for who wants to hear them."""
        return await self.hear_either(kind, kind)

    async def hear_either(self, one: type[R], other: type[S]) -> R | S:
        """The next report of two kinds."""
        async with asyncio.timeout(60):
            while True:
                for report in self._unheard:
                    if isinstance(report, one | other):
                        self._unheard.remove(report)
                        return report
                (delivery,) = await self._reports.take(1)
                await self._reports.ack(delivery)
                for _, said in open_reports(delivery.envelope):
                    assert not isinstance(said, BadMessage), said
                    if isinstance(said, Hello) and said.listening and self.welcomes:
                        await self.welcome(said)
                    self.heard.append(said)
                    self._unheard.append(said)

    async def tell(self, act: str, **about: Any) -> None:
        await self.exchange.broadcast(Control(act=act, **about).seal())

    async def welcome(self, hello: Hello, **about: Any) -> None:
        word = {"act": "welcome", "listening": hello.listening, **about}
        await self.exchange.send(hello.inbox, [Control(**word).seal()])

    async def see_welcomed(self) -> None:
        """Wait until the worker has heard its welcome."""
        await self.tell("roll")
        while (hello := await self.hear(Hello)).listening:
            self.heard.remove(hello)
        self.heard.remove(hello)

    async def judge(self, ask: Ask, *, run: bool) -> None:
        verdict = Verdict(ticket=ask.ticket, run=run, reason="as the test says")
        await self.exchange.send(ask.reply_to, [verdict.seal()])

    async def waiting(self, worker: type[Worker]) -> int:
        depth = await self.exchange.depth(work_queue(worker.key))
        assert depth is not None
        return depth.waiting


@asynccontextmanager
async def served(
    *workers: type[Worker],
    exchange: Exchange | None = None,
    seen_from: Exchange | None = None,
    before: Sequence[TaskMessage] = (),
    draining: asyncio.Event | None = None,
    welcome: bool = True,
    **changes: Any,
) -> AsyncIterator[tuple[Desk, "asyncio.Task[None]"]]:
    """A worker process that has said hello, and the desk it talks to.

    The desk may have an exchange of its own, `seen_from`. Tasks in `before` are in the queues
    before the worker is there.
    """
    exchange = exchange or MemoryExchange()
    ours = seen_from or exchange
    serving_as = replace(QUIET, **changes)
    await ours.declare_queue(serving_as.response_queue)
    for worker in workers if before else ():
        await ours.declare_queue(work_queue(worker.key), [f"#.{worker.key}"])
    async with ours.consume(serving_as.response_queue, prefetch=100) as reports:
        desk = Desk(ours, reports)
        desk.welcomes = welcome
        if before:
            await desk.send(*(replace(each, sent_at=time.time()) for each in before))
        serving = asyncio.create_task(serve(workers, exchange, serving_as, draining=draining))
        try:
            await first(desk.hear(Hello), serving)
            if welcome:
                await first(desk.see_welcomed(), serving)
            yield desk, serving
        finally:
            serving.cancel()
            await asyncio.wait({serving})


async def first(hearing: Any, serving: "asyncio.Task[None]") -> None:
    """Wait to hear something, or for the fault that keeps it from being said."""
    task = asyncio.ensure_future(hearing)
    await asyncio.wait({task, serving}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        task.cancel()
        serving.result()
    await task
