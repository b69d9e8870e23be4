"""B6: single tasks, posted while a large job of the same key runs: how long each waits.

Some are of another owner, some are further jobs of the same one. And how long the API takes
meanwhile, for whoever lists, looks, asks and posts ten times a second: in a process of its own, and
in that of the runner.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from math import inf
from statistics import median
from typing import Final

import orjson

from benchmarks.dane import CLOCKED, Dane, api_alone, dane, job
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
_LARGE: Final = "SELECT id FROM job WHERE source_id = 'large'"
_LAST: Final = "SELECT MAX(task.id) FROM task JOIN job ON job.id = task.job_id"
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
    async with (
        dane(ground, work=CLOCKED, chosen=named) as contender,
        api_alone(ground, named) as api,
        Door(contender.url) as door,
    ):
        await _post(door, "large", "large", {"taskParallel": ["NOOP"] * tasks})
        await contender.books.reaches(_BUSY, 2 * _WINDOW)
        alone: list[float] = []
        beside: list[float] = []
        paths = await _paths(contender)
        async with _asking(api, paths, alone), _asking(contender.url, paths, beside):
            for source, owner in (("other", "other"), ("same", "large")) * probes:
                if not await contender.books.number(_GOES_ON):
                    break  # those so far have waited for it; others would wait for nothing
                await _post(door, owner, source, "NOOP")
                await contender.books.reaches(_DONE.format(source), 1)
        return {
            **await _seen(contender),
            "an API alone, p99": percentile(alone, 99),
            "one beside the runner, p99": percentile(beside, 99),
        }


async def _paths(contender: Dane) -> list[str]:
    """What is looked at: the newest jobs, the large one, some of its tasks, why one waits."""
    large = await contender.books.number(_LARGE)
    last = await contender.books.number(_LAST)
    return [
        "/DANE/jobs?limit=50",
        f"/DANE/job/{large}?tasks=false",
        f"/DANE/job/{large}/tasks?limit=100",
        f"/DANE/task/{last}/explain",
    ]


@asynccontextmanager
async def _asking(url: str, paths: Sequence[str], waits: list[float]) -> AsyncIterator[None]:
    """Meanwhile somebody looks and posts; the milliseconds that each request took go to `waits`."""

    async def ask() -> None:
        async with Door(url) as door:
            for path in itertools.cycle([*paths, None]):
                asked = time.perf_counter()
                if path is None:
                    await _post(door, "beside", "beside", "NOOP")
                else:
                    await door.get(path)
                waits.append(1000 * (time.perf_counter() - asked))
                await asyncio.sleep(_PAUSE)

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking  # what was refused fails the benchmark


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
        Target(figure="an API alone, p99", at_most=100.0),
    ],
)
