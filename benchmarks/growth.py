"""B5: one job of ever more tasks side by side, and a long chain: what a task costs there.

With what must stay bounded: the server's memory, the queue, and how long its event loop stalls.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel

from benchmarks.chain import chain
from benchmarks.dane import dane
from benchmarks.fan_out import fan_out
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from dane_core.routing import work_queue

_FEW: Final = 1_000
_WINDOW: Final = 1_000
_STALL: Final = "dane_event_loop_stall_seconds"
_GLANCE: Final = 0.1


async def _dane(ground: Ground) -> dict[str, float]:
    many = ground.size.of(trial=3_000, usual=10_000, whole=100_000)
    async with dane(ground) as contender, _deepest(ground) as depths:
        few_rate = await fan_out(contender, _FEW)
        await contender.gauge(_STALL)  # begins to look for the worst anew
        cheap = {"1k tasks": 1000 / few_rate}
        for tasks in sorted({ground.size.of(trial=2_000, usual=10_000), many}):
            cheap[f"{tasks // 1000}k tasks"] = 1000 / await fan_out(contender, tasks)
        most = cheap[f"{many // 1000}k tasks"]
        steps = ground.size.of(trial=100, usual=1_000, whole=10_000)
        short = await chain(contender, steps // 10)
        long = await chain(contender, steps)
        return {
            **cheap,
            "most ÷ 1k": most / cheap["1k tasks"],
            f"chain of {steps // 10}": short,
            f"chain of {steps}": long,
            "longer ÷ shorter chain": long / short,
            "server's memory": contender.server.peak_memory,
            "deepest queue": float(max(depths)),
            "worst stall": 1000 * await contender.gauge(_STALL),
        }


@asynccontextmanager
async def _deepest(ground: Ground) -> AsyncIterator[list[int]]:
    """How many messages wait in the queue of the work, at every look."""
    depths = [0]
    async with await aio_pika.connect(ground.amqp_url) as connection:
        channel = await connection.channel()
        looking = asyncio.create_task(_look(channel, depths))
        try:
            yield depths
        finally:
            looking.cancel()
            await asyncio.wait([looking])


async def _look(channel: AbstractChannel, depths: list[int]) -> None:
    while True:
        queue = await channel.declare_queue(work_queue("NOOP"), passive=True)
        depths.append(queue.declaration_result.message_count or 0)
        await asyncio.sleep(_GLANCE)


GROWTH: Final = Benchmark(
    number=5,
    title="growth",
    unit="ms/task",
    units={
        "most ÷ 1k": "",
        "longer ÷ shorter chain": "",
        "server's memory": "MB",
        "deepest queue": "messages",
        "worst stall": "ms",
    },
    contenders={"DANE": _dane},
    targets=[
        Target(figure="most ÷ 1k", at_most=1.2),
        Target(figure="longer ÷ shorter chain", at_most=1.2),
        Target(figure="server's memory", at_most=300.0, always=True),
        Target(figure="deepest queue", at_most=_WINDOW, always=True),
        Target(figure="worst stall", at_most=100.0, always=True),
    ],
)
