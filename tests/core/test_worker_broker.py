"""Long tasks and a RabbitMQ that goes away under them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Exchange
from dane_core.message import Answer, Ask, Leased, Started
from dane_core.worker.attempt import Pace
from tests.contracts.steps import eventually
from tests.core.desk import LONG, MOMENT, Desk, Gate, message, served
from tests.services.rabbitmq import Broker

pytestmark = pytest.mark.services

PATIENCE = timedelta(seconds=2)


@asynccontextmanager
async def worker(
    broker: Broker, server: Exchange, name: str, hand_off: timedelta = LONG
) -> AsyncIterator[Desk]:
    """A worker with a connection of its own, and a desk that hears it alone."""
    pace = Pace(started=MOMENT, progress=LONG, courtesy=LONG, hand_off=hand_off)
    async with (
        connect(broker.url, patience=PATIENCE) as exchange,
        served(
            Gate,
            exchange=exchange,
            seen_from=server,
            worker_id=name,
            response_queue=f"dane.responses.{name}",
            pace=pace,
        ) as (desk, _),
    ):
        yield desk


async def test_tasks_that_run_across_a_restart_of_the_broker_run_once(broker: Broker) -> None:
    """One has no message any more and notices nothing; the other's is given to somebody else."""
    Gate.entered, Gate.gate = asyncio.Queue(), asyncio.Event()
    async with (
        connect(broker.url, patience=PATIENCE) as server,
        worker(broker, server, "without", hand_off=MOMENT) as without_message,
        worker(broker, server, "with") as with_message,
    ):
        await without_message.send(message(Gate, 1), message(Gate, 2))
        on_lease = await without_message.hear(Leased)
        await with_message.hear(Started)
        async with worker(broker, server, "idle") as idle:
            back = server.reconnections()
            await asyncio.to_thread(broker.restart)
            async with asyncio.timeout(60):
                await anext(back)
            handed_off = await with_message.hear(Leased)
            desks = (without_message, with_message, idle)
            Gate.gate.set()
            answers = [await desk.hear(Answer) for desk in desks[:2]]
            judging = [asyncio.create_task(refuse_all(desk)) for desk in desks]
            await eventually(lambda: is_empty(idle))
            for task in judging:
                task.cancel()

    assert [answer.state for answer in answers] == [200, 200]
    assert [answer.ticket for answer in answers] == [on_lease.ticket, handed_off.ticket]
    assert on_lease.ticket != handed_off.ticket
    assert Gate.entered.qsize() == 2


async def refuse_all(desk: Desk) -> None:
    """What a server says of a task that runs, or has run, elsewhere."""
    while True:
        await desk.judge(await desk.hear(Ask), run=False)


async def is_empty(desk: Desk) -> bool:
    return await desk.waiting(Gate) == 0
