"""B2: one job of many steps, each of which waits for the one before it."""

import time
from typing import Final

from benchmarks.dane import Dane, dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery


def _steps(ground: Ground) -> int:
    return ground.size.of(trial=50, usual=500)


async def chain(contender: Dane, steps: int) -> float:
    """Milliseconds a step, of one job of so many."""
    began = time.perf_counter()
    await contender.finish(job({"taskSequential": ["NOOP"] * steps}))
    return 1000 * (time.perf_counter() - began) / steps


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        return await chain(contender, _steps(ground))


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        steps = _steps(ground)
        return 1000 * await contender.finish("chain", steps, steps) / steps


CHAIN: Final = Benchmark(
    number=2,
    title="chain",
    unit="ms/step",
    contenders={"DANE": _dane, "Celery": _celery},
    targets=[Target(of="Celery", at_most=0.6)],
)
