"""B8: 50 jobs of one task a second, one by one: from ready in the store to `work` called."""

import asyncio
import time
from typing import Final

from benchmarks.dane import CLOCKED, Dane, dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.percentile import percentile

_A_SECOND: Final = 50
_SOURCE: Final = "latency"

#: Milliseconds from the moment a job was stored, by the database's clock, to the call of its
#: work, by the clock of the worker beside it. A job of one task is ready as it is stored.
WAITS: Final = (
    "SELECT 1000 * (JSON_VALUE(answer.body, '$.called')"
    " - TIMESTAMPDIFF(MICROSECOND, '1970-01-01', job.created_at) / 1e6)"
    " FROM answer JOIN job ON job.id = answer.job_id WHERE job.source_id = '{}'"
)


async def _dane(ground: Ground) -> dict[str, float]:
    tasks = _A_SECOND * ground.size.of(trial=2, usual=15)
    async with dane(ground, work=CLOCKED) as contender:
        await _post_evenly(contender, tasks)
        await contender.all_finished()
        waits = await contender.books.numbers(WAITS.format(_SOURCE))
    return {"p50": percentile(waits, 50), "p99": percentile(waits, 99)}


async def _post_evenly(contender: Dane, tasks: int) -> None:
    """Post each at its time, however long the ones before it take."""
    begin = time.perf_counter()

    async def post(place: int) -> None:
        await asyncio.sleep(begin + place / _A_SECOND - time.perf_counter())
        await contender.client.submit(job("NOOP", _SOURCE))

    async with asyncio.TaskGroup() as group:
        for place in range(tasks):
            group.create_task(post(place))


LATENCY: Final = Benchmark(
    number=8,
    title="dispatch latency",
    unit="ms",
    contenders={"DANE": _dane},
    targets=[Target(figure="p50", at_most=3.0), Target(figure="p99", at_most=15.0)],
)
