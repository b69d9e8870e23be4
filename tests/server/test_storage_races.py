"""Acts and answers that meet in the same moment, and runners that meet at one node or key."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import IllegalMove
from dane_core.job import JobId
from dane_core.message import Answer
from dane_core.states import SENT, JobStatus, TaskState
from dane_server.storage import acts as acts_module
from dane_server.storage import tables
from dane_server.storage.acts import Acts
from dane_server.storage.engine import Store
from dane_server.storage.tables import values_of
from dane_server.storage.view import Claim, Recorded
from tests.server.audit import audit, rows_left
from tests.server.crash import Crash, Crashing, Holding
from tests.server.ledger import Ledger, answer, parallel, released, sequence, started
from tests.server.transactions import rows_changed

ROUNDS = int(os.environ.get("DANE_TEST_ROUNDS", "4"))


async def _after_a_while(dice: random.Random, work: Coroutine[Any, Any, Any]) -> Any:
    """Begin some steps of the event loop later, so that each may be the first."""
    for _ in range(dice.randint(0, 40)):
        await asyncio.sleep(0)
    return await work


async def _meet(
    dice: random.Random, record: Coroutine[Any, Any, Recorded], act: Coroutine[Any, Any, Any]
) -> tuple[Recorded, bool]:
    """What became of an answer, and whether the act was allowed."""

    async def acting() -> bool:
        try:
            await act
        except IllegalMove:
            return False
        return True

    recorded, allowed = await asyncio.gather(
        _after_a_while(dice, record), _after_a_while(dice, acting())
    )
    return recorded, allowed


async def test_of_a_cancellation_and_an_answer_one_wins_whole(ledger: Ledger) -> None:
    """The other is told: the act with 409, the answer as one that came too late."""
    dice = random.Random(3)
    for number in range(ROUNDS):
        job = await ledger.submit("A", source_id=f"S{number}")
        [claim] = await ledger.send()

        recorded, allowed = await _meet(
            dice, ledger.record(answer(claim)), ledger.acts.cancel_job(job)
        )

        won = claim.task_id in recorded.settled
        assert won == (not recorded.late)
        assert won or allowed
        ended = JobStatus.SUCCEEDED if won else JobStatus.CANCELLED
        assert await ledger.status(job) is ended
        assert await audit(ledger.store, job) == []


@pytest.mark.parametrize("act", ["force_task", "reset_task"])
async def test_of_a_new_attempt_and_an_answer_of_the_old_each_counts_once(
    ledger: Ledger, act: str
) -> None:
    """First the answer: it is kept, and superseded. First the act: the answer is too late."""
    dice = random.Random(4)
    for number in range(ROUNDS):
        job = await ledger.submit(sequence("A", "B"), source_id=f"S{number}")
        [claim] = [one for one in await ledger.send() if one.job_id == job]

        recorded, allowed = await _meet(
            dice, ledger.record(answer(claim)), getattr(ledger.acts, act)(claim.task_id)
        )

        view = await ledger.reader.task(claim.task_id)
        assert allowed
        assert [one.outcome for one in view.attempts] == [200 if recorded.settled else 499]
        assert view.task.attempt == 2
        assert await audit(ledger.store, job) == []
        await ledger.finish(job)
        assert await ledger.status(job) is JobStatus.SUCCEEDED


async def test_a_pause_never_costs_an_answer(ledger: Ledger) -> None:
    dice = random.Random(5)
    for number in range(ROUNDS):
        job = await ledger.submit(sequence("A", "B"), source_id=f"S{number}")
        [claim] = await ledger.send()

        recorded, allowed = await _meet(
            dice, ledger.record(answer(claim), window=9), ledger.acts.pause_job(job)
        )

        assert (claim.task_id in recorded.settled, allowed) == (True, True)
        await ledger.acts.finish_walks()
        assert await ledger.states(job) == {"A": TaskState.SUCCEEDED, "B": TaskState.READY}
        assert await audit(ledger.store, job) == []


async def test_a_deletion_leaves_nothing_whatever_comes_in(ledger: Ledger) -> None:
    dice = random.Random(6)
    for number in range(ROUNDS):
        job = await ledger.submit(sequence("A", "B"), source_id=f"S{number}")
        [claim] = await ledger.send()

        await _meet(dice, ledger.record(answer(claim), window=9), ledger.acts.delete_job(job))

        await ledger.acts.finish_walks()
        assert await rows_left(ledger.store, job) == {}


async def test_of_a_cancellation_and_a_retry_the_later_one_wins_whole(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the retry is refused, in the middle of a cancellation; it never succeeds and loses."""
    monkeypatch.setattr(acts_module, "_SOME", 1)
    dice = random.Random(8)
    for number in range(ROUNDS):
        job = await ledger.submit(parallel(*["A"] * 4), source_id=f"S{number}")
        claims = [one for one in await ledger.send() if one.job_id == job]
        await ledger.record(*(answer(one, 500) for one in claims[:2]))

        allowed, cancelled = await asyncio.gather(
            _allowed(_after_a_while(dice, ledger.acts.retry_job(job))),
            _allowed(_after_a_while(dice, ledger.acts.cancel_job(job))),
        )

        states = {one.state for one in await ledger.tasks(job)}
        started_over = bool(states - {TaskState.FAILED, TaskState.CANCELLED})
        assert cancelled
        assert allowed or not started_over
        assert not started_over or states == {TaskState.READY}
        assert await audit(ledger.store, job) == []
        await ledger.acts.delete_job(job)


async def _allowed(act: Coroutine[Any, Any, Any]) -> bool:
    try:
        await act
    except IllegalMove:
        return False
    return True


@pytest.mark.parametrize("act", ["retry_task", "force_task", "reset_task"])
async def test_a_cancellation_that_begins_during_an_act_on_a_task_takes_it_too(
    ledger: Ledger, act: str
) -> None:
    """What that act did becomes visible only after the cancellation has looked around."""
    job = await ledger.submit(parallel("A", "B"))
    await ledger.record(*(answer(one, 500) for one in await ledger.send() if one.key == "A"))
    one = await ledger.task(job, "A")
    holding = Holding(ledger.store)
    acting = asyncio.create_task(getattr(Acts(holding), act)(one.id))
    await holding.reached.wait()
    cancelling = asyncio.create_task(ledger.acts.cancel_job(job))
    await asyncio.wait({cancelling}, timeout=0.2)

    holding.go_on.set()
    await asyncio.gather(acting, cancelling)

    assert {one.state for one in await ledger.tasks(job)} == {TaskState.CANCELLED}
    assert await audit(ledger.store, job) == []


async def test_a_cancellation_that_somebody_else_has_ended_goes_no_further(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two go through one job; the job is run again as soon as the quicker one is done."""
    monkeypatch.setattr(acts_module, "_SOME", 1)
    job = await ledger.submit(parallel("A", "B", "C"))
    await ledger.acts.begin_cancelling(job)
    await ledger.acts.cancel_some(job)  # by the slow one
    await ledger.acts.finish_cancelling(job)
    await ledger.acts.retry_job(job)

    left = await ledger.acts.cancel_some(job)

    assert not left
    assert {one.state for one in await ledger.tasks(job)} == {TaskState.READY}


@pytest.mark.parametrize("state", [200, 500, 499])
async def test_what_is_settled_stays_so_until_somebody_asks_for_it_again(
    ledger: Ledger, state: int
) -> None:
    """Neither a second answer nor an act nor a sweep, all at once, changes a thing."""
    job = await ledger.submit("A")
    [claim] = await ledger.send()
    await ledger.record(answer(claim, state, message="the first"))
    before = await ledger.reader.task(claim.task_id)

    async def quietly(act: Coroutine[Any, Any, Any]) -> None:
        with suppress(IllegalMove):
            await act

    await asyncio.gather(
        *(ledger.record(answer(claim, other)) for other in (200, 500, 503, 499)),
        quietly(ledger.acts.cancel_job(job)),
        quietly(ledger.acts.pause_job(job)),
        ledger.acts.pause_key("A"),
        ledger.writer.note_reports([started(claim)], [], [released(claim)]),
        ledger.sweeps.recover_from_lost_exchange(),
        ledger.mark(queued=[claim]),
        ledger.claim(),
    )

    after = await ledger.reader.task(claim.task_id)
    assert (after.task, after.attempts, after.answer) == (
        before.task,
        before.attempts,
        before.answer,
    )


# --- several runners on one MariaDB -----------------------------------------------------------


@pytest.fixture
async def runners(mariadb_store: Store) -> AsyncIterator[list[Ledger]]:
    """Three, each with connections of its own, as in three processes."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(mariadb_store.apart()) for _ in range(3)]
        yield [Ledger.of(store) for store in stores]


@pytest.mark.services
async def test_many_children_of_one_node_let_it_go_once(runners: list[Ledger]) -> None:
    """Finished by three runners at once, in batches that hold tasks of all of them."""
    children = 2000
    job = await runners[0].submit(sequence(parallel(*["A"] * children), "B"))
    claims = await _all_claimed(runners[0], children)
    random.Random(7).shuffle(claims)
    batches = [claims[start : start + 50] for start in range(0, children, 50)]

    async def work(ledger: Ledger, batches: Sequence[Sequence[Claim]]) -> list[Recorded]:
        return [await ledger.record(*map(answer, batch), window=9) for batch in batches]

    told = await asyncio.gather(*(work(one, batches[n::3]) for n, one in enumerate(runners)))

    recorded = [one for some in told for one in some]
    assert sum(len(one.settled) for one in recorded) == children
    assert sum(len(one.ready) for one in recorded) == 1
    assert sum(len(one.claims) for one in recorded) == 1
    assert await audit(runners[0].store, job) == []
    await runners[0].finish(job)
    assert await runners[0].status(job) is JobStatus.SUCCEEDED


async def _all_claimed(ledger: Ledger, number: int) -> list[Claim]:
    claims: list[Claim] = []
    while len(claims) < number:
        claims += await ledger.claim(window=2 * number, limit=500)
    return claims


@pytest.mark.services
async def test_three_runners_at_once_never_exceed_a_window_and_never_stand_still(
    runners: list[Ledger],
) -> None:
    """Claiming, marking and recording, each with what it holds while the others do the same."""
    window = 4
    step = parallel(sequence("A", "B"), sequence("B", "A"), "C")
    jobs = [await runners[0].submit(sequence(step, step), source_id=f"S{n}") for n in range(8)]
    over = asyncio.Event()
    most: Counter[str] = Counter()

    async def watch(store: Store) -> None:
        while not over.is_set():
            for key, number in (await _sent_by_key(store)).items():
                most[key] = max(most[key], number)

    async def run(ledger: Ledger, dice: random.Random) -> None:
        mine: list[Claim] = []
        while not over.is_set():
            mine += await ledger.claim(window=window, limit=dice.randint(1, 6))
            dice.shuffle(mine)
            await ledger.mark(queued=mine)
            some, mine = mine[:5], mine[5:]
            recorded = await ledger.record(*map(answer, some), window=window)
            mine += recorded.claims
            if not mine and await _all_done(ledger, jobs):
                over.set()

    async with asyncio.timeout(30):
        await asyncio.gather(
            watch(runners[0].store),
            *(run(ledger, random.Random(n)) for n, ledger in enumerate(runners)),
        )

    assert [await audit(runners[0].store, job) for job in jobs] == [[]] * len(jobs)
    assert max(most.values()) == window


async def _all_done(ledger: Ledger, jobs: Sequence[JobId]) -> bool:
    return {await ledger.status(job) for job in jobs} == {JobStatus.SUCCEEDED}


async def _sent_by_key(store: Store) -> dict[str, int]:
    task = tables.tasks

    async def unit(connection: AsyncConnection) -> dict[str, int]:
        rows = await connection.execute(
            sa.select(task.c.task_key, sa.func.count())
            .where(task.c.state.in_(values_of(SENT)))
            .group_by(task.c.task_key)
        )
        return {row[0]: row[1] for row in rows}

    return await store.read(unit)


# --- large deletions --------------------------------------------------------------------------


@pytest.mark.services
async def test_a_large_job_is_deleted_in_small_pieces_that_hold_nobody_up(
    mariadb_store: Store,
) -> None:
    """While one piece is being removed and not committed, others are accepted and recorded."""
    ledger = Ledger.of(mariadb_store)
    other = await ledger.submit(sequence("C", "D"), source_id="S")
    claims = await ledger.send()
    large = await ledger.submit(sequence(parallel(*["A"] * 1500), "B"), source_id="S")
    with pytest.raises(Crash):
        await Acts(Crashing(mariadb_store, after=1)).delete_job(large)
    holding = Holding(mariadb_store)

    removing = asyncio.create_task(Acts(holding).finish_deleting(large))
    await holding.reached.wait()
    changed = await rows_changed(mariadb_store)
    recorded = await asyncio.wait_for(_record(ledger, claims), 2)
    await asyncio.wait_for(ledger.submit("A", source_id="S"), 2)
    await asyncio.wait_for(ledger.claim(), 2)

    holding.go_on.set()
    await removing
    assert len(recorded.settled) == 1
    assert 0 < changed < 500 * 5  # a task, its edges, attempts and answers; of 1,500 tasks
    assert await rows_left(mariadb_store, large) == {}
    assert await audit(mariadb_store, other) == []


async def _record(ledger: Ledger, claims: Sequence[Claim]) -> Recorded:
    answers: list[Answer] = [answer(claim) for claim in claims]
    return await ledger.record(*answers, window=9)
