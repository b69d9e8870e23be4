"""What people, clients and workers are told of jobs, tasks, keys and workers."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.errors import BadSpec, NotFound
from dane_core.job import JobId, TaskId
from dane_core.message import INLINE_LIMIT, Offer
from dane_core.states import JobStatus, TaskState
from dane_server.storage import tables
from dane_server.storage.view import Claim, JobQuery
from tests.server.ledger import (
    SILENCE,
    Ledger,
    answer,
    graph,
    hello,
    keys_of,
    new_job,
    parallel,
    progress,
    sequence,
    started,
    task,
    ticket_of,
)

# --- one job ------------------------------------------------------------------------------------


async def test_a_view_of_a_job_has_its_tasks_in_order_and_their_answers(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("A", parallel("B", "C"), parallel("D", "E")))
    await ledger.answer_all(response={"n": 1})

    view = await ledger.reader.job_view(job)

    assert [one.key for one in view.tasks] == list("ABCDE")
    assert view.tree == {"taskSequential": [0, {"taskParallel": [1, 2]}, {"taskParallel": [3, 4]}]}
    assert view.answers == {view.tasks[0].id: {"n": 1}}
    assert view.job == await ledger.reader.job(job)


async def test_counts_add_up_to_the_total(ledger: Ledger) -> None:
    job = await ledger.submit(
        parallel("A", "B", task("C", allow_failure=True), "D", "E", sequence("F", "G"))
    )
    sent = {claim.key: claim for claim in await ledger.send()}
    numbers = {"A": 200, "B": 404, "C": 500, "D": 499}
    await ledger.record(*(answer(sent[key], number) for key, number in numbers.items()))
    await ledger.acts.reset_task(sent["E"].task_id)

    counts = (await ledger.reader.job(job)).counts

    assert (counts.total, counts.blocked, counts.held, counts.active) == (7, 1, 1, 1)
    assert (counts.succeeded, counts.failed, counts.forgiven, counts.cancelled) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("numbers", "state"),
    [
        ({}, 102),
        ({"A": 200}, 102),
        ({"A": 200, "B": 200}, 201),
        ({"A": 404}, 404),
        ({"A": 200, "B": 503}, 503),
        ({"A": 499}, 499),
        ({"A": 200, "B": 200, "C": 200}, 201),
    ],
)
async def test_the_state_of_a_job_is_that_of_its_first_task_not_done(
    ledger: Ledger, numbers: Mapping[str, int], state: int
) -> None:
    """DANE 0.1's reading, on which its clients poll."""
    job = await ledger.submit(sequence(parallel("A", "B", "C"), "D"))
    for one in await ledger.send():
        if one.key in numbers:
            await ledger.record(answer(one, numbers[one.key]))
    if set(numbers) == {"A", "B"} and state == 201:
        await ledger.acts.reset_task((await ledger.task(job, "C")).id)

    assert (await ledger.reader.job(job)).state == state


async def test_a_failure_that_was_allowed_is_not_the_state_of_its_job(ledger: Ledger) -> None:
    """It needs no person, and is shown as done once the rest is."""
    job = await ledger.submit(sequence(task("A", allow_failure=True), "B"))
    await ledger.answer_all(500)
    ready = (await ledger.reader.job(job)).state
    await ledger.send()
    queued = (await ledger.reader.job(job)).state
    page = await ledger.reader.jobs(JobQuery())

    assert (ready, queued) == (201, 102)
    assert [head.state for head in page.jobs] == [102]


async def test_tasks_come_in_pages_and_filtered(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel(*["A"] * 4, *["B"] * 4), parallel("C", "C")))
    claims = await ledger.send()
    await ledger.record(*map(answer, claims[:2]))

    first = await ledger.reader.tasks(job, limit=3)
    rest = await ledger.reader.tasks(job, after_seq=first[-1].seq)
    done = await ledger.reader.tasks(job, state=TaskState.SUCCEEDED)
    some = await ledger.reader.tasks(job, key="B", limit=2)
    none = await ledger.reader.tasks(job, key="B", state=TaskState.SUCCEEDED)

    assert [one.seq for one in (*first, *rest)] == list(range(10))
    assert [one.seq for one in done] == [0, 1]
    assert [one.seq for one in some] == [4, 5]
    assert none == []


async def test_who_is_not_there_is_not_found(ledger: Ledger) -> None:
    """Joins are rows of the task table, but nobody's task."""
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    join = TaskId(max(one.id for one in await ledger.tasks(job)) + 1)
    reader = ledger.reader

    for missing in (0, -1, 10**9, 2**63 - 1):
        for ask_for in (reader.job, reader.job_view, reader.tasks):
            with pytest.raises(NotFound):
                await ask_for(JobId(missing))
    for unknown in (join, TaskId(0), TaskId(2**63 - 1)):
        for look_up in (reader.task, reader.situation):
            with pytest.raises(NotFound):
                await look_up(unknown)
        with pytest.raises(NotFound):
            await reader.upstream(unknown, "A")


# --- many jobs ------------------------------------------------------------------------------------


async def ids(ledger: Ledger, **conditions: Any) -> list[JobId]:
    return [job.id for job in (await ledger.reader.jobs(JobQuery(**conditions))).jobs]


async def test_jobs_come_newest_first_in_pages_that_miss_none(ledger: Ledger) -> None:
    stored = [await ledger.submit(source_id=f"S{n}") for n in range(7)]

    pages, after = [], None
    while True:
        page = await ledger.reader.jobs(JobQuery(limit=3, after=after))
        pages.append([job.id for job in page.jobs])
        await ledger.submit(source_id="new")  # newer ones do not move the pages
        if page.next is None:
            break
        after = page.next

    newest_first = stored[::-1]
    assert pages == [newest_first[:3], newest_first[3:6], newest_first[6:]]


async def test_the_last_page_has_no_next_even_if_it_is_full(ledger: Ledger) -> None:
    for n in range(4):
        await ledger.submit(source_id=f"S{n}")

    first = await ledger.reader.jobs(JobQuery(limit=2))
    second = await ledger.reader.jobs(JobQuery(limit=2, after=first.next))

    assert first.next is not None
    assert second.next is None
    assert (await ledger.reader.jobs(JobQuery(limit=2, source_id="S9"))).jobs == []


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "٣", "9" * 40, "1 OR 1=1"])
async def test_a_cursor_that_is_not_ours_is_refused(ledger: Ledger, cursor: str) -> None:
    with pytest.raises(BadSpec) as refusal:
        await ledger.reader.jobs(JobQuery(after=cursor))

    assert refusal.value.faults[0].path == "after"


async def test_jobs_are_found_by_status(ledger: Ledger) -> None:
    accepted = await ledger.submit(source_id="S0")
    done = await ledger.submit(source_id="S1")
    await ledger.finish(done)
    failed = await ledger.submit(source_id="S2", tasks=sequence("A", "B"))
    await ledger.record(answer(ticket_of(await ledger.task(failed, "A")), 500))
    paused = await ledger.submit(source_id="S3")
    await ledger.acts.pause_job(paused)

    assert await ids(ledger, statuses=frozenset({JobStatus.SUCCEEDED})) == [done]
    assert await ids(ledger, statuses=frozenset({JobStatus.FAILED})) == [failed]
    assert await ids(ledger, statuses=frozenset({JobStatus.PAUSED})) == [paused]
    both = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED})
    assert await ids(ledger, statuses=both) == [failed, done]
    assert await ids(ledger) == [paused, failed, done, accepted]


async def test_jobs_are_found_by_key_and_by_number_of_a_task(ledger: Ledger) -> None:
    ocr = await ledger.submit(sequence("OCR", "A"), source_id="S1")
    shots = await ledger.submit(sequence("SHOTS", "A"), source_id="S2")
    claims = {claim.key: claim for claim in await ledger.send()}
    await ledger.record(answer(claims["OCR"], 404))

    assert await ids(ledger, task_key="OCR") == [ocr]
    assert await ids(ledger, task_key="A") == [shots, ocr]
    assert await ids(ledger, state=404) == [ocr]
    assert await ids(ledger, state=500) == []
    assert await ids(ledger, state=102) == [shots]
    assert await ids(ledger, state=201) == [shots, ocr]
    assert await ids(ledger, state=404, task_key="A") == []
    assert await ids(ledger, state=404, task_key="OCR") == [ocr]


async def test_joins_are_no_tasks_when_jobs_are_looked_for(ledger: Ledger) -> None:
    """A join that was passed is `succeeded`; no task of the job is yet."""
    await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    await ledger.answer_all(500)

    assert await ids(ledger, state=200) == []


async def test_jobs_are_found_by_source(ledger: Ledger) -> None:
    first = await ledger.submit(source_id="film 1")
    await ledger.submit(source_id="film 2")
    second = await ledger.submit(source_id="film 1")

    assert await ids(ledger, source_id="film 1") == [second, first]
    assert await ids(ledger, source_id="FILM 1") == []
    assert await ids(ledger, source_id="film%") == []
    assert await ledger.reader.of_source("film 1") == [first, second]


async def test_jobs_are_found_by_time(ledger: Ledger) -> None:
    job = await ledger.submit()
    created = (await ledger.reader.job(job)).created_at
    elsewhere = created.astimezone(tz=None)

    assert created.tzinfo is UTC
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=5)
    assert await ids(ledger, since=created) == [job]
    assert await ids(ledger, since=elsewhere) == [job]
    assert await ids(ledger, since=created + timedelta(seconds=1)) == []
    assert await ids(ledger, until=created) == []
    assert await ids(ledger, until=created + timedelta(seconds=1)) == [job]


METADATA: Sequence[tuple[str, Any, str]] = [
    ("text", "a b", "a b"),
    ("number", 12, "12"),
    ("negative", -3, "-3"),
    ("half", 2.5, "2.5"),
    ("whole", 2.0, "2.0"),
    ("yes", True, "true"),
    ("no", False, "false"),
    ("digits", "0012", "0012"),
    ("unicode", "Grüße 🎬", "Grüße 🎬"),
    ("quoted", 'say "hi" \\ there', 'say "hi" \\ there'),
    ("line", "a\nb\tc", "a\nb\tc"),
    ("a.b", "dotted", "dotted"),
    ("a b", "spaced", "spaced"),
    ("ü", "name beyond ascii", "name beyond ascii"),
    ("it's", "apostrophe", "apostrophe"),
    ("$", "dollar", "dollar"),
    ("a[0]", "brackets", "brackets"),
    ("*", "star", "star"),
    ("50%", "percent", "percent"),
    (":x", "colon", "colon"),
    ("", "no name", "no name"),
    ("empty", "", ""),
    ('say "x"', "quotes", "quotes"),
    ("back\\slash", "backslash", "backslash"),
]


@pytest.mark.parametrize(("name", "value", "asked"), METADATA, ids=[row[0] for row in METADATA])
async def test_jobs_are_found_by_a_member_of_their_metadata(
    ledger: Ledger, name: str, value: Any, asked: str
) -> None:
    await ledger.submit(source_id="S0", metadata={"other": value, "a": {"b": value}})
    job = await ledger.submit(source_id="S1", metadata={name: value, "more": 1})

    assert await ids(ledger, metadata={name: asked}) == [job]
    assert await ids(ledger, metadata={name: f"{asked}x"}) == []
    assert await ids(ledger, metadata={f"{name}x": asked}) == []


async def test_metadata_is_compared_letter_by_letter(ledger: Ledger) -> None:
    """Also on MariaDB, whose collations would find more; both stores answer alike."""
    await ledger.submit(metadata={"title": "Éa"})

    for near in ("éa", "Ea", "ÉA", "Éa ", "ea"):
        assert await ids(ledger, metadata={"title": near}) == []
    for near in ("Title", "TITLE", "title "):
        assert await ids(ledger, metadata={near: "Éa"}) == []


async def test_all_conditions_must_hold(ledger: Ledger) -> None:
    first = await ledger.submit("A", source_id="S1", metadata={"x": 1, "y": 2})
    await ledger.submit("B", source_id="S2", metadata={"x": 1, "y": 3})

    assert await ids(ledger, metadata={"x": "1", "y": "2"}) == [first]
    assert await ids(ledger, metadata={"x": "1"}, task_key="A", source_id="S1") == [first]
    assert await ids(ledger, metadata={"x": "1"}, task_key="B", source_id="S1") == []
    assert await ids(ledger, metadata={"z": "1"}) == []


async def test_metadata_nested_as_deep_as_may_be_can_be_searched(ledger: Ledger) -> None:
    """MariaDB's JSON functions give up at some depth, and would then find nothing at all."""
    deep: Any = 1
    for _ in range(30):
        deep = {"in": deep}
    job = await ledger.submit(metadata={"deep": deep, "title": "x"})

    assert await ids(ledger, metadata={"title": "x"}) == [job]


async def test_unfinished_jobs_are_those_under_way_and_those_with_errors(ledger: Ledger) -> None:
    under_way = await ledger.submit(source_id="S1")
    done = await ledger.submit(source_id="S2")
    await ledger.finish(done)
    cancelled = await ledger.submit(source_id="S3")
    await ledger.acts.cancel_job(cancelled)

    assert await ledger.reader.unfinished() == [under_way, cancelled]


# --- what a message carries -----------------------------------------------------------------------


async def responses(ledger: Ledger, claims: Sequence[Claim]) -> dict[str, tuple[Any, bool]]:
    """What each claimed task's message would carry, as its worker reads it, by key."""
    found = await ledger.reader.responses(claims)
    read = {}
    for claim in claims:
        inline, partial = found[claim.task_id]
        read[claim.key] = (orjson.loads(orjson.dumps(inline)), partial)
    return read


async def test_a_task_gets_the_answers_of_its_predecessors_and_of_single_keys(
    ledger: Ledger,
) -> None:
    await ledger.submit(sequence("FIRST", parallel("A", "A", "B"), parallel("C", "D")))
    await ledger.answer_all(response={"file": "x"})
    claims = await ledger.send()
    said: list[dict[str, Any]] = [{"n": 1}, {"n": 2}, {"b": None}]
    await ledger.record(*(answer(one, response=r) for one, r in zip(claims, said, strict=True)))

    carried = await responses(ledger, await ledger.send())

    expected = {"FIRST": {"file": "x"}, "A": [{"n": 1}, {"n": 2}], "B": {"b": None}}
    assert carried == {"C": (expected, False), "D": (expected, False)}


async def test_a_task_gets_no_answers_of_the_same_key_from_elsewhere(ledger: Ledger) -> None:
    """Only those right before it: those of a thousand others would make messages grow."""
    await ledger.submit(parallel(sequence("A", "B"), sequence("A", "C")))
    first, second = await ledger.send()
    await ledger.record(answer(first, response={"n": 1}), answer(second, response={"n": 2}))

    carried = await responses(ledger, await ledger.send())

    assert carried["B"][0]["A"] == [{"n": 1}]
    assert carried["C"][0]["A"] == [{"n": 2}]


async def test_answers_come_through_joins_behind_joins(ledger: Ledger) -> None:
    tasks = graph(
        x=graph(a=parallel("A", "B"), b=(parallel("C", "C"), "a")), y=(parallel("E", "F"), "x")
    )
    await ledger.submit(tasks)
    await ledger.answer_all(response={"n": 1})
    await ledger.answer_all(response={"n": 2})

    carried = await responses(ledger, await ledger.send())

    expected = {"A": {"n": 1}, "B": {"n": 1}, "C": [{"n": 2}, {"n": 2}]}
    assert carried == {"E": (expected, False), "F": (expected, False)}


async def test_a_task_with_many_predecessors_gets_their_answers_in_order(ledger: Ledger) -> None:
    await ledger.submit(sequence(parallel(*["A"] * 20), "B"))
    claims = await ledger.send()
    await ledger.record(*(answer(one, response={"n": n}) for n, one in enumerate(claims)))

    carried = await responses(ledger, await ledger.send())

    assert carried["B"] == ({"A": [{"n": n} for n in range(20)]}, False)


async def test_a_message_does_not_grow_with_the_number_of_predecessors(ledger: Ledger) -> None:
    await ledger.submit(sequence("FIRST", parallel(*["A"] * 300), parallel("B", "C")))
    await ledger.answer_all(response={"x": 1})
    await ledger.answer_all(response={"n": 1})

    carried = await responses(ledger, await ledger.send())

    assert carried["B"] == carried["C"]
    inline, partial = carried["B"]
    assert partial
    assert "A" not in inline


async def test_a_task_after_many_of_different_keys_is_told_that_some_are_left_out(
    ledger: Ledger,
) -> None:
    await ledger.submit(sequence(parallel(*(f"K{n}" for n in range(150))), "LAST"))
    await ledger.answer_all(response={"n": 1})

    inline, partial = (await responses(ledger, await ledger.send()))["LAST"]

    assert partial
    assert 50 <= len(inline) <= 150


@pytest.mark.parametrize("letter", ["x", "ü", "🎬"])
async def test_answers_come_along_up_to_a_limit_in_bytes(ledger: Ledger, letter: str) -> None:
    """What does not fit is left out whole, and the message says so."""
    size = len(letter.encode())
    await ledger.submit(sequence("SMALL", "BIG", "C"))
    await ledger.answer_all(response={"n": 1})
    await ledger.answer_all(response={"text": letter * (INLINE_LIMIT // size)})

    inline, partial = (await responses(ledger, await ledger.send()))["C"]

    assert partial
    assert inline == {"SMALL": {"n": 1}}


async def test_answers_just_within_the_limit_come_along(ledger: Ledger) -> None:
    text = "ü" * ((INLINE_LIMIT - 100) // 2)
    await ledger.submit(sequence("BIG", "C"))
    await ledger.answer_all(response={"text": text})

    assert (await responses(ledger, await ledger.send()))["C"] == ({"BIG": {"text": text}}, False)


async def test_the_whole_of_what_comes_along_keeps_to_the_limit(ledger: Ledger) -> None:
    third = "ü" * (INLINE_LIMIT // 6)
    await ledger.submit(sequence(parallel("A", "B", "C", "D"), "E"))
    await ledger.answer_all(response={"text": third})

    inline, partial = (await responses(ledger, await ledger.send()))["E"]

    assert partial
    assert len(orjson.dumps(inline)) <= INLINE_LIMIT + 1000
    assert len(inline) >= 2


async def test_heads_carry_what_messages_need_and_miss_deleted_jobs(ledger: Ledger) -> None:
    job = await ledger.submit(type="video", metadata={"x": 1})
    gone = await ledger.submit(source_id="S2")
    await ledger.acts.delete_job(gone)

    heads = await ledger.reader.heads([job, gone])

    assert set(heads) == {job}
    assert (heads[job].metadata, heads[job].source_id) == ({"x": 1}, "S1")


async def test_earlier_answers_are_paged_for_those_that_did_not_fit(ledger: Ledger) -> None:
    job = await ledger.submit(sequence("FIRST", parallel(*["A"] * 5, "B"), parallel("C", "D")))
    await ledger.answer_all(response={"file": "x"})
    claims = await ledger.send()
    await ledger.record(*(answer(one, response={"n": n}) for n, one in enumerate(claims)))
    c = (await ledger.task(job, "C")).id

    first = await ledger.reader.upstream(c, "A", limit=2)
    second = await ledger.reader.upstream(c, "A", after_seq=first.next or 0, limit=2)
    third = await ledger.reader.upstream(c, "A", after_seq=second.next or 0, limit=2)

    pages = [[body["n"] for _, body in page.answers] for page in (first, second, third)]
    assert pages == [[0, 1], [2, 3], [4]]
    assert third.next is None
    [(found, body)] = (await ledger.reader.upstream(c, "FIRST")).answers
    assert (found.key, body) == ("FIRST", {"file": "x"})
    assert (await ledger.reader.upstream(c, "D")).answers == []


async def test_a_task_sees_no_answers_of_other_jobs(ledger: Ledger) -> None:
    await ledger.submit(sequence("A", "B"), source_id="S1")
    other = await ledger.submit(sequence("A", "B"), source_id="S2")
    [first, _] = await ledger.send()
    await ledger.record(answer(first, response={"mine": 1}))
    b = (await ledger.task(other, "B")).id

    assert (await ledger.reader.upstream(b, "A")).answers == []


# --- keys and workers -----------------------------------------------------------------------------


async def test_a_key_shows_where_its_tasks_are(ledger: Ledger) -> None:
    job = await ledger.submit(parallel(*[task("A", retry={"delay": 60})] * 6, "B"))
    claims = await ledger.claim()
    queued, running, unroutable, failing, done, *_ = (c for c in claims if c.key == "A")
    await ledger.mark(queued=[queued, running, failing, done], unroutable=[unroutable])
    await ledger.writer.note_reports([started(running)], [progress(running, 0.1)], [])
    await ledger.record(answer(failing, 503), answer(done))

    [a, b] = await ledger.reader.keys()

    assert (a.key, b.key) == ("A", "B")
    assert (a.waiting, a.ready, a.queued, a.running) == (1, 1, 2, 1)
    assert a.rate == pytest.approx(2 / 300)
    assert a.oldest_wait is not None
    assert 0 <= a.oldest_wait < 60
    assert (a.paused, a.offer, a.workers) == (False, None, [])
    assert (b.queued, b.rate) == (1, 0)
    await ledger.acts.cancel_job(job)


async def test_a_key_that_was_paused_or_offered_is_known_without_tasks(ledger: Ledger) -> None:
    await ledger.acts.pause_key("P")
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    offer = Offer(
        key="O", types=("video",), description="does O", args_schema=schema, version="1.2"
    )
    await ledger.writer.see_workers([hello(offer, "N", worker="w1")])

    found = {state.key: state for state in await ledger.reader.keys()}

    assert sorted(found) == ["N", "O", "P"]
    assert found["P"].paused
    assert found["O"].offer == offer
    assert [worker.id for worker in found["O"].workers] == ["w1"]
    assert found["O"].workers[0].task_keys == ("O", "N")
    assert await ledger.reader.schemas(["O", "N", "P", "X"]) == {"O": schema}


async def test_the_newest_offer_of_a_key_counts(ledger: Ledger) -> None:
    await ledger.writer.see_workers([hello(Offer(key="A", version="1"))])
    await ledger.writer.see_workers([hello(Offer(key="A", version="2"), worker="w2")])

    [state] = await ledger.reader.keys()

    assert state.offer is not None
    assert state.offer.version == "2"


async def test_a_worker_is_here_until_it_leaves_or_falls_silent(ledger: Ledger) -> None:
    await ledger.writer.see_workers([hello("A", worker="w1"), hello("A", worker="w2")])
    await ledger.writer.see_workers([hello("A", worker="w1", fresh=False)])
    await ledger.writer.see_workers([hello("A", worker="w3")])
    await ledger.writer.forget_worker("w3")

    await ledger.sweeps.sweep(silence=SILENCE)
    here = [worker.id for worker in (await ledger.reader.keys())[0].workers]
    await ledger.sweeps.sweep(silence=timedelta(seconds=-5))
    silent = (await ledger.reader.keys())[0].workers

    assert here == ["w1", "w2"]
    assert silent == []


async def test_a_hello_says_which_keys_are_paused(ledger: Ledger) -> None:
    await ledger.acts.pause_key("B")

    assert await ledger.writer.see_workers([hello("A", "B")]) == {"B"}


async def test_what_a_worker_runs_is_shown(ledger: Ledger) -> None:
    await ledger.submit("A")
    [claim] = await ledger.send()
    said = hello("A")
    await ledger.writer.see_workers([said])
    running = type(said)(
        **{name: getattr(said, name) for name in said.__slots__}
        | {"running": (ticket_of((await ledger.reader.task(claim.task_id)).task),), "fresh": False}
    )
    await ledger.writer.see_workers([running])

    [state] = await ledger.reader.keys()

    assert state.workers[0].running == (claim.task_id,)


async def test_two_servers_hear_the_first_hello_of_a_worker_at_once(ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.writer.see_workers([hello("A")]) for _ in range(5)))

    assert len((await ledger.reader.keys())[0].workers) == 1


async def test_hellos_of_workers_with_the_same_keys_get_by_each_other(ledger: Ledger) -> None:
    """A whole site starts at once, and every server hears some of it."""
    offers = ["A", "B", "C"], ["C", "B", "A"]
    hellos = [hello(*offers[n % 2], worker=f"w{n % 3}") for n in range(12)]

    await asyncio.gather(*(ledger.writer.see_workers([one]) for one in hellos))

    assert [len(key.workers) for key in await ledger.reader.keys()] == [3, 3, 3]


async def test_the_wait_of_a_task_without_a_worker_is_counted(ledger: Ledger) -> None:
    await ledger.submit("A")
    await ledger.mark(unroutable=await ledger.claim())

    async def age(connection: AsyncConnection) -> None:
        table = tables.tasks
        long_ago = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
        await connection.execute(sa.update(table).values(queued_at=long_ago))

    await ledger.store.write(age)
    [state] = await ledger.reader.keys()

    assert state.oldest_wait == pytest.approx(3600, abs=60)


# --- the facts for an explanation ---------------------------------------------------------------


async def test_a_situation_has_the_tasks_it_waits_for(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel(*"ABC"), parallel("D", "E"), parallel("F", "G")))
    a, b, *_ = await ledger.send()
    await ledger.record(answer(a), answer(b, 500))
    d, f = await ledger.task(job, "D"), await ledger.task(job, "F")

    before_d = await ledger.reader.situation(d.id)
    before_f = await ledger.reader.situation(f.id)

    assert [one.key for one in before_d.open_predecessors] == ["B", "C"]
    assert [one.key for one in before_f.open_predecessors] == ["D", "E"]
    assert before_d.task.id == d.id
    assert before_d.job.id == job
    assert abs(datetime.now(UTC) - before_d.now) < timedelta(minutes=5)


async def test_a_task_that_waits_for_many_names_the_first_ten(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel(*["A"] * 30), "B"))

    situation = await ledger.reader.situation((await ledger.task(job, "B")).id)

    assert [one.seq for one in situation.open_predecessors] == list(range(10))


async def test_a_task_that_is_done_over_is_waited_for_again(ledger: Ledger) -> None:
    job = await ledger.submit(sequence(parallel("A", "B"), parallel("C", "D")))
    await ledger.finish(job)
    await ledger.acts.reset_task((await ledger.task(job, "C")).id)
    await ledger.acts.force_task((await ledger.task(job, "A")).id)

    situation = await ledger.reader.situation((await ledger.task(job, "C")).id)

    assert [one.key for one in situation.open_predecessors] == ["A"]


async def test_how_many_go_before_a_task_is_counted(ledger: Ledger) -> None:
    jobs = [await ledger.submit(source_id=f"S{n}", priority=p) for n, p in enumerate((1, 9, 1, 0))]
    await ledger.claim(limit=1)

    ahead = [(await ledger.reader.situation(await one(ledger, job))).ahead for job in jobs]

    assert ahead == [1, 0, 2, 3]


async def one(ledger: Ledger, job: JobId) -> TaskId:
    [found] = await ledger.tasks(job)
    return found.id


async def test_a_ping_is_answered(ledger: Ledger) -> None:
    await ledger.reader.ping()


async def test_a_page_of_jobs_shows_each_as_it_is_alone(ledger: Ledger) -> None:
    jobs = [await ledger.submit(sequence("A", "B"), source_id=f"S{n}") for n in range(4)]
    sent = await ledger.send()
    numbers = (200, 404, 503)
    await ledger.record(*(answer(c, n) for c, n in zip(sent[:3], numbers, strict=True)))

    page = await ledger.reader.jobs(JobQuery())

    assert keys_of(sent) == ["A"] * 4
    assert list(page.jobs) == [await ledger.reader.job(job) for job in reversed(jobs)]
    assert [head.state for head in page.jobs] == [102, 503, 404, 201]


async def test_many_jobs_at_once_are_listed_whole(ledger: Ledger) -> None:
    await ledger.outcomes(*(new_job(sequence("A", "B"), source_id=f"S{n}") for n in range(60)))

    page = await ledger.reader.jobs(JobQuery(limit=50))

    assert len(page.jobs) == 50
    assert page.next is not None
