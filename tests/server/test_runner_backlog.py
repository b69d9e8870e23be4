"""Above what may be open at once no job is taken in, and what is refused leaves no trace."""

import pytest

from dane_core.errors import BadSpec, TooMuchOpen
from dane_server.runner.backlog import Backlog, MostOpen
from dane_server.storage.quotas import OpenTasks, Quotas
from dane_server.storage.view import JobQuery, Once, Submitted
from tests.server.ledger import Ledger, new_job, parallel, sequence


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Counting(Quotas):
    """Notes how often the store was asked."""

    times = 0

    async def open_tasks(self) -> OpenTasks:
        self.times += 1
        return await super().open_tasks()


def backlog(ledger: Ledger, most: int, of_owner: int | None = None) -> Backlog:
    limits = MostOpen(of_all=most, of_owner=of_owner)
    return Backlog(ledger.writer, Quotas(ledger.store), limits, clock=Clock())


async def stored(ledger: Ledger) -> int:
    return len((await ledger.reader.jobs(JobQuery(limit=99))).jobs)


async def test_above_the_limit_nothing_is_stored_and_the_refusal_says_why(ledger: Ledger) -> None:
    await ledger.submit(parallel("A", "B", "C"))

    [outcome] = await backlog(ledger, 4).store_jobs([new_job(sequence("A", "B"))])

    assert isinstance(outcome, TooMuchOpen)
    assert (outcome.count, outcome.limit, outcome.owner) == (3, 4, None)
    assert await stored(ledger) == 1


async def test_what_is_settled_leaves_room(ledger: Ledger) -> None:
    """Of a job that is finished nothing is open, whatever became of its tasks."""
    await ledger.submit(sequence("A", "B"))
    await ledger.answer_all(500)
    job = await ledger.submit(parallel("A", "B", "C"))
    await ledger.answer_all(200)
    await ledger.submit(sequence("A", "B", "C"), source_id="S2")
    await ledger.answer_all(200)

    counted = await Quotas(ledger.store).open_tasks()

    assert counted.by_owner == {"": 2}
    assert (await ledger.reader.job(job)).counts.succeeded == 3


async def test_a_batch_is_taken_in_as_far_as_there_is_room(ledger: Ledger) -> None:
    outcomes = await backlog(ledger, 2).store_jobs([new_job("A") for _ in range(4)])

    assert [type(one) for one in outcomes] == [Submitted, Submitted, TooMuchOpen, TooMuchOpen]
    assert await stored(ledger) == 2


async def test_what_came_in_since_the_last_count_is_counted_too(ledger: Ledger) -> None:
    """A count may be a second old, and in a second very much comes in."""
    counting = Counting(ledger.store)
    door = Backlog(ledger.writer, counting, MostOpen(of_all=2), clock=Clock())

    outcomes = [(await door.store_jobs([new_job("A")]))[0] for _ in range(3)]

    assert [type(one) for one in outcomes] == [Submitted, Submitted, TooMuchOpen]
    assert counting.times == 1


async def test_once_work_is_done_there_is_room_again(ledger: Ledger) -> None:
    clock = Clock()
    door = Backlog(ledger.writer, Quotas(ledger.store), MostOpen(of_all=1), clock=clock)
    await door.store_jobs([new_job("A")])
    [full] = await door.store_jobs([new_job("A")])
    await ledger.answer_all(200)
    clock.time = 2.0

    [outcome] = await door.store_jobs([new_job("A")])

    assert isinstance(full, TooMuchOpen)
    assert isinstance(outcome, Submitted)


async def test_owners_are_bounded_each_by_its_own_limit(ledger: Ledger) -> None:
    await Quotas(ledger.store).change_owner("ann", {"max_open": 3})
    door = backlog(ledger, 100, of_owner=1)

    outcomes = await door.store_jobs(
        [new_job(parallel("A", "B"), owner="ann")]
        + [new_job("A", owner=name) for name in ("bob", "bob", "ann", "ann", "")]
    )

    refused = [one.owner if isinstance(one, TooMuchOpen) else None for one in outcomes]
    assert refused == [None, None, "bob", None, "ann", None]


async def test_a_request_that_was_taken_in_before_needs_no_room(ledger: Ledger) -> None:
    """It asks for the job it has already, not for another one."""
    once = Once(key="k", digest="d")
    door = backlog(ledger, 1)
    [first] = await door.store_jobs([new_job("A", once=once)])

    [again] = await door.store_jobs([new_job("A", once=once)])

    assert isinstance(first, Submitted)
    assert again == Submitted(job_id=first.job_id, replayed=True)


async def test_a_request_that_was_repeated_is_not_counted_again(ledger: Ledger) -> None:
    """Nor is one that was refused: neither has left anything open."""
    once = Once(key="k", digest="d")
    door = backlog(ledger, 3)
    for _ in range(5):
        await door.store_jobs([new_job("A", once=once)])
    conflict = new_job("A", source_url="http://127.0.0.1/elsewhere")
    await door.store_jobs([conflict, conflict])

    [last] = await door.store_jobs([new_job(parallel("A", "B"))])

    assert isinstance(last, Submitted)


async def test_a_job_that_will_never_fit_is_not_told_to_come_again(ledger: Ledger) -> None:
    [outcome] = await backlog(ledger, 1).store_jobs([new_job(parallel("A", "B"))])

    assert isinstance(outcome, BadSpec)
    assert outcome.faults[0].path == "tasks"


@pytest.mark.parametrize("paused", [False, True])
async def test_tasks_of_a_paused_job_are_open(ledger: Ledger, paused: bool) -> None:  # noqa: FBT001
    job = await ledger.submit(sequence("A", "B"))
    if paused:
        await ledger.acts.pause_job(job)

    assert (await Quotas(ledger.store).open_tasks()).by_owner == {"": 2}
