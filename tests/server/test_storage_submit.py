"""A job that was accepted is there, whole; one that was not has left nothing behind."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import KeyReused, SourceConflict
from dane_core.states import JobStatus, TaskState
from dane_server.graph import compile_graph
from dane_server.storage import tables
from dane_server.storage.view import Once, Submitted
from dane_server.storage.writer import Writer
from tests.server.audit import audit, read_books
from tests.server.crash import Crash, Crashing, Holding
from tests.server.ledger import Ledger, graph, new_job, parallel, sequence, spec, task

ONCE = Once(key="k1", digest="a" * 64)
OTHER_BODY = Once(key="k1", digest="b" * 64)


async def count(ledger: Ledger) -> dict[str, int]:
    """How many rows each table has."""

    async def unit(connection: AsyncConnection) -> dict[str, int]:
        return {
            name: (await connection.scalars(sa.select(sa.func.count()).select_from(table))).one()
            for name, table in tables.metadata.tables.items()
        }

    return await ledger.store.read(unit)


async def test_a_job_is_stored_as_it_was_compiled(ledger: Ledger) -> None:
    tasks = sequence("A", parallel("B", sequence("C", "D")), graph(x="E", y=("F", "x")))
    compiled = compile_graph(spec(tasks).tasks)

    job = await ledger.submit(tasks)

    books = (await read_books(ledger.store, [job]))[job]
    ids = sorted(books.nodes)
    assert [books.nodes[id_].key for id_ in ids[:6]] == list("ABCDEF")
    assert [books.nodes[id_].pending for id_ in ids] == list(compiled.pending)
    place = {id_: number for number, id_ in enumerate(ids)}
    assert {(place[src], place[dst]) for src, dst, _ in books.edges} == set(compiled.edges)
    assert (await ledger.reader.job_view(job)).tree == compiled.tree
    assert await audit(ledger.store, job) == []


async def test_everything_said_of_a_task_is_kept(ledger: Ledger) -> None:
    said = {
        "name": "the one ",
        "args": {"text": "Grüße 🎬 \\ \"'%s", "deep": [[[1.5, None, True]]]},
        "priority": 10,
        "timeout": 0.25,
        "retry": {"limit": 7, "delay": 0.5, "factor": 3.0, "max_delay": 60.0},
        "allow_failure": True,
    }
    job = await ledger.submit(task("A", **said), metadata={"ü": "ß"}, type="video", priority=4)

    [kept] = await ledger.tasks(job)
    head = await ledger.reader.job(job)
    assert (kept.name, kept.args, kept.priority) == ("the one ", said["args"], 10)
    assert (kept.timeout, kept.allow_failure) == (0.25, True)
    assert (kept.retry.limit, kept.retry.delay, kept.retry.max_delay) == (7, 0.5, 60.0)
    assert (head.metadata, head.type, head.priority) == ({"ü": "ß"}, "video", 4)
    assert head.status is JobStatus.ACCEPTED


async def test_what_is_said_of_a_job_just_stored_is_what_a_reader_finds(ledger: Ledger) -> None:
    """So nobody has to read what was written a moment ago."""
    retry = {"limit": 7, "delay": 0.5, "factor": 3.0, "max_delay": 60.0}
    args = {"text": "Grüße 🎬 \\ \"'%s", "deep": [[[1.5, None, True]]], "large": 2**63 - 1}
    every = task("A", name="the one ", args=args, priority=10, timeout=0.25, retry=retry)
    jobs = [
        new_job(sequence(every, parallel("B", sequence("C", "D")), task("A", allow_failure=True))),
        new_job(graph(x="E", y=("F", "x"), z=("G", "x", "y")), owner="laboratory", priority=4),
        new_job("A", metadata={"ü": "ß", "n": [1, {"deep": 1e300}]}, type="video", once=ONCE),
    ]

    outcomes = await ledger.outcomes(*jobs)

    stored = [outcome for outcome in outcomes if isinstance(outcome, Submitted)]
    found = [await ledger.reader.job_view(outcome.job_id) for outcome in stored]
    assert [outcome.view and outcome.view() for outcome in stored] == found
    assert len(found) == 3


async def test_a_job_of_thousands_of_tasks_keeps_their_order(ledger: Ledger) -> None:
    """Ids come back from several statements; edges refer to them by place."""
    keys = [f"K{number}" for number in range(2500)]

    job = await ledger.submit(sequence("FIRST", parallel(*keys), "LAST"))

    tasks = await ledger.tasks(job)
    assert [one.key for one in tasks] == ["FIRST", *keys, "LAST"]
    assert [one.seq for one in tasks] == list(range(2502))
    assert {one.pending for one in tasks[1:-1]} == {1}
    assert tasks[-1].pending == 2500
    assert await audit(ledger.store, job) == []


async def test_a_job_whose_transaction_did_not_commit_is_not_there_at_all(ledger: Ledger) -> None:
    before = await count(ledger)
    writer = Writer(Crashing(ledger.store))

    with pytest.raises(Crash):
        await writer.store_jobs([new_job(sequence("A", "B"), once=ONCE)])

    assert await count(ledger) == before


async def test_a_batch_is_stored_in_the_order_it_was_given(ledger: Ledger) -> None:
    outcomes = await ledger.outcomes(*(new_job("A", source_id=f"S{n}") for n in range(700)))

    job_ids = [outcome.job_id for outcome in outcomes if isinstance(outcome, Submitted)]
    stored = [await ledger.reader.job(job_ids[place]) for place in (0, 350, 699)]
    assert job_ids == sorted(job_ids)
    assert [job.source_id for job in stored] == ["S0", "S350", "S699"]


# --- Idempotency-Key --------------------------------------------------------------------------


async def test_a_request_repeated_with_its_key_finds_its_job(ledger: Ledger) -> None:
    [first] = await ledger.outcomes(new_job(once=ONCE))
    [again] = await ledger.outcomes(new_job(once=ONCE))

    assert isinstance(first, Submitted)
    assert again == Submitted(job_id=first.job_id, replayed=True)
    assert (await count(ledger))["job"] == 1


async def test_a_key_used_for_another_request_is_refused(ledger: Ledger) -> None:
    await ledger.outcomes(new_job(once=ONCE))

    [other] = await ledger.outcomes(new_job("B", once=OTHER_BODY))

    assert isinstance(other, KeyReused)
    assert (await count(ledger))["job"] == 1


async def test_the_same_request_twice_in_one_batch_is_one_job(ledger: Ledger) -> None:
    """Clients that retry at once meet themselves in the batch that waits to be stored."""
    first, again, third = await ledger.outcomes(
        new_job(once=ONCE), new_job(once=ONCE), new_job(once=ONCE)
    )

    assert isinstance(first, Submitted)
    assert not first.replayed
    assert again == third == Submitted(job_id=first.job_id, replayed=True)
    assert (await count(ledger))["job"] == 1


async def test_one_key_for_two_requests_in_one_batch_goes_to_the_first(ledger: Ledger) -> None:
    first, other = await ledger.outcomes(new_job(once=ONCE), new_job("B", once=OTHER_BODY))

    assert isinstance(first, Submitted)
    assert isinstance(other, KeyReused)


async def test_a_repeated_request_in_a_batch_fails_as_the_first_does(ledger: Ledger) -> None:
    await ledger.submit(source_url="http://127.0.0.1/other")

    outcomes = await ledger.outcomes(new_job(once=ONCE), new_job(once=ONCE))

    assert [type(outcome) for outcome in outcomes] == [SourceConflict, SourceConflict]


async def test_the_same_request_many_times_at_once_is_one_job(ledger: Ledger) -> None:
    """They come to different servers, so nothing but the store can tell that they are one."""
    outcomes = await asyncio.gather(*(ledger.outcomes(new_job(once=ONCE)) for _ in range(8)))

    submitted = [outcome for [outcome] in outcomes if isinstance(outcome, Submitted)]
    assert len(submitted) == 8
    assert len({outcome.job_id for outcome in submitted}) == 1
    assert [outcome.replayed for outcome in submitted].count(False) == 1
    assert (await count(ledger))["job"] == 1


async def test_a_duplicate_waits_until_the_first_request_is_decided(ledger: Ledger) -> None:
    """Were the first to fail, the duplicate must be stored in its place."""
    holding = Holding(ledger.store, then=Crash())
    first = asyncio.create_task(Writer(holding).store_jobs([new_job(once=ONCE)]))
    await holding.reached.wait()
    second = asyncio.create_task(ledger.outcomes(new_job(once=ONCE)))
    await asyncio.wait({second}, timeout=0.2)
    decided_early = second.done()

    holding.go_on.set()
    with pytest.raises(Crash):
        await first
    [outcome] = await second

    assert not decided_early
    assert isinstance(outcome, Submitted)
    assert not outcome.replayed
    assert (await ledger.reader.job(outcome.job_id)).source_id == "S1"


async def test_a_conflict_leaves_no_key_behind(ledger: Ledger) -> None:
    """Otherwise the corrected request would be told that its key was used before."""
    await ledger.submit(source_url="http://127.0.0.1/other")
    [refused] = await ledger.outcomes(new_job(once=ONCE))
    assert isinstance(refused, SourceConflict)

    [corrected] = await ledger.outcomes(new_job(source_id="S2", once=OTHER_BODY))

    assert isinstance(corrected, Submitted)


async def test_the_key_of_a_deleted_job_is_free_again(ledger: Ledger) -> None:
    [first] = await ledger.outcomes(new_job(once=ONCE))
    assert isinstance(first, Submitted)
    await ledger.acts.delete_job(first.job_id)

    [again] = await ledger.outcomes(new_job(once=ONCE))

    assert isinstance(again, Submitted)
    assert not again.replayed
    assert again.job_id > first.job_id


# --- one source_id, one source_url --------------------------------------------------------------


async def test_a_source_keeps_its_url(ledger: Ledger) -> None:
    await ledger.submit(source_url="http://127.0.0.1/1")

    [outcome] = await ledger.outcomes(new_job(source_url="http://127.0.0.1/2"))

    assert isinstance(outcome, SourceConflict)
    assert outcome.source_url == "http://127.0.0.1/1"
    assert (await count(ledger))["job"] == 1


async def test_two_urls_for_one_new_source_in_a_batch_conflict(ledger: Ledger) -> None:
    first, second, third = await ledger.outcomes(
        new_job(source_url="http://127.0.0.1/1"),
        new_job(source_url="http://127.0.0.1/2"),
        new_job(source_url="http://127.0.0.1/1"),
    )

    assert isinstance(first, Submitted)
    assert isinstance(second, SourceConflict)
    assert isinstance(third, Submitted)


async def test_two_urls_for_one_new_source_at_once_conflict(ledger: Ledger) -> None:
    outcomes = await asyncio.gather(
        *(ledger.outcomes(new_job(source_url=f"http://127.0.0.1/{n}")) for n in range(6))
    )

    assert sum(isinstance(outcome, Submitted) for [outcome] in outcomes) == 1
    assert sum(isinstance(outcome, SourceConflict) for [outcome] in outcomes) == 5


async def test_deleting_the_last_job_of_a_source_frees_it(ledger: Ledger) -> None:
    jobs = [await ledger.submit(), await ledger.submit()]

    await ledger.acts.delete_job(jobs[0])
    [kept] = await ledger.outcomes(new_job(source_url="http://127.0.0.1/2"))
    await ledger.acts.delete_job(jobs[1])
    [freed] = await ledger.outcomes(new_job(source_url="http://127.0.0.1/2"))

    assert isinstance(kept, SourceConflict)
    assert isinstance(freed, Submitted)


async def test_a_source_is_not_forgotten_while_a_job_of_it_is_being_stored(ledger: Ledger) -> None:
    first = await ledger.submit()
    holding = Holding(ledger.store)
    second = asyncio.create_task(Writer(holding).store_jobs([new_job()]))
    await holding.reached.wait()
    deletion = asyncio.create_task(ledger.acts.delete_job(first))
    await asyncio.wait({deletion}, timeout=0.2)

    holding.go_on.set()
    await asyncio.gather(second, deletion)
    [outcome] = await ledger.outcomes(new_job(source_url="http://127.0.0.1/2"))

    assert isinstance(outcome, SourceConflict)


LOOK_ALIKES = ["a", "A", "a ", "ä", "á", "\uff41", "ß", "ss", "🎬", "🎥", "'", "\\", "%", "a\u0301"]


async def test_ids_that_look_alike_are_different_sources(ledger: Ledger) -> None:
    """A collation that folds case, accents or spaces would make two sources one."""
    outcomes = await ledger.outcomes(
        *(
            new_job(source_id=source_id, source_url=f"http://127.0.0.1/{number}")
            for number, source_id in enumerate(LOOK_ALIKES)
            if source_id == source_id.strip()
        )
    )

    assert all(isinstance(outcome, Submitted) for outcome in outcomes)
    for outcome in outcomes:
        assert isinstance(outcome, Submitted)
        source_id = (await ledger.reader.job(outcome.job_id)).source_id
        assert await ledger.reader.of_source(source_id) == [outcome.job_id]


async def test_request_keys_that_look_alike_are_different(ledger: Ledger) -> None:
    keys = ["k", "K", "kk", "k~", "`k"]

    outcomes = await ledger.outcomes(
        *(new_job(once=Once(key=key, digest=str(n))) for n, key in enumerate(keys))
    )

    assert all(isinstance(outcome, Submitted) for outcome in outcomes)


@pytest.mark.parametrize(
    "tasks",
    [
        pytest.param("A", id="one task"),
        pytest.param(sequence(*"ABCDEFGH"), id="a chain"),
        pytest.param(sequence(parallel(*"ABC"), parallel(*"ABC"), parallel(*"ABC")), id="joins"),
    ],
)
async def test_the_first_tasks_are_ready_and_the_others_wait(ledger: Ledger, tasks: Any) -> None:
    job = await ledger.submit(tasks)

    found = await ledger.tasks(job)
    assert all((one.state is TaskState.READY) == (one.pending == 0) for one in found)
    assert {one.state for one in found} <= {TaskState.READY, TaskState.BLOCKED}
    assert await audit(ledger.store, job) == []
