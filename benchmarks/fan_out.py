"""B1: one job of many parallel no-op tasks, from the POST to the finished job in the database."""

import time
from typing import Final

from benchmarks.bare import bare
from benchmarks.dane import Dane, dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery


def _tasks(ground: Ground) -> int:
    return ground.size.of(trial=500, usual=5_000)


def _peers_tasks(ground: Ground) -> int:
    return ground.size.of(trial=200, usual=2_000)


async def fan_out(contender: Dane, tasks: int) -> float:
    """Tasks a second, of one job of so many side by side."""
    began = time.perf_counter()
    await contender.finish(job({"taskParallel": ["NOOP"] * tasks}))
    return tasks / (time.perf_counter() - began)


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        return await fan_out(contender, _tasks(ground))


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        tasks = _peers_tasks(ground)
        return tasks / await contender.finish("group", tasks, tasks)


async def _bare(ground: Ground) -> float:
    async with bare(ground) as contender:
        tasks = _tasks(ground)
        return tasks / await contender.finish(tasks)


FAN_OUT: Final = Benchmark(
    number=1,
    title="fan-out",
    unit="tasks/s",
    contenders={"DANE": _dane, "Celery": _celery, "bare loop": _bare},
    targets=[Target(of="Celery", at_least=5.0), Target(of="bare loop", at_least=1.0)],
)
