"""What a runner does about a priority that changes: told to workers, and finished behind."""

from datetime import timedelta

import pytest

from dane_core.exchange.memory import MemoryExchange
from dane_core.job import JobId
from dane_core.message import Control, Envelope, open_control
from dane_core.states import TaskState
from dane_server.runner import walk
from dane_server.runner.bell import LocalBell
from dane_server.runner.walk import Walker, Walks
from dane_server.storage import acts as acts_module
from dane_server.storage.turns import Turns
from tests.server.ledger import Ledger, parallel
from tests.server.scripted import new_runner

READY, QUEUED = TaskState.READY, TaskState.QUEUED


class Hearing(MemoryExchange):
    """Notes the words to workers, and what was queued when each was said."""

    def __init__(self, ledger: Ledger, job: JobId) -> None:
        super().__init__()
        self._ledger, self._job = ledger, job
        self.heard: list[tuple[Control, int]] = []

    async def broadcast(self, envelope: Envelope) -> None:
        states = [one.state for one in await self._ledger.tasks(self._job)]
        self.heard.append((open_control(envelope), states.count(QUEUED)))


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of five tasks is a large one: whoever asks waits for two of its tasks."""
    monkeypatch.setattr(acts_module, "_SOME", 2)
    monkeypatch.setattr(walk, "AT_ONCE", 1)


async def test_workers_ask_about_what_they_hold_before_it_is_taken_back(ledger: Ledger) -> None:
    """Else they would begin it meanwhile, in the old order."""
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.send()
    exchange = Hearing(ledger, job)

    await new_runner(ledger, exchange).prioritize_job(job, 7)

    [(word, queued)] = exchange.heard
    assert (word.act, word.job_id, queued) == ("recall", job, 5)
    assert [one.priority for one in await ledger.tasks(job)] == [7, 7, 1, 1, 1]


async def test_what_is_left_of_a_large_job_is_done_by_the_walker(ledger: Ledger) -> None:
    job = await ledger.submit(parallel(*["A"] * 5))
    await ledger.send()
    await ledger.acts.begin_prioritizing(job, 7)
    walker = Walker(
        walks=Walks.of(ledger.acts, cancel_grace=timedelta(seconds=10)),
        exchange=MemoryExchange(),
        bell=LocalBell(),
        turns=Turns(ledger.store),
        every=timedelta(hours=1),
    )

    await walker.finish()

    assert {(one.state, one.priority) for one in await ledger.tasks(job)} == {(READY, 7)}
    assert await ledger.acts.jobs_reranking() == []


async def test_one_task_is_taken_back_by_its_own_name(ledger: Ledger) -> None:
    """Workers go on with the others of its job without asking."""
    job = await ledger.submit(parallel("A", "A"))
    [first, _] = await ledger.send()
    exchange = Hearing(ledger, job)

    await new_runner(ledger, exchange).prioritize_task(first.task_id, 9)

    [(word, queued)] = exchange.heard
    assert (word.act, word.task_id, word.job_id, queued) == ("recall", first.task_id, None, 1)
