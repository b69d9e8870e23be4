"""The bare loop as a contender: publish, consume, answer, consume, and nothing kept.

No database and no product: the naive limit of the wire on this machine. Both ends pipeline
their publishes and have everything confirmed, as DANE does.
`python -m benchmarks.bare work` is its worker, `… post NUMBER` its client.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
import orjson
import uvloop
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.ground import Ground, python

_URL: Final = "BARE_AMQP_URL"
_EXCHANGE: Final = "bare.tasks"
_WORK: Final = "bare.NOOP"
_REPLIES: Final = "bare.replies"
_PREFETCH: Final = 50
_IN_FLIGHT: Final = 500
_TASK: Final = orjson.dumps(
    {
        "job_id": 1,
        "task_id": 2,
        "source_url": "http://127.0.0.1/x",
        "source_id": "T1",
        "task_key": "NOOP",
        "args": {},
        "shared": {"TEMP_FOLDER": "/x/y/z", "OUT_FOLDER": "/x/y/z"},
    }
)
_ANSWER: Final = orjson.dumps({"state": 200, "message": "Success"})


@asynccontextmanager
async def bare(ground: Ground) -> AsyncIterator["Bare"]:
    """A running worker of the bare loop, with 200 tasks behind it."""
    command = python("-m", "benchmarks.bare", "work")
    async with ground.process(*command, **{_URL: ground.amqp_url}) as worker:
        await worker.says("ready")
        contender = Bare(ground)
        await contender.finish(200)
        yield contender


class Bare:
    """The bare loop, running."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def finish(self, number: int) -> float:
        """Send tasks and take their answers; seconds for all of it."""
        command = python("-m", "benchmarks.bare", "post", str(number))
        async with self._ground.process(*command, **{_URL: self._ground.amqp_url}) as client:
            return float((await client.says("\n", within=600)).splitlines()[0])


async def _work() -> None:
    connection = await aio_pika.connect_robust(os.environ[_URL])
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(_PREFETCH)
    exchange = await channel.declare_exchange(_EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
    queue = await channel.declare_queue(_WORK, durable=True, arguments={"x-max-priority": 10})
    await queue.bind(exchange, "#.NOOP")

    async def answer(task: AbstractIncomingMessage) -> None:
        orjson.loads(task.body)
        reply = aio_pika.Message(_ANSWER, delivery_mode=2, correlation_id=task.correlation_id)
        await channel.default_exchange.publish(reply, task.reply_to or "")
        await task.ack()

    await queue.consume(answer)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Future()


async def _post(number: int) -> None:
    async with await aio_pika.connect_robust(os.environ[_URL]) as connection:
        sending = await connection.channel(publisher_confirms=True)
        hearing = await connection.channel()
        await hearing.set_qos(_IN_FLIGHT)
        exchange = await sending.get_exchange(_EXCHANGE)
        replies = await hearing.declare_queue(_REPLIES, durable=True)
        all_here = asyncio.Event()
        heard = 0

        async def hear(reply: AbstractIncomingMessage) -> None:
            nonlocal heard
            orjson.loads(reply.body)
            await reply.ack()
            heard += 1
            if heard == number:
                all_here.set()

        await replies.consume(hear)
        room = asyncio.Semaphore(_IN_FLIGHT)

        async def send(task_id: int) -> None:
            task = aio_pika.Message(
                _TASK,
                delivery_mode=2,
                priority=1,
                correlation_id=str(task_id),
                reply_to=_REPLIES,
            )
            async with room:
                await exchange.publish(task, "unknown.NOOP", mandatory=True)

        began = time.perf_counter()
        await asyncio.gather(*[send(task_id) for task_id in range(number)])
        await all_here.wait()
        sys.stdout.write(f"{time.perf_counter() - began}\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["work"]:
            uvloop.run(_work())
        case ["post", number]:
            uvloop.run(_post(int(number)))
