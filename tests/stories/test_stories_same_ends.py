"""The same specifications end alike, embedded and on RabbitMQ + MariaDB."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from dane_core.client import Client
from dane_core.errors import RefusedByServer
from tests.stories import cast
from tests.stories.both_ways import BRISK, Real, as_environment, ended, starting
from tests.stories.late import Late
from tests.stories.marks import eventually
from tests.stories.programs import running
from tests.stories.snapshot import Json, snapshot

#: For tasks that are tried again.
SOON: Final = {"delay": 0.05, "factor": 1, "max_delay": 0.1}


def task(key: str, **members: Any) -> Json:
    return {"Task": {"task_key": key, **members}}


def echo(n: int) -> Json:
    return task("ECHO", args={"n": n})


def sequence(*steps: Any) -> Json:
    return {"taskSequential": [*steps]}


def parallel(*steps: Any) -> Json:
    return {"taskParallel": [*steps]}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A specification, and how it is expected to end."""

    tasks: Any
    states: Sequence[int]
    status: str = "succeeded"
    messages: Sequence[str] = ()  # of the tasks, where it matters what they say
    answers: Json = field(default_factory=dict)  # some of them, by key
    attempts: Sequence[int] = ()  # how the attempts of the first task ended
    members: Json = field(default_factory=dict)  # of the job


CASES: Final[dict[str, Case]] = {
    "one key": Case(tasks="ECHO", states=[200], messages=["Success"], attempts=[200]),
    "on the loop, in a thread and in a process": Case(
        tasks=sequence("ECHO", "THREADED", "ISOLATED"), states=[200, 200, 200]
    ),
    "arguments, names, metadata and a type": Case(
        tasks=parallel(
            *(
                task(key, name=f"the {key}", args={"n": 1, "ü": [None, True, 0.5]})
                for key in ("ECHO", "THREADED", "ISOLATED")
            )
        ),
        states=[200, 200, 200],
        members={"type": "text", "metadata": {"N°": "1", "deep": {"er": [1, 2]}}},
    ),
    "priorities": Case(
        tasks=sequence(task("ECHO", priority=10), "ISOLATED"),
        states=[200, 200],
        members={"priority": 7},
    ),
    "what an earlier task answered": Case(
        tasks=sequence(echo(2), "GATHER"),
        states=[200, 200],
        answers={"GATHER": {"keys": ["ECHO", "SHARED"], "echoes": 1, "sum": 2}},
    ),
    "nested blocks": Case(
        tasks=sequence(
            parallel(echo(1), sequence(echo(2), echo(4))),
            "GATHER",
            parallel("ISOLATED", sequence("THREADED", "OLD")),
        ),
        states=[200] * 7,
        answers={"GATHER": {"keys": ["ECHO", "SHARED"], "echoes": 2, "sum": 5}},
    ),
    "a graph": Case(
        tasks={
            "taskGraph": {
                "a": echo(1),
                "b": {"task": echo(2), "after": ["a"]},
                "c": {"task": parallel("THREADED", echo(4)), "after": ["a"]},
                "d": {"task": "GATHER", "after": ["b", "c"]},
            }
        },
        states=[200] * 5,
        answers={"GATHER": {"keys": ["ECHO", "SHARED", "THREADED"], "echoes": 2, "sum": 6}},
    ),
    "three hundred into one": Case(
        tasks=sequence(parallel(*map(echo, range(300))), "GATHER"),
        states=[200] * 301,
        answers={"GATHER": {"keys": ["SHARED"], "echoes": 300, "sum": 44_850}},
    ),
    "many into many": Case(
        tasks=sequence(parallel(*["ECHO"] * 20), parallel(*["THREADED"] * 20)), states=[200] * 40
    ),
    **{
        f"failure {state}": Case(
            tasks=sequence(task("FAIL", args={"state": state, "message": "no such"}), "ECHO"),
            states=[state, 201],
            status="failed",
            messages=["no such", "Created"],
            attempts=[state],
        )
        for state in (400, 403, 404, 500)
    },
    "an exception": Case(
        tasks="RAISE",
        states=[500],
        status="failed",
        messages=["LookupError: nothing known of an exception"],
    ),
    "a crash": Case(tasks="CRASH", states=[500], status="failed", attempts=[500]),
    "a failure in one branch": Case(
        tasks=parallel(sequence("FAIL", "ECHO"), "THREADED"),
        states=[500, 201, 200],
        status="failed",
    ),
    "a failure that is allowed": Case(
        tasks=sequence(task("FAIL", allow_failure=True), "ECHO"), states=[500, 200]
    ),
    "good at the third attempt": Case(
        tasks=sequence(task("FLAKY", retry={**SOON, "limit": 3}), "ECHO"),
        states=[200, 200],
        answers={"FLAKY": {"attempt": 3}},
        attempts=[503, 503, 200],
    ),
    "never good": Case(
        tasks=sequence(task("FLAKY", args={"good": 99}, retry={**SOON, "limit": 2}), "ECHO"),
        states=[503, 201],
        status="failed",
        attempts=[503, 503, 503],
    ),
    "refused twice": Case(
        tasks="COY",
        states=[200],
        answers={"COY": {"attempt": 1, "refusals": 2}},
        attempts=[200],
    ),
    "out of time": Case(
        tasks=parallel(
            *(task(key, timeout=0.3, retry={"limit": 0}) for key in ("LINGER", "DAWDLE"))
        ),
        states=[504, 504],
        status="failed",
        messages=["ran longer than its timeout of 0.3 s"] * 2,
    ),
    "out of time again": Case(
        tasks=task("LINGER", timeout=0.1, retry={**SOON, "limit": 1}),
        states=[504],
        status="failed",
        attempts=[504, 504],
    ),
    "a worker of DANE 0.1": Case(
        tasks="OLD",
        states=[200],
        messages=["as ever"],
        answers={"OLD": {"source": "a worker of DANE 0.1"}},
    ),
    "a file for a result": Case(tasks="FILED", states=[200], messages=["filed"]),
    "checked arguments": Case(
        tasks=task("TIDY", args={"word": "ha"}),
        states=[200],
        answers={"TIDY": {"text": "haha", "length": 4}},
    ),
    "a type that its worker takes": Case(tasks="NARROW", states=[200], members={"type": "video"}),
    "a type that its worker does not take": Case(
        tasks="NARROW",
        states=[422],
        status="accepted",  # none of it was sent
        messages=["Unroutable task"],
        members={"type": "image"},
    ),
    "a key whose worker comes late": Case(
        tasks=sequence("LATE", "ECHO"), states=[200, 200], answers={"LATE": {"attempt": 1}}
    ),
}

REFUSED: Final = {"status": 422, "paths": ["tasks.taskSequential[1].Task.args.times"]}


def test_specifications_end_as_their_authors_expect(
    embedded_ends: dict[str, Json], subtests: pytest.Subtests
) -> None:
    for name, case in CASES.items():
        with subtests.test(name):
            assert_as_expected(embedded_ends[name], case)
    with subtests.test("arguments that do not fit"):
        assert embedded_ends["refused"] == REFUSED


@pytest.mark.services
def test_they_end_alike_on_rabbitmq_and_mariadb(
    real_ends: dict[str, Json], embedded_ends: dict[str, Json], subtests: pytest.Subtests
) -> None:
    """Whole answers are compared: what differs may be ids, times, folders and workers only."""
    for name, case in CASES.items():
        with subtests.test(name):
            assert_as_expected(real_ends[name], case)
            assert real_ends[name] == embedded_ends[name]
    with subtests.test("arguments that do not fit"):
        assert real_ends["refused"] == REFUSED


def assert_as_expected(job: Json, case: Case) -> None:
    tasks = job["task_list"]
    assert [one["task_state"] for one in tasks] == [*case.states]
    assert job["status"] == case.status
    assert [one["task_msg"] for one in tasks][: len(case.messages)] == [*case.messages]
    assert {key: job["response"].get(key) for key in case.answers} == case.answers
    if case.attempts:
        assert [attempt["state"] for attempt in tasks[0]["attempts"]] == [*case.attempts]


@pytest.fixture(scope="module")
def embedded_ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    """How all specifications ended in one embedded DANE, which was started twice."""
    folder = tmp_path_factory.mktemp("embedded")

    async def tell() -> dict[str, Json]:
        start = starting(folder, None)
        async with start(*cast.EVERYONE) as client:
            await eventually(lambda: are_known(client))
            jobs = await post_all(client)
            await wait_for_all(client, jobs)
            refused = await refusal(client)
        async with start(*cast.EVERYONE, Late) as client:
            await ended(client, jobs[LATECOMER])
            return {**await snapshots(client, jobs, folder), "refused": refused}

    return asyncio.run(tell())


@pytest.fixture(scope="module")
def real_ends(services: Real, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Json]:
    """How they ended on RabbitMQ and MariaDB, with workers in processes of their own."""
    folder = tmp_path_factory.mktemp("real")
    settings = as_environment(BRISK | services.sections)

    async def tell() -> dict[str, Json]:
        await services.renew()
        async with AsyncExitStack() as stack:

            async def work(*target: str) -> None:
                worker = running(
                    "worker", *target, folder=folder, **settings, DANE_API_URL=client.url
                )
                await stack.enter_async_context(worker)

            client = await stack.enter_async_context(starting(folder, services)())
            await work("tests.stories.cast", "--slots", "4")
            await eventually(lambda: are_known(client))
            jobs = await post_all(client)
            await wait_for_all(client, jobs)
            refused = await refusal(client)
            await work(LATE_FILE)
            await ended(client, jobs[LATECOMER])
            return {**await snapshots(client, jobs, folder), "refused": refused}

    return asyncio.run(tell())


LATECOMER: Final = "a key whose worker comes late"
LATE_FILE: Final = str(Path(__file__).with_name("late.py"))


async def are_known(client: Client) -> bool:
    """Whether all workers have said hello: before that, nothing is checked, and all is 422."""
    known = {state["task_key"] for state in await client.workers() if state["workers"]}
    return known >= {worker.key for worker in cast.EVERYONE}


async def post_all(client: Client) -> dict[str, int]:
    jobs = {}
    for name, case in CASES.items():
        spec = {"source_url": f"/{name}", "source_id": name, "tasks": case.tasks, **case.members}
        jobs[name] = (await client.submit(spec))["job_id"]
    return jobs


async def wait_for_all(client: Client, jobs: dict[str, int]) -> None:
    """Until each job has ended, or waits for a worker that is not there."""

    async def is_still(job_id: int) -> bool:
        job = await client.job(job_id, tasks=False)
        return job["status"] in ("succeeded", "failed") or job["state"] == 422

    for job_id in jobs.values():
        await eventually(partial(is_still, job_id))


async def refusal(client: Client) -> Json:
    bad = sequence("ECHO", task("TIDY", args={"word": "ha", "times": "often"}))
    with pytest.raises(RefusedByServer) as refused:
        await client.submit({"source_url": "/x", "source_id": "refused", "tasks": bad})
    return {
        "status": refused.value.status,
        "paths": [fault.path for fault in refused.value.faults],
    }


async def snapshots(client: Client, jobs: dict[str, int], folder: Path) -> dict[str, Json]:
    return {name: await snapshot(client, jobs[name], folder) for name in jobs}
