"""B4: jobs of one task, posted one by one by 16 clients, and as lines of one request.

Nobody does them: what is measured is the way into the store, while the server looks in vain for
who could. Beside it stands a route of FastAPI that reads the same request and keeps nothing.
"""

import asyncio
import time
from typing import Final

import httpx
import orjson

from benchmarks.dane import dane, job
from benchmarks.ground import Ground, python
from benchmarks.measure import Benchmark, Target
from benchmarks.percentile import percentile
from benchmarks.post import Door

_CLIENTS: Final = 16
_LINES: Final = 1_000
_SPEC: Final = orjson.dumps(job("NOOP"))
#: Jobs a second of DANE-server 0.1.2, measured once on another day: it is not run here.
_SEED: Final = 85.0


def _jobs(ground: Ground) -> int:
    return ground.size.of(trial=160, usual=3_200)


def _lines(ground: Ground) -> int:
    return ground.size.of(trial=2_000, usual=20_000)


async def _dane(ground: Ground) -> dict[str, float]:
    async with dane(ground, work=None) as contender:
        await _one_by_one(contender.url, _CLIENTS)
        rate, waits = await _one_by_one(contender.url, _jobs(ground))
        batch = await _in_batch(contender.url, _lines(ground))
    return {
        "one by one": rate,
        "one by one, p50": percentile(waits, 50),
        "one by one, p99": percentile(waits, 99),
        "in batch": batch,
    }


async def _route(ground: Ground) -> float:
    async with ground.process(*python("-m", "benchmarks.bare_route")) as server:
        url = (await server.says("\n")).splitlines()[0]
        await _one_by_one(url, _CLIENTS)
        rate, _ = await _one_by_one(url, _jobs(ground))
        return rate


async def _seed(_: Ground) -> float:
    return _SEED


async def _one_by_one(url: str, jobs: int) -> tuple[float, list[float]]:
    """Jobs a second, and the milliseconds each of them took."""
    waits: list[float] = []

    async def client() -> None:
        async with Door(url) as door:
            for _ in range(jobs // _CLIENTS):
                asked = time.perf_counter()
                await door.post("/DANE/job", _SPEC)
                waits.append(1000 * (time.perf_counter() - asked))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as clients:
        for _ in range(_CLIENTS):
            clients.create_task(client())
    return len(waits) / (time.perf_counter() - began), waits


async def _in_batch(url: str, jobs: int) -> float:
    """Jobs a second, of requests of a thousand lines each."""
    body = b"\n".join([_SPEC] * _LINES)
    kind = {"Content-Type": "application/x-ndjson"}
    async with httpx.AsyncClient(timeout=120) as http:
        began = time.perf_counter()
        for _ in range(jobs // _LINES):
            answer = await http.post(f"{url}/DANE/jobs", content=body, headers=kind)
            if len(answer.content.splitlines()) < _LINES or b'"detail"' in answer.content:
                raise RuntimeError(f"not all were taken: {answer.text[:500]}")
        return jobs / (time.perf_counter() - began)


SUBMISSION: Final = Benchmark(
    number=4,
    title="submission",
    unit="jobs/s",
    units={"one by one, p50": "ms", "one by one, p99": "ms"},
    contenders={"DANE": _dane, "a route that keeps nothing": _route, "0.1.2, as given": _seed},
    targets=[
        Target(figure="one by one", of="0.1.2, as given", at_least=10.0),
        Target(figure="in batch", of="0.1.2, as given", at_least=100.0),
        Target(figure="one by one, p99", at_most=100.0),
    ],
)
