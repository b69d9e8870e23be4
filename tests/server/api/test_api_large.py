"""A job of very many tasks holds up nobody else, whatever is asked of it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import orjson

from dane_core.exchange.memory import MemoryExchange
from dane_server.api import create_api
from dane_server.settings import ServerSettings
from dane_server.storage.engine import Store
from tests.faults.plugin import long
from tests.server.ledger import LEASE, Ledger, answer
from tests.server.scripted import new_runner
from tests.server.turns import watched_turns

#: Seconds that no turn of the loop may take.
LONGEST: Final = 0.1
#: The same for a small one: each task that is worked on in one turn counts.
LONGEST_OF_SMALL: Final = 0.04


def spec(number: int) -> bytes:
    many = [{"Task": {"task_key": "B", "name": f"n{n}", "args": {"n": n}}} for n in range(number)]
    tree = {"taskSequential": ["A", {"taskParallel": many}, "C"]}
    return orjson.dumps({"source_url": "http://127.0.0.1/S", "source_id": "S", "tasks": tree})


@asynccontextmanager
async def served(ledger: Ledger) -> AsyncIterator[httpx.AsyncClient]:
    exchange = MemoryExchange()
    runner = new_runner(ledger, exchange)
    api = create_api(
        runner=runner, reader=ledger.reader, settings=ServerSettings(), exchange=exchange
    )
    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:5500") as http:
        yield http


async def longest_turn(ledger: Ledger, number: int) -> tuple[float, str]:
    """The longest turn of a loop in which everything is asked of a job; and what it was for."""
    text = spec(number)

    async def done(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> httpx.Response:
        response = await http.request(method, f"/DANE{path}", **more)
        assert response.is_success, response.text[:500]
        return response

    async with served(ledger) as http:
        await http.get("/DANE/limits")  # what the first request of all makes is made
        with watched_turns() as turns:
            headers = {"Content-Type": "application/json"}
            posted = await done(http, "POST", "/job", content=text, headers=headers)
            job = posted.headers["location"].removeprefix("/DANE")
            [first] = await ledger.writer.claim_ready(window=9, limit=9, lease=LEASE)
            await ledger.record(answer(first))
            await ledger.acts.finish_walks()
            for path in (
                job,
                f"{job}?tasks=false",
                f"{job}/tasks?after={number // 2}",
                f"{job}/tasks?state=blocked&after={number // 2}",
                f"{job}/tasks?key=C",
                "/jobs",
                "/workers",
                f"/task/{first.task_id}/explain",
                f"/task/{first.task_id + number}/explain",
                f"/task/{first.task_id + number + 1}/explain",
            ):
                await done(http, "GET", path)
            for act in ("pause", "resume", "cancel"):
                await done(http, "POST", f"{job}/{act}")
                await ledger.acts.finish_walks()
            await done(http, "POST", f"{job}/retry?tasks=false")
            await done(http, "POST", f"/task/{first.task_id}/forceretry")
            await ledger.acts.finish_walks()
            await done(http, "DELETE", job)
            await ledger.acts.finish_walks()
    return turns.longest, turns.of


async def test_nobody_waits_for_a_large_job(sqlite_store: Store) -> None:
    """A tenth of the time of a person's blink, whatever the machine has else to do."""
    longest, of = await longest_turn(Ledger.of(sqlite_store), 2_500)

    assert longest < LONGEST_OF_SMALL, of


@long
async def test_nobody_waits_for_a_job_of_100_000_tasks(ledger: Ledger) -> None:
    longest, of = await longest_turn(ledger, 99_998)

    assert longest < LONGEST, of
