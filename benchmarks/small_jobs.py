"""B3: a thousand small jobs, each one task, then ten side by side, then one, from 8 clients."""

import asyncio
import time
from typing import Final

from benchmarks.dane import dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery

_JOBS: Final = 1_000
_CLIENTS: Final = 8
_PEERS_JOBS: Final = 100
_TREE: Final = {"taskSequential": ["NOOP", {"taskParallel": ["NOOP"] * 10}, "NOOP"]}
_TASKS: Final = 12
_PEERS_TASKS: Final = 11  # a chord: ten side by side, then one


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(_CLIENTS):
                clients.create_task(contender.submit(job(_TREE), _JOBS // _CLIENTS))
        await contender.all_finished()
        return _JOBS * _TASKS / (time.perf_counter() - began)


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        tasks = _PEERS_JOBS * _PEERS_TASKS
        return tasks / await contender.finish("chords", _PEERS_JOBS, tasks)


SMALL_JOBS: Final = Benchmark(
    number=3,
    title="small jobs",
    unit="tasks/s",
    contenders={"DANE": _dane, "Celery": _celery},
    targets=[Target("Celery", 5.0)],
)
