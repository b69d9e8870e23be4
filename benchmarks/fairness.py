"""B6: single tasks, posted while a large job of the same key runs: how long each waits.

Some are of another owner, some are further jobs of the same one. And what the API answers takes
meanwhile, for whoever looks at it ten times a second.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from statistics import median
from typing import Final

import orjson

from benchmarks.dane import CLOCKED, Dane, dane, job
from benchmarks.ground import Ground, settings
from benchmarks.latency import WAITS
from benchmarks.measure import Benchmark, Target
from benchmarks.percentile import percentile
from benchmarks.post import Door

_WINDOW: Final = 1_000
_OWNER: Final = "X-Owner"
_PAUSE: Final = 0.1
_GOES_ON: Final = "SELECT finished_at IS NULL FROM job WHERE source_id = 'large'"
_BUSY: Final = "SELECT COUNT(*) FROM answer"
#: Finished tasks in the meantime, by the clock of the database, in a second.
_RATE: Final = (
    "SELECT COUNT(*) / TIMESTAMPDIFF(MICROSECOND, MIN(finished_at), MAX(finished_at)) * 1e6"
    " FROM attempt WHERE attempt.task_id IN (SELECT task.id FROM task"
    " JOIN job ON job.id = task.job_id WHERE job.source_id = 'large')"
)


async def _dane(ground: Ground) -> dict[str, float]:
    tasks = ground.size.of(trial=5_000, usual=30_000, whole=100_000)
    probes = ground.size.of(trial=3, usual=10, whole=30)
    named = settings(API={"OWNER_HEADER": _OWNER})
    async with dane(ground, work=CLOCKED, chosen=named) as contender, Door(contender.url) as door:
        await _post(door, "large", "large", {"taskParallel": ["NOOP"] * tasks})
        await contender.books.reaches(_BUSY, 2 * _WINDOW)
        async with _looking(contender) as looks:
            for source, owner in (("other", "other"), ("same", "large")) * probes:
                if not await contender.books.number(_GOES_ON):
                    break  # those so far have waited for it; others would wait for nothing
                await _post(door, owner, source, "NOOP")
                await contender.books.reaches(_DONE.format(source), 1)
        return {**await _seen(contender), "the API, p99": percentile(looks, 99)}


@asynccontextmanager
async def _looking(contender: Dane) -> AsyncIterator[list[float]]:
    """The milliseconds that each look at the newest jobs took."""
    looks: list[float] = []

    async def look() -> None:
        async with Door(contender.url) as door:
            while True:
                asked = time.perf_counter()
                await door.get("/DANE/jobs?limit=50")
                looks.append(1000 * (time.perf_counter() - asked))
                await asyncio.sleep(_PAUSE)

    looking = asyncio.create_task(look())
    try:
        yield looks
    finally:
        looking.cancel()
        await asyncio.wait([looking])


async def _post(door: Door, owner: str, source: str, tasks: object) -> None:
    await door.post("/DANE/job", orjson.dumps(job(tasks, source)), **{_OWNER: owner})


_DONE: Final = (
    "SELECT COUNT(*) > 0 AND COUNT(*) = COUNT(finished_at) FROM job WHERE source_id = '{}'"
)


async def _seen(contender: Dane) -> dict[str, float]:
    other = await contender.books.numbers(WAITS.format("other"))
    same = await contender.books.numbers(WAITS.format("same"))
    rate = float(await contender.books.number(_RATE))
    return {
        "another owner waits": median(other or [inf]),
        "another job waits": median(same or [inf]),  # the large job never let it in
        "longest wait": max([*other, *same]),
        "time of a window": 1000 * _WINDOW / rate,
    }


FAIRNESS: Final = Benchmark(
    number=6,
    title="fairness",
    unit="ms",
    contenders={"DANE": _dane},
    targets=[
        Target(figure="another owner waits", at_most=1000.0),
        Target(figure="another job waits", at_most=1000.0),
        Target(figure="longest wait", of="time of a window", at_most=1.0, always=True),
        Target(figure="the API, p99", at_most=100.0),
    ],
)
