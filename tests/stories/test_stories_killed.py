"""Processes are killed in the middle of things; every job ends all the same, and once."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from dane_core.client import Client
from tests.stories.both_ways import BRISK, Real, as_environment, ended, starting
from tests.stories.marks import Mark, Marks, eventually, until
from tests.stories.programs import Program, running

Json = dict[str, Any]

#: Who works here, as `dane worker` and `dane dev` are told.
CAST: Final = [f"tests.stories.cast:{name}" for name in ("Echo", "Gate", "HeavyGate")]
#: On the event loop of the worker, and in a child of it.
BOTH_PLACES = pytest.mark.parametrize("key", ["GATE", "HEAVYGATE"])
JOBS: Final = 4


def worker(real: Real, folder: Path, *, grace: float = 30) -> AbstractAsyncContextManager[Program]:
    settings = as_environment({**real.sections, "WORKER": {"GRACE": grace}})
    return running("worker", *CAST, "--slots", "4", folder=folder, **settings)


def gate(marks: Marks, key: str, **args: Any) -> Json:
    return {"Task": {"task_key": key, "args": {"marks": str(marks.folder), **args}}}


def spec(source_id: str, tasks: Any) -> Json:
    return {"source_url": f"/{source_id}", "source_id": source_id, "tasks": tasks}


@pytest.mark.services
@BOTH_PLACES
async def test_a_task_whose_worker_is_killed_is_done_by_another(
    key: str, real: Real, marks: Marks, tmp_path: Path
) -> None:
    """The broker hands it on. It was begun twice, but that was one attempt, with one answer."""
    async with starting(tmp_path / "dane", real)() as client:
        async with worker(real, tmp_path) as first:
            job = await client.submit(spec("killed", gate(marks, key)))
            await marks.seen("started")
            first.kill()
            await first.ended()
        async with worker(real, tmp_path):
            await marks.seen("started", 2)
            marks.say()
            job = await ended(client, job["job_id"])
        (task,) = await details(client, job)

    assert job["status"] == "succeeded"
    assert [attempt["state"] for attempt in task["attempts"]] == [200]
    assert task["response"] == {"attempt": 1}
    assert len(marks.all("finished")) == 1  # what the killed worker had begun ended with it


@pytest.mark.services
@BOTH_PLACES
async def test_a_worker_that_is_told_to_stop_finishes_what_it_does(
    key: str, real: Real, marks: Marks, tmp_path: Path
) -> None:
    async with (
        starting(tmp_path / "dane", real)() as client,
        worker(real, tmp_path) as only,
    ):
        job = await client.submit(spec("stopped", gate(marks, key)))
        await marks.seen("started")
        only.terminate()
        await until(lambda: "draining" in only.err)
        marks.say()
        code = await only.ended()
        job = await ended(client, job["job_id"])
        (task,) = await details(client, job)

    assert code == 0
    assert job["status"] == "succeeded"
    assert [attempt["state"] for attempt in task["attempts"]] == [200]
    assert len(marks.all("started")) == 1


@pytest.mark.services
@BOTH_PLACES
async def test_what_a_stopping_worker_cannot_finish_is_handed_back_with_no_attempt_spent(
    key: str, real: Real, marks: Marks, tmp_path: Path
) -> None:
    """Although its work heeds `task.cancelled`: the worker stops, nobody has cancelled the task."""
    async with starting(tmp_path / "dane", real)() as client:
        async with worker(real, tmp_path, grace=0.1) as first:
            job = await client.submit(spec("handed back", gate(marks, key)))
            await marks.seen("started")
            first.terminate()
            code = await first.ended()
        async with worker(real, tmp_path):
            await marks.seen("started", 2)
            marks.say()
            job = await ended(client, job["job_id"])
        (task,) = await details(client, job)

    assert code == 0
    assert job["status"] == "succeeded"
    assert [attempt["state"] for attempt in task["attempts"]] == [200]
    assert task["response"] == {"attempt": 1}


@pytest.mark.services
async def test_a_server_that_is_killed_goes_on_where_it_was(
    real: Real, marks: Marks, tmp_path: Path
) -> None:
    """On RabbitMQ and MariaDB: what runs goes on meanwhile, and is not begun again."""
    async with worker(real, tmp_path):
        async with server(tmp_path, "serve", **real.sections) as (program, client):
            ids = await post_jobs(client, marks)
            begun = await marks.seen("started", 4)
            await eventually(lambda: are_known_as_sent(client, begun))
            program.kill()
            await program.ended()
        marks.say()
        await marks.seen("finished", 4)
        async with server(tmp_path, "serve", **real.sections) as (_, client):
            jobs = await ends(client, ids)

    assert_all_done_once(jobs)
    started = Counter(marks.tasks("started"))
    assert {started[mark.task_id] for mark in begun} == {1}


@pytest.mark.services
async def test_the_last_place_of_a_limit_is_not_lost_with_who_had_it(
    real: Real, marks: Marks, tmp_path: Path
) -> None:
    """Server and worker are killed: a place is what its task is, and no number to be given back."""
    async with server(tmp_path, "serve", **real.sections) as (program, client):
        await client.limit_key("GATE", concurrency=1)
        ids = [
            (await client.submit(spec(f"job {number}", gate(marks, "GATE"))))["job_id"]
            for number in range(3)
        ]
        async with worker(real, tmp_path) as first:
            [begun] = await marks.seen("started")
            # The place of what is not goes when the claim runs out: 3 s here.
            await eventually(lambda: are_known_as_sent(client, [begun]))
            first.kill()
            program.kill()
            await first.ended()
            await program.ended()
    async with server(tmp_path, "serve", **real.sections) as (_, client), worker(real, tmp_path):
        again = await marks.seen("started", 2)
        held = (await client.key_limits("GATE"))["holders"]
        marks.say()
        jobs = [await ended(client, job_id) for job_id in ids]
        left = (await client.key_limits("GATE"))["holders"]

    assert {mark.task_id for mark in again} == {begun.task_id}  # nobody else had its place
    assert [holder["task_id"] for holder in held] == [begun.task_id]
    assert [job["status"] for job in jobs] == ["succeeded"] * 3
    assert left == []


@pytest.mark.services
async def test_jobs_are_taken_while_no_runner_lives_and_done_by_the_next(
    real: Real, marks: Marks, tmp_path: Path
) -> None:
    """API, runner and worker in processes of their own, that meet on the broker."""
    settings = as_environment(BRISK | real.sections)

    def runner() -> AbstractAsyncContextManager[Program]:
        return running("serve", "--role", "runner", "--json", folder=tmp_path, **settings)

    async with (
        worker(real, tmp_path),
        server(tmp_path, "serve", "--role", "api", **real.sections) as (_, client),
    ):
        async with runner() as first:
            before = await client.submit(spec("before", gate(marks, "GATE")))
            begun = await marks.seen("started")
            await eventually(lambda: are_known_as_sent(client, begun))
            first.kill()
            await first.ended()
        marks.say()
        after = await client.submit(spec("after", {"taskSequential": ["ECHO", "ECHO"]}))
        async with runner():
            jobs = [await ended(client, job["job_id"]) for job in (before, after)]

    assert [job["status"] for job in jobs] == ["succeeded", "succeeded"]
    assert len(marks.all("started")) == 1


async def test_an_embedded_dane_that_is_killed_goes_on_where_it_was(
    marks: Marks, tmp_path: Path
) -> None:
    """Its workers and its exchange die with it: what ran begins again, what was done stays."""
    async with server(tmp_path, "dev", *CAST, "--slots", "4") as (program, client):
        ids = await post_jobs(client, marks)
        begun = await marks.seen("started", 4)
        program.kill()
        await program.ended()
    marks.say()
    async with server(tmp_path, "dev", *CAST, "--slots", "4") as (_, client):
        jobs = await ends(client, ids)

    assert_all_done_once(jobs)
    started, finished = Counter(marks.tasks("started")), Counter(marks.tasks("finished"))
    assert {started[mark.task_id] for mark in begun} == {2}
    assert set(finished.values()) == {1}


@asynccontextmanager
async def server(
    folder: Path, *args: str, **sections: dict[str, Any]
) -> AsyncIterator[tuple[Program, Client]]:
    """A server in a process of its own, that keeps its files in the folder it is started in."""
    settings = as_environment(BRISK | sections)
    async with (
        running(*args, "--port", "0", "--json", folder=folder, **settings) as program,
        Client((await program.facts())["url"]) as client,
    ):
        yield program, client


async def post_jobs(client: Client, marks: Marks) -> list[int]:
    """Jobs of which each has something that is done at once, that waits, and that runs long."""
    ids = []
    for number in range(JOBS):
        side_by_side = [gate(marks, "GATE"), "ECHO", gate(marks, "HEAVYGATE")]
        tasks = {"taskSequential": ["ECHO", {"taskParallel": side_by_side}, "ECHO"]}
        ids.append((await client.submit(spec(f"job {number}", tasks)))["job_id"])
    return ids


async def ends(client: Client, ids: Sequence[int]) -> list[Json]:
    """How jobs ended, with all that is known of their tasks."""
    assert sorted(job["job_id"] for job in await client.jobs(limit=100)) == sorted(ids)
    jobs = [await ended(client, job_id) for job_id in ids]
    return [{**job, "details": await details(client, job)} for job in jobs]


def assert_all_done_once(jobs: Sequence[Json]) -> None:
    """Every task has one attempt that succeeded, and the counts say so too."""
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert {(job["counts"]["total"], job["counts"]["succeeded"]) for job in jobs} == {(5, 5)}
    for job in jobs:
        good = [
            [attempt["state"] for attempt in task["attempts"]].count(200) for task in job["details"]
        ]
        assert good == [1] * 5, job["details"]
        assert len(job["response"]["ECHO"]) == 3


async def are_known_as_sent(client: Client, begun: Sequence[Mark]) -> bool:
    """Whether the store knows that these are out; it may be told after they have begun."""
    tasks = [await client.task(mark.task_id) for mark in begun]
    return all(task["status"] in ("queued", "running") for task in tasks)


async def details(client: Client, job: Json) -> list[Json]:
    rows = await client.tasks(job["job_id"])
    return [await client.task(row["task_id"]) for row in rows]
