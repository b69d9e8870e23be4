"""Runners, workers and operators at work on one job at the same time."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from dane_core.errors import IllegalMove
from dane_core.job import JobId, TaskId
from dane_core.message import Gone
from dane_core.states import JobStatus
from dane_server.storage import acts
from dane_server.storage.engine import Store
from dane_server.storage.view import Claim
from tests.server.audit import audit
from tests.server.ledger import (
    LEASE,
    Ledger,
    answer,
    ask,
    graph,
    heartbeat,
    leased,
    parallel,
    progress,
    released,
    sequence,
    started,
    task,
)

pytestmark = pytest.mark.services

ACTORS = 5
EVENTS = 12


def some_spec(dice: random.Random) -> Any:
    """Joins in front of joins, tasks that may fail, and names that wait for names."""

    def one() -> Any:
        key = dice.choice("ABC")
        retry = {"limit": 1, "delay": 0}
        return task(key, allow_failure=dice.random() < 0.3, retry=retry)

    def block() -> Any:
        return parallel(*(one() for _ in range(dice.randint(2, 3))))

    named = graph(a=("A",), b=("B", "a"), c=("C", "a"), d=("A", "b", "c"))
    return sequence(block(), parallel(sequence(one(), block()), one()), named, block())


class Actor:
    """Does one thing after another, without regard for the others."""

    def __init__(
        self, ledger: Ledger, job: JobId, tasks: list[TaskId], claims: list[Claim]
    ) -> None:
        self._ledger = ledger
        self._job = job
        self._tasks = tasks
        self._claims = claims

    async def live(self, dice: random.Random) -> None:
        events = self.events()
        for _ in range(EVENTS):
            with suppress(IllegalMove):
                await events[dice.choice(sorted(events))](dice)

    def events(self) -> Mapping[str, Callable[[random.Random], Coroutine[Any, Any, Any]]]:
        store, job = self._ledger.acts, self._job
        return {
            "claim": self.claim,
            "claim again": self.claim,
            "answer": self.answer,
            "answer again": self.answer,
            "fail": self.fail,
            "start": self.start,
            "hand off": self.hand_off,
            "get again": self.get_again,
            "end": lambda dice: self._ledger.writer.lose_workers([Gone(worker=self.who(dice))]),
            "sweep": self.sweep,
            "force": lambda dice: store.force_task(dice.choice(self._tasks)),
            "reset": lambda dice: store.reset_task(dice.choice(self._tasks)),
            "retry": lambda dice: store.retry_task(dice.choice(self._tasks)),
            "retry key": lambda dice: store.retry_key(dice.choice("ABC"), 500),
            "retry job": lambda _: store.retry_job(job),
            "cancel": lambda _: store.cancel_job(job),
            "pause": lambda _: store.pause_job(job),
            "resume": lambda _: store.resume_job(job),
            "lose": lambda _: self._ledger.sweeps.recover_from_lost_exchange(),
        }

    async def claim(self, dice: random.Random) -> None:
        claims = await self._ledger.claim(lease=dice.choice([timedelta(0), LEASE]))
        self._claims += claims
        half = len(claims) // 2
        await self._ledger.mark(queued=claims[half:], unroutable=claims[:half])

    async def answer(self, dice: random.Random) -> None:
        some = self.some(dice)
        recorded = await self._ledger.record(*map(answer, some), window=dice.choice([0, 9]))
        self._claims += recorded.claims

    async def fail(self, dice: random.Random) -> None:
        for claim in dice.sample(self._claims[-8:], min(1, len(self._claims))):
            await self._ledger.record(answer(claim, dice.choice([500, 503, 404, 499])))

    async def start(self, dice: random.Random) -> None:
        for claim in dice.sample(self._claims, min(1, len(self._claims))):
            back = [released(claim)] if dice.random() < 0.5 else []
            await self._ledger.writer.note_reports([started(claim)], [], back)

    async def hand_off(self, dice: random.Random) -> None:
        """One worker takes some on a lease, and another that lives names the same."""
        some = self.some(dice)
        await self._ledger.writer.note_reports(
            [],
            [progress(one, 0.5) for one in some],
            [],
            leased=[leased(one, self.who(dice)) for one in some[:2]],
            heartbeats=[heartbeat(*some, worker=self.who(dice))],
        )

    async def get_again(self, dice: random.Random) -> None:
        some = self.some(dice)
        asks = [ask(one, self.who(dice), redelivered=True) for one in some]
        await self._ledger.writer.judge(asks)

    def some(self, dice: random.Random) -> list[Claim]:
        newest = self._claims[-12:]
        return dice.sample(newest, min(4, len(newest)))

    def who(self, dice: random.Random) -> str:
        return dice.choice(["w1", "w2", "w3"])

    async def sweep(self, _: random.Random) -> None:
        await self._ledger.acts.finish_walks()
        await self._ledger.sweep()


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_at_once_the_books_add_up(
    mariadb_store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deadlocks and lock waits are part of it; each unit still happens once or not at all."""
    monkeypatch.setattr(acts, "_SOME", 3)
    ledger = Ledger.of(mariadb_store)
    job = await ledger.submit(some_spec(random.Random(seed)))
    tasks = [one.id for one in await ledger.tasks(job)]
    actor = Actor(ledger, job, tasks, [])

    await asyncio.gather(*(actor.live(random.Random(f"{seed} {n}")) for n in range(ACTORS)))

    assert await audit(ledger.store, job) == []
    await ledger.finish(job)
    assert await audit(ledger.store, job) == []
    assert await ledger.status(job) is JobStatus.SUCCEEDED
