"""B7: a store with a million finished tasks: at rest, in its pages, and the fan-out once more."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from benchmarks.dane import Dane, dane, job
from benchmarks.fan_out import fan_out
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.percentile import percentile
from benchmarks.post import Door
from tests.server.archive import copies, model_of

_TASKS_OF_A_JOB: Final = 100
_MODEL: Final = "SELECT id FROM job WHERE source_id = 'model'"


def _tasks(ground: Ground) -> int:
    return ground.size.of(trial=500, usual=5_000)


async def _full(ground: Ground) -> dict[str, float]:
    async with dane(ground) as contender:
        await _fill(contender, ground.size.of(trial=100, usual=1_000, whole=10_000))
        idle = await _idle(contender, ground.size.of(trial=2, usual=10, whole=60))
        waits = await _pages(contender, ground.size.of(trial=10, usual=200, whole=500))
        rate = await fan_out(contender, _tasks(ground))
    return {"fan-out": rate, "idle server": idle, **waits}


async def _empty(ground: Ground) -> float:
    async with dane(ground) as contender:
        return await fan_out(contender, _tasks(ground))


async def _fill(contender: Dane, number: int) -> None:
    tree = {"taskSequential": ["NOOP", {"taskParallel": ["NOOP"] * (_TASKS_OF_A_JOB - 2)}, "NOOP"]}
    await contender.finish(job(tree, "model"))
    books = contender.books
    model = await books.row(model_of(await books.number(_MODEL)))
    for statement in copies(model, number):
        await books.do(statement)


async def _idle(contender: Dane, seconds: int) -> float:
    """Per cent of a core that the server takes while nothing happens."""
    await asyncio.sleep(1)  # it may look at what has just been done
    before = contender.server.effort
    await asyncio.sleep(seconds)
    return 100 * (contender.server.effort - before) / seconds


async def _pages(contender: Dane, times: int) -> dict[str, float]:
    """Milliseconds of 99 pages of 100, each kind of any job."""
    jobs = int(await contender.books.number("SELECT MAX(id) FROM job"))
    tasks = int(await contender.books.number("SELECT MAX(id) FROM task"))
    dice = random.Random(7)  # noqa: S311  any will do
    kinds: dict[str, Callable[[], str]] = {
        "list, p99": lambda: f"/DANE/jobs?limit=50&after={dice.randint(60, jobs)}",
        "job, p99": lambda: f"/DANE/job/{dice.randint(3, jobs)}",
        "explain, p99": lambda: f"/DANE/task/{dice.randint(201, tasks)}/explain",
    }
    waits: dict[str, float] = {}
    async with Door(contender.url) as door:
        for kind, path in kinds.items():
            some = []
            for _ in range(times):
                asked = time.perf_counter()
                await door.get(path())
                some.append(1000 * (time.perf_counter() - asked))
            waits[kind] = percentile(some, 99)
    return waits


FULL_STORE: Final = Benchmark(
    number=7,
    title="full store",
    unit="tasks/s",
    units={
        "idle server": "% of a core",
        "list, p99": "ms",
        "job, p99": "ms",
        "explain, p99": "ms",
    },
    contenders={"full": _full, "empty store": _empty},
    targets=[
        Target(figure="idle server", at_most=1.0),
        Target(figure="list, p99", at_most=50.0),
        Target(figure="job, p99", at_most=50.0),
        Target(figure="explain, p99", at_most=50.0),
        Target(figure="fan-out", of="empty store", at_least=0.9),
    ],
    by_default=False,
)
