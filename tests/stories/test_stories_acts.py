"""Operators act while tasks run and wait: embedded, and on RabbitMQ + MariaDB."""

from pathlib import Path
from typing import Any

import pytest

from dane_core.client import Client
from dane_core.errors import RefusedByServer
from tests.stories.both_ways import BRISK, Real, Start, as_environment, ended, starting
from tests.stories.cast import Echo, Flaky, Gate, HeavyGate, Mended
from tests.stories.marks import Mark, Marks, eventually
from tests.stories.programs import running

Json = dict[str, Any]

BOTH_PLACES = pytest.mark.parametrize("key", ["GATE", "HEAVYGATE"])


def task(key: str, marks: Marks, **args: Any) -> Json:
    return {"Task": {"task_key": key, "args": {"marks": str(marks.folder), **args}}}


def sequence(*steps: Any) -> Json:
    return {"taskSequential": [*steps]}


def parallel(*steps: Any) -> Json:
    return {"taskParallel": [*steps]}


async def submit(client: Client, tasks: Any, source_id: str = "x") -> int:
    spec = {"source_url": f"/{source_id}", "source_id": source_id, "tasks": tasks}
    return int((await client.submit(spec))["job_id"])


async def ids(client: Client, job_id: int) -> list[int]:
    return [row["task_id"] for row in await client.tasks(job_id)]


async def states(client: Client, job_id: int) -> list[int]:
    return [row["task_state"] for row in await client.tasks(job_id)]


async def others_had_their_turn(client: Client, key: str, marks: Marks) -> int:
    """Have another task of this key done: what was before it in the queue has come by then."""
    marks.say("other")
    job_id = await submit(client, task(key, marks, word="other"), "other")
    assert (await ended(client, job_id))["status"] == "succeeded"
    (task_id,) = await ids(client, job_id)
    return task_id


# --- cancel ------------------------------------------------------------------------------------


@BOTH_PLACES
async def test_after_a_cancel_queued_tasks_never_start_and_running_ones_are_told(
    key: str, start: Start, marks: Marks
) -> None:
    async with start(Gate, HeavyGate, Echo, slots=1) as client:
        job_id = await submit(client, sequence(parallel(*[task(key, marks)] * 3), "ECHO"))
        (running_one,) = await marks.seen("started")

        await client.cancel(job_id)

        job = await ended(client, job_id)
        assert await marks.seen("cancelled") == [running_one._replace(what="cancelled")]
        marks.say()
        other = await others_had_their_turn(client, key, marks)
        assert job["status"] == "cancelled"
        assert await states(client, job_id) == [499] * 4
        assert marks.tasks("started") == [running_one.task_id, other]


@pytest.mark.services
async def test_tasks_cancelled_before_the_only_worker_came_do_not_start_with_it(
    real: Real, marks: Marks, tmp_path: Path
) -> None:
    """Their messages are still in its queue: it asks before it runs what is older than itself."""
    start = starting(tmp_path / "dane", real)
    async with start(Gate):
        pass  # from here on there is a queue
    async with start() as client:
        job_id = await submit(client, parallel(*[task("GATE", marks)] * 3))
        await eventually(lambda: lie_in_queue(client, "GATE", 3))
        await client.cancel(job_id)
        settings = as_environment(real.sections | BRISK)
        async with running("worker", "tests.stories.cast:Gate", folder=tmp_path, **settings):
            other = await others_had_their_turn(client, "GATE", marks)

        assert await states(client, job_id) == [499] * 3
        assert marks.tasks("started") == [other]


async def lie_in_queue(client: Client, key: str, count: int) -> bool:
    (queue,) = [found["queue"] for found in await client.workers() if found["task_key"] == key]
    return bool(queue["messages"] == count)


async def test_what_waits_for_a_worker_or_for_a_better_time_can_be_cancelled(start: Start) -> None:
    """And is run after all when the job is retried."""
    later = {"Task": {"task_key": "FLAKY", "args": {"good": 2}, "retry": {"delay": 600}}}
    async with start(Flaky) as client:
        job_id = await submit(client, parallel("NOBODY", later))
        await eventually(lambda: shows(client, job_id, [422, 503]))

        await client.cancel(job_id)

        assert (await ended(client, job_id))["status"] == "cancelled"
        assert await states(client, job_id) == [499, 499]
        with pytest.raises(RefusedByServer, match="409"):
            await client.cancel(job_id)
        await client.retry(job_id)
        await eventually(lambda: shows(client, job_id, [422, 200]))


async def shows(client: Client, job_id: int, expected: list[int]) -> bool:
    return await states(client, job_id) == expected


# --- pause and resume --------------------------------------------------------------------------


async def test_a_paused_job_starts_nothing_until_it_is_resumed(start: Start, marks: Marks) -> None:
    """What runs when it is paused runs on."""
    async with start(Gate, slots=1) as client:
        job_id = await submit(client, parallel(*[task("GATE", marks)] * 3))
        await marks.seen("started")

        await client.pause(job_id)

        marks.say()
        other = await others_had_their_turn(client, "GATE", marks)
        paused = await client.job(job_id)
        assert paused["status"] == "paused"
        assert sorted(await states(client, job_id)) == [200, 201, 201]
        assert marks.tasks("started")[1:] == [other]
        waiting = next(row for row in await client.tasks(job_id) if row["task_state"] == 201)
        assert (await client.explain(waiting["task_id"]))["reason"] == "job_paused"

        await client.resume(job_id)

        assert (await ended(client, job_id))["status"] == "succeeded"
        assert sorted(marks.tasks("finished")) == sorted([*await ids(client, job_id), other])


async def test_a_paused_key_starts_nothing_until_it_is_resumed(start: Start, marks: Marks) -> None:
    async with start(Gate, Echo, slots=1) as client:
        before = await submit(client, parallel(*[task("GATE", marks)] * 2))
        (running_one,) = await marks.seen("started")

        await client.pause_key("GATE")

        after = await submit(client, parallel(task("GATE", marks), "ECHO"))
        marks.say()
        await eventually(lambda: shows(client, after, [201, 200]))
        await eventually(lambda: has_succeeded(client, running_one.task_id))
        waiting = (await ids(client, after))[0]
        assert (await client.explain(waiting))["reason"] == "key_paused"
        assert marks.tasks("started") == [running_one.task_id]

        await client.resume_key("GATE")

        for job_id in (before, after):
            assert (await ended(client, job_id))["status"] == "succeeded"
        assert len(marks.all("started")) == 3


async def has_succeeded(client: Client, task_id: int) -> bool:
    return bool((await client.task(task_id))["task_state"] == 200)


# --- order -------------------------------------------------------------------------------------


async def test_an_urgent_job_goes_before_those_that_lie_in_the_queue(
    start: Start, marks: Marks
) -> None:
    # A lease that a slow machine keeps: what is sent again goes to the end of its queue.
    async with start(Gate, slots=1, RUNNER={"SWEEP": 0.25}) as client:
        jobs = [await submit(client, task("GATE", marks))]
        await marks.seen("started")
        for priority in (1, 1, 9):
            spec = {"source_url": "/x", "source_id": "x", "tasks": task("GATE", marks)}
            jobs.append((await client.submit({**spec, "priority": priority}))["job_id"])
        await eventually(lambda: are_queued(client, jobs))

        marks.say()

        for job_id in jobs:
            assert (await ended(client, job_id))["status"] == "succeeded"
        first, second, third, urgent = [(await ids(client, job_id))[0] for job_id in jobs]
        assert marks.tasks("started") == [first, urgent, second, third]


async def are_queued(client: Client, jobs: list[int]) -> bool:
    return all([await states(client, job_id) == [102] for job_id in jobs])


# --- reset, retry, forceretry ------------------------------------------------------------------


async def test_a_reset_task_waits_until_its_predecessor_has_finished_again(start: Start) -> None:
    async with start(Echo) as client:
        job_id = await submit(client, sequence("ECHO", "ECHO"))
        await ended(client, job_id)
        first, second = await ids(client, job_id)

        reset = await client.reset_task(second)

        assert (reset["task_state"], reset["task_msg"]) == (201, "Reset")
        assert (await client.explain(second))["reason"] == "reset"
        await client.force_task(first)
        assert (await ended(client, job_id))["status"] == "succeeded"
        assert [(await client.task(ident))["attempt"] for ident in (first, second)] == [2, 2]


async def test_a_reset_task_runs_when_its_job_is_retried(start: Start) -> None:
    """And what succeeded is kept."""
    async with start(Echo) as client:
        job_id = await submit(client, sequence("ECHO", "ECHO"))
        await ended(client, job_id)
        first, second = await ids(client, job_id)
        await client.reset_task(second)

        await client.retry(job_id)

        assert (await ended(client, job_id))["status"] == "succeeded"
        attempts = [(await client.task(ident))["attempts"] for ident in (first, second)]
        assert [[one["state"] for one in some] for some in attempts] == [[200], [200, 200]]


@pytest.mark.parametrize("act", ["job", "task", "key"])
async def test_a_failed_task_runs_again_once_it_is_mended(
    act: str, start: Start, marks: Marks
) -> None:
    """Retried by its job, by itself, or with all that failed like it."""
    async with start(Echo, Mended) as client:
        job_id = await submit(client, sequence("ECHO", task("MENDED", marks), "ECHO"))
        assert (await ended(client, job_id))["status"] == "failed"
        assert await states(client, job_id) == [200, 404, 201]
        first, failed, last = await ids(client, job_id)

        marks.say()
        if act == "job":
            await client.retry(job_id)
        elif act == "task":
            await client.retry_task(failed)
        else:
            assert (await client.retry_key("MENDED", 404))["retried"] == 1

        assert (await ended(client, job_id))["status"] == "succeeded"
        tasks = [await client.task(ident) for ident in (first, failed, last)]
        assert [one["attempt"] for one in tasks] == [1, 2, 1]
        assert [attempt["state"] for attempt in tasks[1]["attempts"]] == [404, 200]


async def test_a_retry_leaves_alone_what_is_done_or_runs(start: Start, marks: Marks) -> None:
    async with start(Echo, Gate) as client:
        job_id = await submit(client, sequence("ECHO", task("GATE", marks)))
        await marks.seen("started")

        for ident in await ids(client, job_id):
            await client.retry_task(ident)
        await client.retry(job_id)

        marks.say()
        assert (await ended(client, job_id))["status"] == "succeeded"
        assert [row["attempt"] for row in await client.tasks(job_id)] == [1, 1]
        assert len(marks.all("started")) == 1


@BOTH_PLACES
async def test_a_forced_retry_tells_the_old_attempt_and_fences_it_off(
    key: str, start: Start, marks: Marks
) -> None:
    """With one slot the old answer is always before the new one in the queue of answers."""
    async with start(Gate, HeavyGate, slots=1) as client:
        job_id = await submit(client, task(key, marks))
        (old,) = await marks.seen("started")

        await client.force_task(old.task_id)

        await marks.seen("started", 2)
        marks.say()
        job = await ended(client, job_id)
        (row,) = [await client.task(ident) for ident in await ids(client, job_id)]
        assert marks.all() == [
            old,
            Mark("cancelled", old.task_id, 1),
            Mark("started", old.task_id, 2),
            Mark("finished", old.task_id, 2),
        ]
        assert job["response"][key] == {"attempt": 2}
        assert [(one["number"], one["state"]) for one in row["attempts"]] == [(1, 499), (2, 200)]


async def test_an_old_attempt_that_ends_after_the_new_one_changes_nothing(
    start: Start, marks: Marks
) -> None:
    """It does not listen when it is told to stop."""
    async with start(Gate, Echo, slots=2) as client:
        job_id = await submit(client, task("GATE", marks, heed=False))
        (old,) = await marks.seen("started")
        await client.force_task(old.task_id)
        await marks.seen("started", 2)
        marks.say("go-2")
        await ended(client, job_id)

        marks.say("go-1")

        await marks.seen("finished", 2)
        await ended(client, await submit(client, sequence(*["ECHO"] * 3), "y"))
        job = await client.job(job_id)
        assert marks.all("finished") == [
            Mark("finished", old.task_id, 2),
            Mark("finished", old.task_id, 1),
        ]
        assert job["status"] == "succeeded"
        assert job["response"]["GATE"] == {"attempt": 2}


# --- delete ------------------------------------------------------------------------------------


async def test_a_job_that_is_deleted_while_it_runs_leaves_no_trace(
    start: Start, marks: Marks
) -> None:
    """Not even its source: the same id may come with another address."""
    async with start(Gate, slots=1) as client:
        job_id = await submit(client, parallel(*[task("GATE", marks)] * 2))
        (running_one,) = await marks.seen("started")

        await client.delete(job_id)

        await marks.seen("cancelled")
        other = await others_had_their_turn(client, "GATE", marks)
        with pytest.raises(RefusedByServer, match="404"):
            await client.job(job_id)
        with pytest.raises(RefusedByServer, match="404"):
            await client.task(running_one.task_id)
        assert await client.of_source("x") == []
        assert marks.tasks("started") == [running_one.task_id, other]
        spec = {"source_url": "/elsewhere", "source_id": "x", "tasks": task("GATE", marks)}
        marks.say()
        again = await client.submit(spec)
        assert (await ended(client, again["job_id"]))["status"] == "succeeded"
