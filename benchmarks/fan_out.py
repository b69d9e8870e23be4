"""B1: one job of many parallel no-op tasks, from the POST to the finished job in the database."""

import time
from typing import Final

from benchmarks.bare import bare
from benchmarks.dane import dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery

_TASKS: Final = 5_000
_PEERS_TASKS: Final = 2_000


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        began = time.perf_counter()
        await contender.finish(job({"taskParallel": ["NOOP"] * _TASKS}))
        return _TASKS / (time.perf_counter() - began)


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        return _PEERS_TASKS / await contender.finish("group", _PEERS_TASKS, _PEERS_TASKS)


async def _bare(ground: Ground) -> float:
    async with bare(ground) as contender:
        return _TASKS / await contender.finish(_TASKS)


FAN_OUT: Final = Benchmark(
    number=1,
    title="fan-out",
    unit="tasks/s",
    contenders={"DANE": _dane, "Celery": _celery, "bare loop": _bare},
    targets=[Target("Celery", 5.0), Target("bare loop", 1.0)],
)
