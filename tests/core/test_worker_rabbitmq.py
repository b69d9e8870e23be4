"""A worker process over RabbitMQ: what only a broker and a wire can do to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from dane_core import Worker
from dane_core.exchange.amqp import AmqpExchange, connect
from dane_core.exchange.base import Depth
from dane_core.message import Answer, Ask, Goodbye, Hello
from dane_core.routing import work_queue
from dane_core.worker.attempt import Pace
from tests.contracts.steps import eventually, exchange_names
from tests.core import zoo
from tests.core.desk import LONG, Desk, Echo, Gate, message, served
from tests.services.proxy import Proxy, proxy_to

pytestmark = pytest.mark.services

PATIENCE = timedelta(seconds=5)
#: A task that runs for a moment goes on without its message.
HASTY = Pace(started=LONG, progress=LONG, courtesy=LONG, hand_off=timedelta(milliseconds=200))


class Wire(NamedTuple):
    """The worker's end, which can be cut, and the server's."""

    worker: AmqpExchange
    server: AmqpExchange
    proxy: Proxy


@pytest.fixture
async def wire(amqp_url: str) -> AsyncIterator[Wire]:
    names = exchange_names()
    async with (
        proxy_to(amqp_url) as proxy,
        connect(proxy.url, patience=PATIENCE, **names) as worker,
        connect(amqp_url, patience=PATIENCE, **names) as server,
    ):
        for key in (Echo, Gate, zoo.Tame):
            await server.delete_queue(work_queue(key.key))
        yield Wire(worker, server, proxy)


@pytest.fixture(autouse=True)
def gate() -> None:
    Gate.entered, Gate.gate = asyncio.Queue(), asyncio.Event()


def served_over(
    wire: Wire, *workers: type[Worker], **changes: Any
) -> AbstractAsyncContextManager[tuple[Desk, "asyncio.Task[None]"]]:
    return served(
        *workers,
        exchange=wire.worker,
        seen_from=wire.server,
        response_queue=f"dane.responses.{uuid4().hex[:8]}",
        worker_id=f"w-{uuid4().hex[:8]}",
        **changes,
    )


async def test_tasks_are_done_in_children_and_on_the_loop(wire: Wire) -> None:
    async with served_over(wire, Echo, zoo.Tame, slots=4) as (desk, _):
        await desk.send(*(message(Echo, number) for number in range(1, 21)))
        await desk.send(*(message(zoo.Tame, number) for number in range(21, 41)))
        answers: list[Answer] = []
        while len(answers) < 40:
            report = await desk.hear_either(Answer, Ask)
            if isinstance(report, Ask):  # one that went back to its queue while all were busy
                await desk.judge(report, run=True)
            else:
                answers.append(report)

        assert {answer.state for answer in answers} == {200}
        assert {answer.ticket.task_id for answer in answers} == set(range(1, 41))


async def test_many_slots_and_keys_share_one_connection(wire: Wire) -> None:
    async with served_over(wire, Echo, Gate, slots=100) as (desk, _):
        await desk.send(*(message(Gate, number) for number in range(1, 121)))
        for _ in range(100):
            await Gate.entered.get()

        assert await desk.waiting(Gate) == 20


async def test_a_running_task_survives_a_cut_wire_and_is_not_run_twice(wire: Wire) -> None:
    """The broker gives its message out again, to the very worker that still works on it."""
    async with served_over(wire, Gate, slots=2) as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
        wire.proxy.cut()
        hello = await desk.hear(Hello)
        assert hello.fresh
        assert [ticket.task_id for ticket in hello.running] == [1]
        Gate.gate.set()

        assert (await desk.hear(Answer)).ticket.task_id == 1
        await desk.send(message(Gate, 2))
        while not isinstance(said := await desk.hear_either(Answer, Ask), Answer):
            await desk.judge(said, run=False)
        assert said.ticket.task_id == 2
        assert Gate.entered.get_nowait() == 2
        await eventually(lambda: is_empty(desk))


async def test_an_answer_waits_out_a_broken_wire(
    wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with served_over(wire, Gate) as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
        wire.proxy.refuse()
        Gate.gate.set()
        await eventually(lambda: was_said("Answer is unknown", caplog))
        wire.proxy.mend()

        assert (await desk.hear(Answer)).ticket.task_id == 1


async def test_a_drained_worker_leaves_the_rest_in_the_queue(wire: Wire) -> None:
    draining = asyncio.Event()
    async with served_over(wire, Gate, slots=2, draining=draining) as (desk, serving):
        await desk.send(*(message(Gate, number) for number in range(1, 6)))
        await Gate.entered.get()
        await Gate.entered.get()
        draining.set()
        Gate.gate.set()
        await desk.hear(Answer)
        await desk.hear(Answer)
        await desk.hear(Goodbye)
        await serving

        assert await desk.waiting(Gate) == 3


async def test_ten_lanes_begin_ten_equal_tasks_at_once_and_hold_no_others(wire: Wire) -> None:
    """A lane with a long task would else hold the next one, while another lane is idle."""
    async with AsyncExitStack() as lanes:
        for _ in range(10):
            desk, _ = await lanes.enter_async_context(served_over(wire, Gate, pace=HASTY))
        await desk.send(*(message(Gate, number) for number in range(1, 14)))
        async with asyncio.timeout(10):
            begun = {await Gate.entered.get() for _ in range(10)}
        await eventually(lambda: depth_is(desk, Depth(waiting=3, consumers=0)))

        assert len(begun) == 10
        assert Gate.entered.empty()


async def depth_is(desk: Desk, expected: Depth) -> bool:
    return await desk.exchange.depth(work_queue(Gate.key)) == expected


async def is_empty(desk: Desk) -> bool:
    return await desk.waiting(Gate) == 0


async def was_said(text: str, caplog: pytest.LogCaptureFixture) -> bool:
    return text in caplog.text
