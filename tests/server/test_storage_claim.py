"""What is sent, in which order, and never twice at once; and what the exchange says of it."""

import asyncio
from collections import Counter
from datetime import timedelta

import pytest
import sqlalchemy as sa

from dane_core.states import JobStatus, TaskState
from dane_server.storage import writer
from dane_server.storage.acts import Acts
from dane_server.storage.claiming import even_shares
from dane_server.storage.engine import Store
from dane_server.storage.inline import NOTHING
from dane_server.storage.tables import jobs
from dane_server.storage.view import Claim, Place
from dane_server.storage.writer import Writer
from tests.server.audit import audit
from tests.server.crash import Crash, Crashing, Holding
from tests.server.ledger import (
    LEASE,
    Ledger,
    answer,
    keys_of,
    new_job,
    parallel,
    released,
    sequence,
    started,
    task,
)
from tests.server.transactions import one_waits_for_a_lock

NOW = timedelta(0)


async def state_of(ledger: Ledger, claim: Claim) -> TaskState:
    return (await ledger.reader.task(claim.task_id)).task.state


async def test_what_is_claimed_carries_what_its_message_needs(ledger: Ledger) -> None:
    job = await ledger.submit(
        task("A", name="first", args={"x": [1]}, timeout=2.5, priority=7), type="video"
    )

    [claim] = await ledger.claim()

    assert (claim.job_id, claim.key, claim.name, claim.args) == (job, "A", "first", {"x": [1]})
    assert (claim.priority, claim.timeout) == (7, 2.5)
    assert (claim.attempt, claim.dispatch, claim.fanin) == (1, 1, 0)


async def test_a_claimed_task_is_not_claimed_again(ledger: Ledger) -> None:
    await ledger.submit("A")

    first, second = await ledger.claim(), await ledger.claim()

    assert (keys_of(first), second) == (["A"], [])


async def test_tasks_whose_predecessors_are_not_done_are_not_claimed(ledger: Ledger) -> None:
    await ledger.submit(sequence("A", "B"))

    assert keys_of(await ledger.claim()) == ["A"]


async def test_the_most_urgent_goes_first_and_then_the_oldest(ledger: Ledger) -> None:
    await ledger.submit(task("A", name="old"), priority=1)
    await ledger.submit(task("A", name="urgent"), priority=9)
    await ledger.submit(task("A", name="new"), priority=1)
    await ledger.submit(task("A", name="own", priority=10), priority=0)

    names = [(await ledger.claim(limit=1))[0].name for _ in range(4)]

    assert names == ["own", "urgent", "old", "new"]


async def test_no_more_of_a_key_are_out_than_its_window_lets(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 5, *["B"] * 2))

    first = await ledger.claim(window=3)
    await ledger.mark(queued=first)
    full = await ledger.claim(window=3)
    await ledger.record(answer(next(claim for claim in first if claim.key == "A")))
    freed = await ledger.claim(window=3)

    assert Counter(keys_of(first)) == {"A": 3, "B": 2}
    assert full == []
    assert keys_of(freed) == ["A"]


async def test_a_task_that_a_worker_has_begun_leaves_the_window(ledger: Ledger) -> None:
    """The window bounds what lies in the queue; running tasks take no place there."""
    await ledger.submit(parallel("A", "A"))
    [first] = await ledger.claim(window=1)
    await ledger.writer.note_reports([started(first)], [], [])

    assert len(await ledger.claim(window=1)) == 1


async def test_no_more_are_claimed_than_asked_for(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 3, *["B"] * 3))

    batches = [len(await ledger.claim(limit=4)) for _ in range(3)]

    assert batches == [4, 2, 0]


async def test_a_claim_that_has_not_seen_everything_says_so(ledger: Ledger) -> None:
    """Nobody rings for what it has left; after one that saw all, a bell does."""
    await ledger.submit(parallel(*["A"] * 3))
    told: list[list[float]] = [[], [], []]

    for said in told:
        await ledger.writer.claim_ready(window=9, limit=2, lease=LEASE, put_off=said.append)

    assert told == [[0.0], [], []]


async def test_nothing_need_be_asked_of_a_job_that_has_not_begun(ledger: Ledger) -> None:
    """No task of it was answered yet."""
    await ledger.submit(sequence("A", "A"))
    [first] = await ledger.send()
    await ledger.record(answer(first))
    [second] = await ledger.claim()

    assert (first.earlier, second.earlier) == (NOTHING, None)


async def test_one_full_key_does_not_hold_up_another(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 10), priority=10)
    await ledger.submit("B", priority=0)
    await ledger.claim(window=2)

    assert keys_of(await ledger.claim(window=2)) == []
    await ledger.submit("B", priority=0)
    assert keys_of(await ledger.claim(window=2)) == ["B"]


async def test_a_key_that_is_emptied_fast_leaves_something_to_those_behind_it(
    ledger: Ledger,
) -> None:
    await ledger.submit(parallel(*["A"] * 20, *["B"] * 20, "C"))

    first = await ledger.claim(limit=9)
    then = await ledger.claim(limit=15)

    assert Counter(keys_of(first)) == {"A": 4, "B": 4, "C": 1}
    assert Counter(keys_of(then)) == {"A": 8, "B": 7}


async def test_of_more_keys_than_are_claimed_at_once_each_has_its_turn(ledger: Ledger) -> None:
    await ledger.submit(parallel(*"ABCDEF"))

    claimed = [keys_of(await ledger.claim(limit=2)) for _ in range(3)]

    assert sorted(key for keys in claimed for key in keys) == [*"ABCDEF"]


@pytest.mark.parametrize(
    ("limit", "rooms", "shares"),
    [
        (10, {}, {}),
        (10, {"A": 100}, {"A": 10}),
        (10, {"A": 100, "B": 100}, {"A": 5, "B": 5}),
        (10, {"A": 100, "B": 2, "C": 0}, {"A": 8, "B": 2, "C": 0}),
        (11, {"A": 9, "B": 9, "C": 9}, {"A": 4, "B": 4, "C": 3}),
        (10, {"A": 1, "B": 2}, {"A": 1, "B": 2}),
        (1, {"A": 5, "B": 5}, {"A": 1, "B": 0}),
        (5, {"A": -3, "B": 9}, {"A": 0, "B": 5}),
    ],
)
def test_keys_share_what_may_be_claimed(
    limit: int, rooms: dict[str, int], shares: dict[str, int]
) -> None:
    """More than the window may be out after it was made smaller: then there is no room."""
    assert even_shares(limit, rooms) == shares


async def test_tasks_of_a_paused_job_are_not_claimed_until_it_goes_on(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    other = await ledger.submit("A")
    await ledger.acts.pause_job(job)

    during = await ledger.claim()
    await ledger.acts.resume_job(job)
    after = await ledger.claim()

    assert [claim.job_id for claim in during] == [other]
    assert [claim.job_id for claim in after] == [job]


async def test_tasks_of_a_paused_key_are_not_claimed_until_it_goes_on(ledger: Ledger) -> None:
    await ledger.submit(parallel("A", "B"))
    await ledger.acts.pause_key("A")

    during = await ledger.claim()
    await ledger.acts.resume_key("A")
    after = await ledger.claim()

    assert (keys_of(during), keys_of(after)) == (["B"], ["A"])


async def test_successors_of_a_paused_job_or_key_are_not_claimed_along(ledger: Ledger) -> None:
    """The fast path, which claims what an answer releases, asks the same questions."""
    paused = await ledger.submit(sequence("X", "A"))
    await ledger.submit(sequence("X", "B"))
    await ledger.submit(sequence("X", "C"))
    claims = await ledger.send()
    await ledger.acts.pause_job(paused)
    await ledger.acts.pause_key("B")

    recorded = await ledger.record(*map(answer, claims), window=1000)

    assert keys_of(recorded.claims) == ["C"]
    assert len(recorded.ready) == 3


async def test_successors_are_claimed_along_as_far_as_the_window_lets(ledger: Ledger) -> None:
    await ledger.submit(sequence("X", parallel(*["A"] * 5)))
    recorded = await ledger.record(*map(answer, await ledger.send()), window=3)

    rest = await ledger.claim(window=3)

    assert keys_of(recorded.claims) == ["A"] * 3
    assert {claim.dispatch for claim in recorded.claims} == {1}
    assert rest == []


async def test_two_claimers_at_once_never_get_the_same_task(ledger: Ledger) -> None:
    await ledger.submit(parallel(*["A"] * 150, *["B"] * 150))

    batches = await asyncio.gather(*(ledger.claim(limit=40) for _ in range(10)))

    ids = [claim.task_id for batch in batches for claim in batch]
    assert len(ids) == len(set(ids))
    await ledger.claim()
    assert await ledger.claim() == []


@pytest.mark.services
async def test_two_runners_at_one_key_take_turns_and_its_window_stays_exact(
    mariadb_store: Store,
) -> None:
    """The second cannot see what the first has not committed, so it would fill the window twice."""
    ledger = Ledger.of(mariadb_store)
    await ledger.submit(parallel(*["A"] * 9))
    holding = Holding(ledger.store)
    first = asyncio.create_task(Writer(holding).claim_ready(window=3, limit=2, lease=LEASE))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.claim(window=3))
    third = await ledger.submit("B")

    holding.go_on.set()
    assert len(await first) == 2
    assert sorted(keys_of(await second) + keys_of(await ledger.claim(window=3))) == ["A", "B"]
    assert await ledger.status(third) is JobStatus.ACCEPTED


@pytest.mark.services
async def test_what_follows_an_answer_waits_for_the_window_too(mariadb_store: Store) -> None:
    """It is claimed along the way, by whoever records the answer."""
    ledger = Ledger.of(mariadb_store)
    await ledger.submit(parallel(*[sequence("A", "B")] * 6))
    answered = await ledger.send()
    half = [answer(claim) for claim in answered]
    holding = Holding(ledger.store)
    first = asyncio.create_task(Writer(holding).record(half[:3], window=4, lease=LEASE))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.record(*half[3:], window=4))

    holding.go_on.set()
    assert len((await first).claims) == 3
    assert len((await second).claims) == 1


@pytest.mark.services
async def test_answers_that_let_nothing_go_hold_no_window(mariadb_store: Store) -> None:
    """The many of a fan-out: their recorders wait for no claimer, and no claimer for them."""
    ledger = Ledger.of(mariadb_store)
    await ledger.submit(parallel(*["A"] * 4))
    claims = await ledger.send(limit=2)
    holding = Holding(ledger.store)
    claiming = asyncio.create_task(Writer(holding).claim_ready(window=9, limit=9, lease=LEASE))
    await holding.reached.wait()

    recorded = await asyncio.wait_for(ledger.record(*map(answer, claims), window=9), 2)

    holding.go_on.set()
    assert len(recorded.settled) == 2
    assert len(await claiming) == 2


@pytest.mark.services
async def test_a_key_that_was_paused_a_moment_ago_is_passed_over(mariadb_store: Store) -> None:
    """Who pauses takes back what was claimed before; what is claimed after would be forgotten."""
    ledger = Ledger.of(mariadb_store)
    await ledger.acts.resume_key("A")  # it is known
    await ledger.submit("A")
    holding = Holding(ledger.store)
    pausing = asyncio.create_task(Acts(holding).pause_key("A"))
    await holding.reached.wait()
    claiming = asyncio.create_task(ledger.claim())
    await one_waits_for_a_lock(mariadb_store)

    holding.go_on.set()
    await pausing
    assert await claiming == []


@pytest.mark.services
async def test_a_job_that_is_held_does_not_keep_its_tasks_from_being_marked(
    mariadb_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sends would send nothing else meanwhile, and then these once more."""
    monkeypatch.setattr(writer, "_FOR_JOBS", 0.2)
    ledger = Ledger.of(mariadb_store)
    job = await ledger.submit("A")
    claims = await ledger.claim()
    async with mariadb_store.engine.begin() as holder:
        await holder.execute(sa.select(jobs.c.id).where(jobs.c.id == job).with_for_update())
        await asyncio.wait_for(ledger.writer.mark_sent(claims, [], again=LEASE), 10)
        marked = await ledger.states(job)

    assert marked == {"A": TaskState.QUEUED}


@pytest.mark.services
async def test_jobs_are_accepted_while_a_claimer_looks_for_tasks(mariadb_store: Store) -> None:
    """Under REPEATABLE READ the claimer's gap locks would make inserts wait."""
    ledger = Ledger.of(mariadb_store)
    await ledger.submit(parallel(*["A"] * 4))
    holding = Holding(ledger.store)
    claiming = asyncio.create_task(Writer(holding).claim_ready(window=1000, limit=2, lease=LEASE))
    await holding.reached.wait()

    job = await asyncio.wait_for(ledger.submit(sequence("A", "B")), 2)
    await asyncio.wait_for(ledger.acts.pause_job(job), 2)

    holding.go_on.set()
    assert len(await claiming) == 2


# --- the lease ------------------------------------------------------------------------------


async def test_what_was_claimed_and_never_confirmed_is_claimed_again(ledger: Ledger) -> None:
    """A runner that dies between claiming and sending."""
    await ledger.submit("A")
    [lost] = await ledger.claim(lease=NOW)

    swept = await ledger.sweep()
    [again] = await ledger.claim()

    assert swept == 1
    assert (again.task_id, again.attempt, again.dispatch) == (lost.task_id, 1, 2)


async def test_a_claim_under_lease_is_left_alone(ledger: Ledger) -> None:
    await ledger.submit("A")
    await ledger.claim(lease=LEASE)

    assert await ledger.sweep() == 0
    assert await ledger.claim() == []
    due = await ledger.sweeps.next_due()
    assert due is not None
    assert LEASE.total_seconds() - 20 < due <= LEASE.total_seconds()


async def test_a_claim_whose_transaction_did_not_commit_is_no_claim(ledger: Ledger) -> None:
    await ledger.submit("A")

    with pytest.raises(Crash):
        await Writer(Crashing(ledger.store)).claim_ready(window=9, limit=9, lease=LEASE)

    [claim] = await ledger.claim()
    assert claim.dispatch == 1


# --- what the exchange says ------------------------------------------------------------------


async def test_a_confirmed_task_is_queued_and_its_job_has_started(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", "B"))
    accepted = await ledger.status(job)

    [claim] = await ledger.send()

    found = await ledger.task(job, "A")
    head = await ledger.reader.job(job)
    assert (accepted, head.status) == (JobStatus.ACCEPTED, JobStatus.RUNNING)
    assert head.started_at is not None
    assert (found.state, found.number, found.text) == (TaskState.QUEUED, 102, "Queued")
    assert found.queued_at is not None
    assert claim.task_id == found.id


async def test_a_confirmation_that_comes_after_the_answer_changes_nothing(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    claims = await ledger.claim()
    await ledger.record(*map(answer, claims))

    await ledger.mark(queued=claims)

    assert await ledger.status(job) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, job) == []


async def test_a_job_whose_task_was_answered_before_it_was_marked_has_started(
    ledger: Ledger,
) -> None:
    """The runner that sent it may have died before it could write down that it did."""
    job = await ledger.submit(sequence("A", "B"))
    await ledger.record(*map(answer, await ledger.claim()))

    head = await ledger.reader.job(job)

    assert head.started_at is not None
    assert head.status is JobStatus.RUNNING


async def test_a_confirmation_of_an_earlier_sending_is_not_one_of_the_next(ledger: Ledger) -> None:
    await ledger.submit("A")
    early = await ledger.claim(lease=NOW)
    await ledger.sweep()
    [late] = await ledger.claim()

    await ledger.mark(queued=early)
    before = await state_of(ledger, late)
    await ledger.mark(queued=[late])
    after = await state_of(ledger, late)

    assert (before, after) == (TaskState.DISPATCHING, TaskState.QUEUED)


async def test_a_return_of_an_earlier_sending_is_not_one_of_the_next(ledger: Ledger) -> None:
    await ledger.submit("A")
    early = await ledger.claim(lease=NOW)
    await ledger.sweep()
    [late] = await ledger.claim()

    await ledger.mark(unroutable=early)

    assert await state_of(ledger, late) is TaskState.DISPATCHING


async def test_a_confirmation_for_a_task_forced_since_is_not_taken(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    claims = await ledger.claim()
    await ledger.acts.force_task(claims[0].task_id)

    await ledger.mark(queued=claims)

    assert (await ledger.task(job, "A")).state is TaskState.READY


async def test_a_task_without_a_queue_waits_for_a_worker(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    await ledger.mark(unroutable=await ledger.claim())

    found = await ledger.task(job, "A")

    assert (found.state, found.number, found.text) == (
        TaskState.UNROUTABLE,
        422,
        "Unroutable task",
    )
    assert (await ledger.reader.job(job)).state == 422
    assert await ledger.claim() == []
    assert await audit(ledger.store, job) == []


async def test_a_task_without_a_queue_goes_as_soon_as_one_is_bound(ledger: Ledger) -> None:
    await ledger.submit(parallel("A", "B"))
    await ledger.mark(unroutable=await ledger.claim())

    bound = await ledger.writer.route_again(["A", "Z"])

    assert bound == 1
    assert keys_of(await ledger.claim()) == ["A"]


async def test_a_walk_over_what_has_no_queue_ends_though_they_find_none_again(
    ledger: Ledger,
) -> None:
    """The queue that was bound may be for another type."""
    await ledger.submit(parallel(*["A"] * 1100))
    while claims := await ledger.claim():
        await ledger.mark(unroutable=claims)
    steps, place = [], Place()
    while True:
        moved, after = await ledger.writer.route_some("A", place)
        if after is None:
            break
        steps.append(moved)
        place = after
        await ledger.mark(unroutable=await ledger.claim(window=5000))

    assert steps == [500, 500, 100]


async def test_a_task_without_a_queue_is_tried_again_after_some_time(ledger: Ledger) -> None:
    """The worker's hello may be lost."""
    await ledger.submit("A")
    await ledger.writer.mark_sent([], await ledger.claim(), again=NOW)

    await ledger.sweep()

    assert keys_of(await ledger.claim()) == ["A"]


async def test_a_task_handed_back_is_not_sent_before_its_time(ledger: Ledger) -> None:
    job = await ledger.submit("A")
    [claim] = await ledger.send()

    await ledger.writer.note_reports([], [], [released(claim, delay=30)])

    found = await ledger.task(job, "A")
    due = await ledger.sweeps.next_due()
    assert (found.state, found.attempt) == (TaskState.READY, 1)
    assert await ledger.claim() == []
    assert due is not None
    assert 20 < due <= 30


async def test_a_task_handed_back_at_once_is_sent_again_and_no_attempt_is_spent(
    ledger: Ledger,
) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()

    await ledger.writer.note_reports([], [], [released(claim)])
    [again] = await ledger.claim()

    assert (again.attempt, again.dispatch) == (1, 2)


async def test_what_was_handed_back_from_an_earlier_sending_is_not_taken_back(
    ledger: Ledger,
) -> None:
    await ledger.submit("A")
    [early] = await ledger.claim(lease=NOW)
    await ledger.sweep()
    [late] = await ledger.send()

    await ledger.writer.note_reports([], [], [released(early)])

    assert await state_of(ledger, late) is TaskState.QUEUED


async def test_everything_in_a_lost_exchange_is_sent_anew(ledger: Ledger) -> None:
    """An embedded server's exchange is gone with it; whoever still works is fenced off."""
    job = await ledger.submit(parallel("A", "B", "C"), source_id="S2")
    sent = {claim.key: claim for claim in await ledger.send()}
    await ledger.writer.note_reports([started(sent["B"])], [], [])
    await ledger.record(answer(sent["C"]))

    recovered = await ledger.sweeps.recover_from_lost_exchange()
    late = await ledger.record(answer(sent["A"]))
    again = await ledger.claim()

    assert recovered == 2
    assert len(late.late) == 1
    assert sorted(keys_of(again)) == ["A", "B"]
    assert {claim.attempt for claim in again} == {2}
    assert await audit(ledger.store, job) == []


async def test_a_task_that_ends_an_embedded_server_each_time_fails(ledger: Ledger) -> None:
    job = await ledger.submit(parallel("A", "B"))
    for _ in range(3):
        sent = {claim.key: claim for claim in await ledger.send()}
        await ledger.writer.note_reports([started(sent["A"])], [], [])
        await ledger.sweeps.recover_from_lost_exchange()

    assert await ledger.states(job) == {"A": TaskState.FAILED, "B": TaskState.READY}
    view = await ledger.reader.task((await ledger.task(job, "A")).id)
    assert view.task.message == "it has ended 1 worker that began it: w1"
    assert [one.message for one in view.attempts[:2]] == ["worker w1 ended with its server"] * 2
    assert await audit(ledger.store, job) == []


async def test_batches_of_other_sizes_are_claimed_to_the_last(ledger: Ledger) -> None:
    await ledger.outcomes(*(new_job(parallel("A", "B", "C"), source_id=f"S{n}") for n in range(40)))

    claimed: list[Claim] = []
    while some := await ledger.claim(limit=7, window=1000):
        assert len(some) <= 7
        claimed += some

    assert len({claim.task_id for claim in claimed}) == len(claimed) == 120
