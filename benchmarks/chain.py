"""B2: one job of many steps, each of which waits for the one before it."""

import time
from typing import Final

from benchmarks.dane import dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery

_STEPS: Final = 500


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        began = time.perf_counter()
        await contender.finish(job({"taskSequential": ["NOOP"] * _STEPS}))
        return 1000 * (time.perf_counter() - began) / _STEPS


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        return 1000 * await contender.finish("chain", _STEPS, _STEPS) / _STEPS


CHAIN: Final = Benchmark(
    number=2,
    title="chain",
    unit="ms/step",
    contenders={"DANE": _dane, "Celery": _celery},
    targets=[Target("Celery", 0.6)],
    higher_is_better=False,
)
