"""B9: the fan-out in one process, on SQLite and the exchange inside, beside the real ones."""

import time
from typing import Final

from benchmarks.dane import dane, embedded, job
from benchmarks.fan_out import fan_out
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target


def _tasks(ground: Ground) -> int:
    return ground.size.of(trial=500, usual=5_000)


async def _embedded(ground: Ground) -> float:
    tasks = _tasks(ground)
    async with embedded(ground) as contender:
        began = time.perf_counter()
        await contender.finish(job({"taskParallel": ["NOOP"] * tasks}))
        return tasks / (time.perf_counter() - began)


async def _real(ground: Ground) -> float:
    async with dane(ground) as contender:
        return await fan_out(contender, _tasks(ground))


EMBEDDED: Final = Benchmark(
    number=9,
    title="embedded",
    unit="tasks/s",
    contenders={"embedded": _embedded, "MariaDB and RabbitMQ": _real},
    targets=[Target(figure="embedded", of="MariaDB and RabbitMQ", at_least=1.0)],
)
