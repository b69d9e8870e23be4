"""Whose tasks are claimed, how many, and what it costs to find them."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId
from dane_core.states import TaskState
from dane_server.storage import candidates
from dane_server.storage.engine import Store
from dane_server.storage.functions import later, now
from dane_server.storage.tables import jobs, owners, task_keys, tasks
from dane_server.storage.view import Claim
from dane_server.storage.writer import Writer
from tests.server.crash import Holding
from tests.server.ledger import LEASE, Ledger, answer, new_job, parallel, sequence, started
from tests.server.wire import trips_of


async def change(ledger: Ledger, statement: Any, rows: Sequence[dict[str, Any]] = ()) -> None:
    async def unit(connection: AsyncConnection) -> None:
        await connection.execute(statement, rows or None)

    await ledger.store.write(unit)


async def limit(ledger: Ledger, **limits: Any) -> None:
    """Limit the key A."""
    await ledger.acts.resume_key("A")  # it is known
    await change(ledger, sa.update(task_keys).where(task_keys.c.task_key == "A").values(**limits))


async def crowd(ledger: Ledger, size: int, *, owner: str = "") -> JobId:
    """A job with many ready tasks."""
    job = await ledger.submit("A", owner=owner)
    [first] = await ledger.tasks(job)
    row = sa.select(tasks.c.owner_id, tasks.c.rank).where(tasks.c.id == first.id)
    async with ledger.store.engine.connect() as connection:
        owner_id, rank = (await connection.execute(row)).one()
    new = sa.insert(tasks).values(
        job_id=job, owner_id=owner_id, task_key="A", state=TaskState.READY, due_at=now()
    )
    for begin in range(0, size - 1, 1000):
        rows = [{"seq": seq, "rank": rank} for seq in range(begin + 1, min(begin + 1001, size))]
        await change(ledger, new, rows)
    counted = sa.update(jobs).where(jobs.c.id == job)
    await change(ledger, counted.values(total=size, active=size))
    return job


@contextmanager
def statements(store: Store) -> Iterator[list[str]]:
    """The statements that were executed in the block, when it has ended."""
    seen: list[str] = []
    with trips_of(store) as trips:
        yield seen
    seen += [statement for trip in trips for statement in trip]


def by_job(claims: Sequence[Claim]) -> Counter[JobId]:
    return Counter(claim.job_id for claim in claims)


# --- shares -------------------------------------------------------------------------------------


async def test_a_single_task_behind_a_crowd_is_in_the_next_claim(ledger: Ledger) -> None:
    """Whoever asked for the crowd, and whoever asks for the single one."""
    crowded = await crowd(ledger, 2500)
    await ledger.claim(limit=100)
    mine = await ledger.submit("A")
    theirs = await ledger.submit("A", owner="somebody")

    claims = await ledger.claim(limit=10)

    assert by_job(claims) == {mine: 1, theirs: 1, crowded: 8}
    assert len(await ledger.claim(limit=10)) == 10


async def test_a_fifth_of_a_window_is_left_to_jobs_that_have_nothing_in_flight(
    ledger: Ledger,
) -> None:
    """They go at once, whoever asks for them, and lie behind no more than the rest of it."""
    await crowd(ledger, 50, owner="crowd")
    crowded = await ledger.claim(window=20)
    mine = await ledger.submit("A", owner="crowd")
    theirs = await ledger.submit(parallel("A", "A"), owner="somebody")

    beside = await ledger.claim(window=20)

    assert len(crowded) == 16
    assert by_job(beside) == {mine: 1, theirs: 1}
    assert await ledger.claim(window=20) == []


async def test_reserved_places_that_nobody_could_use_are_offered_again_a_while_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sought of keys that crowds have filled, however often a bell is rung."""
    await ledger.submit(parallel(*["A"] * 30, *["B"] * 30))
    await ledger.claim(window=20)
    said: list[float] = []

    async def claim() -> list[Claim]:
        return await ledger.writer.claim_ready(window=20, limit=9, lease=LEASE, put_off=said.append)

    await claim()
    assert said == []
    await ledger.submit("A")
    await ledger.submit("B")
    with statements(ledger.store) as seen:
        assert await claim() == []
    assert not any("rank" in statement for statement in seen)
    assert [0 < wait <= 1 for wait in said] == [True]

    monkeypatch.setattr(candidates, "_VAIN_PAUSE", 0.0)
    assert sorted(one.key for one in await claim()) == ["A", "B"]
    assert len(said) == 1


async def test_of_many_newcomers_those_whom_a_claim_left_out_are_in_the_next(
    ledger: Ledger,
) -> None:
    await crowd(ledger, 90)
    await ledger.claim(window=100)
    for _ in range(15):
        await ledger.submit("A")
    told: list[list[float]] = [[], [], []]

    found = [
        await ledger.writer.claim_ready(window=100, limit=9, lease=LEASE, put_off=said.append)
        for said in told
    ]

    assert [len(claims) for claims in found] == [9, 6, 0]
    assert told == [[0.0], [], []]


async def test_what_comes_after_an_answer_leaves_that_fifth_too(ledger: Ledger) -> None:
    await ledger.submit(sequence("B", parallel(*["A"] * 20)))

    recorded = await ledger.record(*map(answer, await ledger.send()), window=10)

    assert len(recorded.claims) == 8
    assert await ledger.claim(window=10) == []


async def test_the_single_one_does_not_wait_in_the_queue_behind_its_claim(ledger: Ledger) -> None:
    """What is sent lies in the queue in the order in which it was claimed."""
    await crowd(ledger, 50)
    mine = await ledger.submit("A")

    claims = await ledger.claim(limit=40)

    assert [claim.job_id for claim in claims].index(mine) <= 1


async def test_owners_share_a_key_by_their_weight(ledger: Ledger) -> None:
    many = [await crowd(ledger, 100, owner="many") for _ in range(3)]
    one = await crowd(ledger, 100, owner="one")
    await change(ledger, sa.update(owners).where(owners.c.name == "one").values(weight=2))

    first = by_job(await ledger.claim(limit=30))
    second = by_job(await ledger.claim(limit=60))

    assert sum(first[job] for job in many) == 10
    assert first[one] == 20
    assert second[one] == 40
    assert sum((first + second)[job] for job in many) == 30
    assert max((first + second)[job] for job in many) <= 11


async def test_what_one_owner_has_in_flight_counts_against_it(ledger: Ledger) -> None:
    busy = await crowd(ledger, 100, owner="busy")
    await ledger.claim(limit=20)
    fresh = await crowd(ledger, 100, owner="fresh")

    assert by_job(await ledger.claim(limit=30)) == {fresh: 25, busy: 5}


async def test_priority_goes_before_every_share(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 5), owner="one", priority=3)
    urgent = await ledger.submit(parallel(*["A"] * 9), owner="other", priority=4)

    assert by_job(await ledger.claim(limit=8)) == {urgent: 8}


async def test_what_has_waited_long_is_not_kept_waiting_by_what_is_urgent(ledger: Ledger) -> None:
    patient = await ledger.submit(parallel("A", "A"), priority=0)
    urgent = await ledger.submit(parallel(*["A"] * 9), priority=2)
    waits = sa.update(tasks).where(tasks.c.job_id == patient).values(due_at=later(-700))
    await change(ledger, waits)

    async def claim() -> Counter[JobId]:
        hurried = timedelta(seconds=300)
        claims = await ledger.writer.claim_ready(window=99, limit=3, lease=LEASE, ageing=hurried)
        return by_job(claims)

    assert await claim() == {patient: 1, urgent: 2}
    assert await claim() == {urgent: 3}  # one of it is on its way


async def test_what_has_waited_long_is_sent_as_urgently_as_it_counts(ledger: Ledger) -> None:
    """In the queue it would be behind all that kept it waiting before."""
    patient = await ledger.submit(parallel("A", "A"), priority=0)
    await change(ledger, sa.update(tasks).values(due_at=later(-700)))

    hurried = timedelta(seconds=300)
    claims = await ledger.writer.claim_ready(window=99, limit=9, lease=LEASE, ageing=hurried)

    assert [claim.priority for claim in claims] == [2, 0]
    assert {one.priority for one in await ledger.tasks(patient)} == {0}


async def test_all_of_many_small_jobs_have_their_turn(ledger: Ledger) -> None:
    """There are more jobs than a claim looks at; the last is not left until the first are done."""
    small = [new_job(parallel(*["A"] * 5), source_id=f"S{number}") for number in range(800)]
    await ledger.outcomes(*small)
    last = await ledger.submit("A", source_id="last")

    claimed = Counter[JobId]()
    claims = 0
    while not claimed[last]:
        claimed += by_job(await ledger.claim(limit=100, window=5000))
        claims += 1

    assert claims <= 10


@pytest.mark.parametrize("stopped", ["paused", "cancelling"])
async def test_a_crowd_that_stands_still_is_passed_over(ledger: Ledger, stopped: str) -> None:
    still = await crowd(ledger, 5000)
    await change(ledger, sa.update(jobs).where(jobs.c.id == still).values({stopped: True}))
    mine = await ledger.submit("A")

    with statements(ledger.store) as seen:
        claims = await ledger.claim(limit=20)

    assert by_job(claims) == {mine: 1}
    assert len(seen) < 20


async def test_what_was_put_off_is_passed_over(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that drains hands back what it has, to be sent in a while: many steps away."""
    monkeypatch.setattr(candidates, "_REACH", 100)
    job = await crowd(ledger, 1000)
    put_off = sa.update(tasks).where(tasks.c.job_id == job, tasks.c.seq < 990)
    await change(ledger, put_off.values(due_at=later(60)))

    assert len(await ledger.claim(limit=20)) == 10


# --- what it costs ------------------------------------------------------------------------------


async def test_a_large_job_is_claimed_with_few_statements(ledger: Ledger) -> None:
    await crowd(ledger, 3000)
    await ledger.claim(limit=1)

    with statements(ledger.store) as seen:
        claims = await ledger.claim(limit=500)

    assert len(claims) == 500
    assert len([one for one in seen if "task" in one]) <= 8


async def test_many_small_jobs_are_claimed_with_few_statements(ledger: Ledger) -> None:
    small = [new_job(parallel("A", "A"), source_id=f"S{number}") for number in range(500)]
    await ledger.outcomes(*small)

    with statements(ledger.store) as seen:
        claims = await ledger.claim(limit=500)

    assert len(claims) == 500
    assert len([one for one in seen if "task" in one]) <= 10


# --- successors ---------------------------------------------------------------------------------


async def test_what_follows_an_answer_does_not_overtake_what_waits(ledger: Ledger) -> None:
    """It is claimed along the way only when it keeps nobody waiting."""
    chain = await ledger.submit(sequence("B", "A"))
    [first] = await ledger.claim()
    waiting = await ledger.submit("A")

    recorded = await ledger.record(answer(first), window=9)

    assert recorded.claims == []
    assert by_job(await ledger.claim()) == {waiting: 1, chain: 1}


# --- limits -------------------------------------------------------------------------------------


async def test_no_more_of_a_key_are_sent_or_run_than_its_limit_lets(ledger: Ledger) -> None:
    """What a worker has begun leaves the window, but not the limit."""
    await ledger.submit(parallel(*["A"] * 5))
    await limit(ledger, concurrency=2)
    first = await ledger.send()
    await ledger.writer.note_reports([started(first[0])], [], [])
    full = await ledger.claim()

    await ledger.record(answer(first[0]))
    freed = await ledger.claim()

    assert (len(first), full, len(freed)) == (2, [], 1)


async def test_a_limit_that_was_made_smaller_waits_until_there_is_room(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 5))
    first = await ledger.claim(limit=3)
    await limit(ledger, concurrency=1)

    assert await ledger.claim() == []
    await limit(ledger, concurrency=None)
    assert len(first) + len(await ledger.claim()) == 5


async def test_a_limit_of_one_is_shared_in_turn(ledger: Ledger) -> None:
    one, other = [await crowd(ledger, 20, owner=name) for name in ("one", "other")]
    await limit(ledger, concurrency=1)

    served = Counter[JobId]()
    for _ in range(6):
        [claim] = await ledger.send()
        served[claim.job_id] += 1
        await ledger.record(answer(claim))

    assert served == {one: 3, other: 3}


async def test_jobs_that_stand_still_do_not_hide_one_that_goes_on(ledger: Ledger) -> None:
    """However few places there are: with a limit of one, only one task of an owner is looked at."""
    for number in range(5):
        stopped = await ledger.submit(parallel("A", "A"), source_id=f"S{number}")
        await ledger.acts.pause_job(stopped)
    going = await ledger.submit(parallel("A", "A", "A"))
    await limit(ledger, concurrency=1)

    for _ in range(3):
        [claim] = await ledger.claim()
        assert claim.job_id == going
        await ledger.record(answer(claim))


async def test_chains_under_way_come_down_to_a_limit_set_meanwhile(ledger: Ledger) -> None:
    """A place is not passed on from one step to the next while more are out than may be."""
    for number in range(4):
        await ledger.submit(sequence(*["A"] * 3), source_id=f"S{number}")
    claims = await ledger.send()
    await limit(ledger, concurrency=1)

    recorded = [await ledger.record(answer(claim), window=1000) for claim in claims]

    assert [one.claims for one in recorded] == [[], [], [], []]
    assert len(await ledger.claim()) == 1


async def test_successors_keep_to_the_limit_too(ledger: Ledger) -> None:
    await ledger.submit(parallel(*[sequence("B", "A")] * 3))
    sent = await ledger.send()
    await limit(ledger, concurrency=2)

    recorded = await ledger.record(*map(answer, sent), window=9)

    assert len(recorded.claims) == 2
    assert await ledger.claim() == []


async def test_no_more_go_in_a_second_than_the_rate_of_a_key_lets(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 9, "B"))
    await limit(ledger, rate=0.01, burst=3)
    told: list[float] = []

    async def claim() -> Counter[str]:
        claims = await ledger.writer.claim_ready(
            window=99, limit=99, lease=LEASE, put_off=told.append
        )
        return Counter(one.key for one in claims)

    first, second = await claim(), await claim()
    await limit(ledger, next_at=None)  # the time is over
    third = await claim()

    assert (first, second, third) == ({"A": 3, "B": 1}, {}, {"A": 3})
    assert len(told) == 3
    assert all(90 < seconds <= 100 for seconds in told)


async def test_successors_keep_to_the_rate_too(ledger: Ledger) -> None:
    await ledger.submit(parallel(*[sequence("B", "A")] * 3))
    sent = await ledger.send()
    await limit(ledger, rate=0.01, burst=2)

    recorded = await ledger.record(*map(answer, sent), window=9)

    assert len(recorded.claims) == 2
    assert await ledger.claim() == []


@pytest.mark.services
async def test_two_runners_keep_to_one_limit(mariadb_store: Store) -> None:
    """The second waits until it can see what the first has taken."""
    ledger = Ledger.of(mariadb_store)
    await ledger.submit(parallel(*["A"] * 9))
    await limit(ledger, concurrency=3, rate=0.01, burst=4)
    holding = Holding(ledger.store)
    first = asyncio.create_task(Writer(holding).claim_ready(window=9, limit=2, lease=LEASE))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.claim())

    holding.go_on.set()

    assert (len(await first), len(await second)) == (2, 1)
    async with ledger.store.engine.connect() as connection:
        gone = await connection.scalar(sa.select(task_keys.c.next_at > later(299)))
    assert gone
