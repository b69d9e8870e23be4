"""What is claimed of a job as it is stored, and what is left to whoever finds whose turn it is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import JobStatus, TaskState
from dane_server.storage import ahead, trip
from dane_server.storage.ahead import Ahead
from dane_server.storage.claiming import Claiming
from dane_server.storage.engine import Store
from dane_server.storage.quotas import Quotas
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.view import Claim, NewJob, Once, Submitted
from dane_server.storage.writer import Writer
from tests.server.audit import audit
from tests.server.crash import Holding
from tests.server.ledger import LEASE, Ledger, answer, new_job, parallel, sequence, task

AGAIN = timedelta(seconds=30)
ONCE = Once(key="k1", digest="a" * 64)


def asked(window: int = 1000, lease: timedelta = LEASE) -> Claiming:
    return Claiming(window=window, limit=500, lease=lease)


def unbound(*routing_keys: str) -> Claiming:
    return replace(asked(), unbound=frozenset(routing_keys), again=AGAIN)


async def stored(
    ledger: Ledger, *new_jobs: NewJob, claiming: Claiming | None = None
) -> list[Submitted]:
    """Store jobs, claiming what can be sent at once."""
    found = await ledger.writer.store_jobs(new_jobs, claiming or asked())
    return [one for one in found if isinstance(one, Submitted)]


async def known(ledger: Ledger, *keys: str) -> None:
    """Keys that a worker has announced, or an operator has spoken of."""
    for key in keys:
        await ledger.acts.resume_key(key)


def names(claims: Sequence[Claim]) -> list[str | None]:
    return [claim.name or claim.key for claim in claims]


async def test_the_first_tasks_of_a_job_are_claimed_as_it_is_stored(ledger: Ledger) -> None:
    await known(ledger, "A", "B", "C")
    job = new_job(sequence(parallel("A", "B"), "C"))

    [one] = await stored(ledger, job)

    assert names(one.claims) == ["A", "B"]
    assert not one.more
    assert await ledger.states(one.job_id) == {
        "A": TaskState.DISPATCHING,
        "B": TaskState.DISPATCHING,
        "C": TaskState.BLOCKED,
    }
    assert await ledger.claim() == []
    assert await audit(ledger.store, one.job_id) == []


async def test_what_is_like_a_task_that_is_to_find_no_queue_is_stored_as_unroutable(
    ledger: Ledger,
) -> None:
    """A hundred thousand of them are written once, and not claimed and marked as well."""
    await known(ledger, "A", "B")
    job = new_job(sequence(parallel("A", task("A", name="A2"), "B"), task("A", name="A3")))
    audio = new_job(parallel("A", task("A", name="A2")), type="audio")

    one, two = await stored(ledger, job, audio, claiming=unbound("unknown.A"))

    assert names(one.claims) == ["A", "B"]
    assert names(two.claims) == ["A", "A2"]
    assert not one.more
    assert one.unrouted == {"unknown.A"}
    found = {task.name or task.key: task for task in await ledger.tasks(one.job_id)}
    assert {name: task.state for name, task in found.items()} == {
        "A": TaskState.DISPATCHING,
        "A2": TaskState.UNROUTABLE,
        "B": TaskState.DISPATCHING,
        "A3": TaskState.BLOCKED,
    }
    assert found["A2"].queued_at is not None
    assert found["A2"].due_at == found["A2"].queued_at + AGAIN
    assert await audit(ledger.store, one.job_id) == []


async def test_one_for_each_routing_key_and_batch_is_left_to_find_out(ledger: Ledger) -> None:
    await known(ledger, "A")
    jobs = [new_job("A"), new_job("A"), new_job("A", type="audio"), new_job("A", type="audio")]

    found = await stored(ledger, *jobs, claiming=unbound("unknown.A", "audio.A"))
    [alone] = await stored(ledger, new_job("A"), claiming=unbound("unknown.A"))

    assert [len(one.claims) for one in found] == [1, 0, 1, 0]
    assert {one.unrouted for one in found} == {frozenset({"unknown.A", "audio.A"})}
    assert len(alone.claims) == 1
    assert alone.unrouted == frozenset()


async def test_only_who_sends_the_one_that_finds_out_takes_others_to_find_no_queue(
    ledger: Ledger,
) -> None:
    """Sent by another server, or held back by a limit, it would tell this one nothing."""
    await known(ledger, "B")
    await ledger.acts.pause_key("B")

    [one] = await stored(
        ledger, new_job(parallel("A", "A", "B", "B")), claiming=unbound("unknown.A", "unknown.B")
    )
    await known(ledger, "A")
    [large] = await stored(ledger, new_job(parallel(*["A"] * 501)), claiming=unbound("unknown.A"))

    for job in (one, large):
        assert {found.state for found in await ledger.tasks(job.job_id)} == {TaskState.READY}
        assert job.more


async def test_the_last_fifth_of_a_window_is_for_one_task_of_each_job(ledger: Ledger) -> None:
    """As in any other claim, so that others find a place there."""
    await known(ledger, "A", "B")
    jobs = [parallel(*["A"] * 9), parallel(*["B"] * 8), "B", parallel("B", "B")]

    found = [
        len(one.claims)
        for job in jobs
        for one in await stored(ledger, new_job(job), claiming=asked(window=10))
    ]

    assert found == [0, 8, 1, 0]


async def test_what_was_stored_as_unroutable_goes_when_a_queue_is_bound(ledger: Ledger) -> None:
    await known(ledger, "A")
    [one] = await stored(ledger, new_job(parallel("A", "A")), claiming=unbound("unknown.A"))

    routed = await ledger.writer.route_again(["A"])

    assert routed == 1
    await ledger.record(answer(one.claims[0]))
    await ledger.finish(one.job_id)
    assert await ledger.status(one.job_id) is JobStatus.SUCCEEDED
    assert await audit(ledger.store, one.job_id) == []


async def test_nothing_is_taken_to_find_no_queue_while_nothing_can_be_sent(ledger: Ledger) -> None:
    [one] = await stored(
        ledger, new_job(parallel("A", "A")), claiming=replace(unbound("unknown.A"), window=0)
    )

    assert {task.state for task in await ledger.tasks(one.job_id)} == {TaskState.READY}


async def test_what_waits_for_others_is_not_claimed_with_them(ledger: Ledger) -> None:
    await known(ledger, "A")

    [one] = await stored(ledger, new_job(sequence(task("A", name="1"), task("A", name="2"))))

    assert names(one.claims) == ["1"]
    assert not one.more
    states = await ledger.states(one.job_id)
    assert states == {"1": TaskState.DISPATCHING, "2": TaskState.BLOCKED}


async def test_such_a_claim_says_what_one_of_the_dispatcher_says(ledger: Ledger) -> None:
    """But for the ids; the dispatcher reads the head of the job, which comes along here."""
    await known(ledger, "A")
    spec = task("A", name="one", args={"x": 1}, priority=7, timeout=5.0)
    job = new_job(spec, type="video", priority=2, metadata={"of": "us"})
    [first] = await stored(ledger, job, claiming=asked(window=0))
    [found] = await ledger.claim()
    await ledger.record(answer(found))

    [second] = await stored(ledger, job)
    [ahead] = second.claims

    same = {"task_id": found.task_id, "job_id": found.job_id, "head": None}
    assert replace(ahead, **same) == found  # type: ignore[arg-type]
    heads = await ledger.reader.heads([second.job_id])
    assert ahead.head == heads[second.job_id]
    assert first.claims == ()
    assert first.more


async def test_what_was_claimed_so_is_recorded_as_any_other(ledger: Ledger) -> None:
    await known(ledger, "A")
    [one] = await stored(ledger, new_job(sequence("A", "B")))
    before = await ledger.task(one.job_id, "A")

    await ledger.record(answer(one.claims[0]))

    found = await ledger.task(one.job_id, "A")
    assert before.queued_at is not None
    assert before.due_at == before.queued_at + LEASE
    assert found.state is TaskState.SUCCEEDED
    assert found.dispatch == 1
    assert await ledger.states(one.job_id) == {"A": TaskState.SUCCEEDED, "B": TaskState.READY}
    assert await audit(ledger.store, one.job_id) == []


async def test_what_was_claimed_and_never_sent_is_claimed_after_its_lease(ledger: Ledger) -> None:
    await known(ledger, "A")
    [one] = await stored(ledger, new_job("A"), claiming=asked(lease=timedelta(0)))

    await ledger.sweep()
    [again] = await ledger.claim()

    assert again.task_id == one.claims[0].task_id
    assert again.dispatch == 2


async def test_no_more_are_claimed_than_the_window_has_room_for(ledger: Ledger) -> None:
    """Of a key all or none: those left behind would see others pass them."""
    await known(ledger, "A", "B")
    await stored(ledger, new_job(parallel("A", "A")))

    [full] = await stored(ledger, new_job(parallel("A", "A", "B")), claiming=asked(window=3))
    [fits] = await stored(ledger, new_job(parallel("B", "B")), claiming=asked(window=3))

    assert names(full.claims) == ["B"]
    assert full.more
    assert names(fits.claims) == ["B", "B"]
    assert not fits.more


async def _others_ready(ledger: Ledger) -> None:
    await ledger.submit("A")


async def _paused(ledger: Ledger) -> None:
    await ledger.acts.pause_key("A")


async def _limited(ledger: Ledger) -> None:
    await Quotas(ledger.store).limit_key("A", {"concurrency": 5})


async def _at_a_rate(ledger: Ledger) -> None:
    await Quotas(ledger.store).limit_key("A", {"rate": 5.0, "burst": 5})


@pytest.mark.parametrize(
    "before", [_others_ready, _paused, _limited, _at_a_rate], ids=lambda before: before.__name__[1:]
)
async def test_whose_turn_it_is_is_found_out_where_it_is_not_plain(
    ledger: Ledger, before: Callable[[Ledger], Awaitable[None]]
) -> None:
    await known(ledger, "A")
    await before(ledger)

    [one] = await stored(ledger, new_job("A"))

    assert one.claims == ()
    assert one.more
    assert await ledger.states(one.job_id) == {"A": TaskState.READY}


async def test_of_a_key_nobody_has_spoken_of_nothing_is_claimed(ledger: Ledger) -> None:
    [one] = await stored(ledger, new_job("A"))

    assert one.claims == ()
    assert one.more


@pytest.mark.parametrize("shape", [parallel, sequence])
async def test_of_a_large_job_nothing_is_claimed(
    ledger: Ledger, shape: Callable[..., dict[str, Any]]
) -> None:
    """It takes long to be stored, and its key would be held until then."""
    await known(ledger, "A")

    [one] = await stored(ledger, new_job(shape(*["A"] * 501)))

    assert one.claims == ()
    assert one.more


async def test_jobs_stored_together_are_claimed_together(ledger: Ledger) -> None:
    await known(ledger, "A", "B")

    found = await stored(
        ledger, *(new_job(parallel("A", "B"), source_id=f"S{n}") for n in range(3))
    )

    assert [names(one.claims) for one in found] == [["A", "B"]] * 3
    for one in found:
        assert {claim.job_id for claim in one.claims} == {one.job_id}
        assert {claim.task_id for claim in one.claims} == {
            task.id for task in await ledger.tasks(one.job_id)
        }


async def test_a_request_made_again_claims_nothing_more(ledger: Ledger) -> None:
    await known(ledger, "A")
    [first] = await stored(ledger, new_job("A", once=ONCE))

    [again] = await stored(ledger, new_job("A", once=ONCE))

    assert again.replayed
    assert len(first.claims) == 1
    assert again.claims == ()


async def test_who_stores_waits_for_nobody_that_holds_a_key(mariadb_store: Store) -> None:
    """A runner that was stopped in the middle of a claim would hold up every submission."""
    ledger, holding = Ledger.of(mariadb_store), Holding(mariadb_store)
    await known(ledger, "A")

    async def hold(connection: AsyncConnection) -> Any:
        await connection.execute(sql.hold_keys(), {"keys": ["A"]})

    holder = asyncio.create_task(holding.write(hold))
    await holding.reached.wait()
    [one] = await asyncio.wait_for(stored(ledger, new_job("A")), 10)
    holding.go_on.set()
    await holder

    assert one.claims == ()
    assert await ledger.states(one.job_id) == {"A": TaskState.READY}


async def test_two_who_store_at_once_do_not_overfill_a_window(mariadb_store: Store) -> None:
    """The second finds the key held, and leaves its task to a claim of its own."""
    ledger, holding = Ledger.of(mariadb_store), Holding(mariadb_store)
    await known(ledger, "A")

    first = asyncio.create_task(Writer(holding).store_jobs([new_job("A")], asked(window=1)))
    await holding.reached.wait()
    [second] = await asyncio.wait_for(
        stored(ledger, new_job("A", source_id="S2"), claiming=asked(window=1)), 10
    )
    holding.go_on.set()
    [before] = await first

    assert isinstance(before, Submitted)
    assert len(before.claims) == 1
    assert second.claims == ()
    assert await ledger.claim(window=1) == []


async def test_what_is_held_last_is_not_counted_as_of_before(
    mariadb_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts of one statement are of one moment: B may have others before it is held."""
    ledger = Ledger.of(mariadb_store)
    await known(ledger, "A", "B")
    read = trip.read

    async def meanwhile(connection: AsyncConnection, statement: Any, parameters: Any) -> Any:
        """Read, while B gets a task as the keys are being held."""
        found = await read(connection, statement, parameters)
        if statement is sql.hold_free_keys():
            await ledger.submit("B")
        return found

    monkeypatch.setattr(ahead, "read", meanwhile)
    new = [new_job(parallel("A", "B"))]

    found = await mariadb_store.write(lambda connection: Ahead.found(connection, new, asked()))

    assert found.keys == {"A"}
