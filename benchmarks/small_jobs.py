"""B3: a thousand small jobs, each one task, then ten side by side, then one, from 8 clients."""

import asyncio
import time
from typing import Final

from benchmarks.dane import dane, job
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target
from benchmarks.peer import celery

_CLIENTS: Final = 8
_TREE: Final = {"taskSequential": ["NOOP", {"taskParallel": ["NOOP"] * 10}, "NOOP"]}
_TASKS: Final = 12
_PEERS_TASKS: Final = 11  # a chord: ten side by side, then one


def _jobs(ground: Ground) -> int:
    return ground.size.of(trial=80, usual=1_000)


def _peers_jobs(ground: Ground) -> int:
    return ground.size.of(trial=10, usual=100)


async def _dane(ground: Ground) -> float:
    async with dane(ground) as contender:
        jobs = _jobs(ground)
        began = time.perf_counter()
        async with asyncio.TaskGroup() as clients:
            for _ in range(_CLIENTS):
                clients.create_task(contender.submit(job(_TREE), jobs // _CLIENTS))
        await contender.all_finished()
        return jobs * _TASKS / (time.perf_counter() - began)


async def _celery(ground: Ground) -> float:
    async with celery(ground) as contender:
        jobs = _peers_jobs(ground)
        tasks = jobs * _PEERS_TASKS
        return tasks / await contender.finish("chords", jobs, tasks)


SMALL_JOBS: Final = Benchmark(
    number=3,
    title="small jobs",
    unit="tasks/s",
    contenders={"DANE": _dane, "Celery": _celery},
    targets=[Target(of="Celery", at_least=5.0)],
)
