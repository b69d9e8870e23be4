"""DANE 0.1's own client library and submit script, unmodified, against this server."""

import asyncio
import json
import warnings
from collections.abc import Callable
from http.client import HTTPConnection
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import httpx
import pytest

from dane_core.client import Client
from dane_core.states import MEANINGS
from tests.stories.both_ways import Start, ended, starting
from tests.stories.cast import Echo, Fail, Isolated
from tests.stories.marks import eventually

#: Posts a text as DANE 0.1's users do; gives the status and the text that comes back.
Post: TypeAlias = Callable[[str, str], tuple[int, str]]

#: What the library wrote for its users, as it does.
NESTED: Final = {
    "taskSequential": ["ECHO", {"taskParallel": ["isolated", {"taskSequential": ["ECHO", "ECHO"]}]}]
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package `DANE`, which looks for configuration where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DANE_HOME", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library of 2020
        return import_module("DANE")


def post_bare(url: str, text: str) -> tuple[int, str]:
    """What `requests.post(url, data=text)` sends: no Content-Type."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    headers = {"User-Agent": "python-requests/2.25.1", "Accept": "*/*"}
    connection.request("POST", urlsplit(url).path, body=text.encode(), headers=headers)
    answer = connection.getresponse()
    status, body = answer.status, answer.read().decode()
    connection.close()
    return status, body


def post_with_httpx(url: str, text: str) -> tuple[int, str]:
    answer = httpx.post(url, content=text, trust_env=False)
    return answer.status_code, answer.text


def post_with_requests(url: str, text: str) -> tuple[int, str]:
    answer = import_module("requests").post(url, data=text, timeout=30)
    return answer.status_code, answer.text


@pytest.fixture
def embedded(tmp_path: Path) -> Start:
    return starting(tmp_path / "dane", None)


@pytest.mark.parametrize("path", ["/DANE/job", "/DANE/job/"])
@pytest.mark.parametrize("post", [post_bare, post_with_httpx, post_with_requests])
async def test_the_submit_script_of_01_gets_a_job_that_it_can_read(
    post: Post, path: str, old: Any, embedded: Start
) -> None:
    """It makes a job of Python values, posts its JSON as it is, and expects a 201."""
    job = old.Job(source_url="some-url", source_id=123, tasks={"taskParallel": ["ECHO", "FOO"]})
    async with embedded(Echo) as client:
        status, text = await asyncio.to_thread(post, client.url + path, job.to_json())

    assert status == 201, text
    answer = old.Job.from_json(text)
    assert answer.job_id > 0
    assert (answer.source_url, answer.source_id, answer.priority) == ("some-url", "123", 1)
    assert [task.task_key for task in answer.tasks] == ["ECHO", "FOO"]
    assert all(task.task_id and task.task_state in MEANINGS for task in answer.tasks)
    assert {task.job_id for task in answer.tasks} == {answer.job_id}
    assert answer.response["SHARED"].keys() == {"TEMP_FOLDER", "OUT_FOLDER"}
    assert not answer.isDone()


async def test_a_nested_job_of_01_is_done_when_its_client_looks(old: Any, start: Start) -> None:
    """Containers come back nested as they were made; doneness is what the library says it is."""
    tasks = old.taskSequential(["ECHO"])
    tasks.add_task(old.taskParallel([old.Task("isolated"), {"taskSequential": ["ECHO", "ECHO"]}]))
    job = old.Job("/x", "nested", tasks, metadata={"by": "0.1"}, priority=3)
    async with start(Echo, Isolated) as client:
        _, text = await asyncio.to_thread(post_bare, f"{client.url}/DANE/job", job.to_json())
        job_id = old.Job.from_json(text).job_id
        await ended(client, job_id)

        seen = await read(client, f"/DANE/job/{job_id}?shape=0.1")

    done = old.Job.from_json(seen)
    assert done.isDone()
    assert done.state() == 200
    assert (done.metadata, done.priority) == ({"by": "0.1"}, 3)
    assert keys_of(done.tasks) == keys_of(old.parse(NESTED))
    messages: list[str] = []
    done.apply(lambda task: messages.append(task.task_msg))
    assert messages == ["Success"] * 4
    assert done.response["ISOLATED"]["source"] == ["/x", "nested", None]
    assert [answer["source"][1] for answer in done.response["ECHO"]] == ["nested"] * 3


async def test_a_failed_job_of_01_tells_the_state_of_its_furthest_task(
    old: Any, embedded: Start
) -> None:
    async with embedded(Echo, Fail) as client:
        job_id = await post_job(client, old, {"taskSequential": ["ECHO", "FAIL", "ECHO"]})
        await ended(client, job_id)

        failed = old.Job.from_json(await read(client, f"/DANE/job/{job_id}?shape=0.1"))

    assert not failed.isDone()
    assert failed.state() == 500
    assert [task.state() for task in failed.tasks] == [200, 500, 201]


async def test_with_exact_shape_a_client_of_01_need_not_ask_for_it(
    old: Any, embedded: Start
) -> None:
    """For a site whose clients cannot be touched, every job and task is 0.1's."""
    async with embedded(Echo, COMPAT={"EXACT_SHAPE": True}) as client:
        job = await http(client, "POST", "/DANE/job", json=spec("ECHO"))
        job_id = old.Job.from_json(job.text).job_id
        await eventually(lambda: is_done(client, old, job_id))

        job = old.Job.from_json(await read(client, f"/DANE/job/{job_id}"))
        task = old.Task.from_json(await read(client, f"/DANE/task/{job.tasks.task_id}"))

    assert (task.task_key, task.task_msg, task.job_id) == ("ECHO", "Success", job_id)
    assert task.isDone()


async def test_01_finds_jobs_in_progress_and_jobs_of_a_source(old: Any, embedded: Start) -> None:
    """In progress is what waits, runs, or ended with errors."""
    async with embedded(Echo, Fail) as client:
        done = await post_job(client, old, "ECHO", source_id="A/1")
        failed = await post_job(client, old, "FAIL", source_id="A/1")
        for job_id in (done, failed):
            await ended(client, job_id)
        waiting = await post_job(client, old, "NOBODY", source_id="A/2")

        inprogress = json.loads(await read(client, "/DANE/job/inprogress"))
        searched = json.loads(await read(client, "/DANE/search/A/1"))
        as_01_had_it = json.loads(await read(client, "/DANE/job/search/A/2"))

    assert inprogress == {"jobs": [failed, waiting]}
    assert searched == {"jobs": [done, failed]}
    assert as_01_had_it == {"jobs": [waiting]}


async def test_01_acts_on_jobs_and_tasks_by_get_where_that_is_allowed(
    old: Any, embedded: Start
) -> None:
    """Retry, forceretry, reset and delete, each read back by the library."""
    async with embedded(Echo, Fail, COMPAT={"GET_ACTIONS": True}) as client:
        job_id = await post_job(client, old, {"taskSequential": ["ECHO", "FAIL"]})
        await ended(client, job_id)
        echo, fail = [task["task_id"] for task in await client.tasks(job_id)]

        retried = old.Job.from_json(await read(client, f"/DANE/job/{job_id}/retry"))
        await ended(client, job_id)
        retry = old.Task.from_json(await read(client, f"/DANE/task/{fail}/retry"))
        await ended(client, job_id)
        forced = old.Task.from_json(await read(client, f"/DANE/task/{echo}/forceretry"))
        await ended(client, job_id)
        attempts = [(await client.task(task_id))["attempt"] for task_id in (echo, fail)]
        reset = old.Task.from_json(await read(client, f"/DANE/task/{fail}/reset"))
        deleted = await http(client, "GET", f"/DANE/job/{job_id}/delete")
        gone = await http(client, "GET", f"/DANE/job/{job_id}")

    assert retried.job_id == job_id
    assert (retry.task_id, forced.task_id) == (fail, echo)
    assert attempts == [2, 3]
    assert (reset.task_state, reset.task_msg) == (201, "Reset")
    assert (deleted.status_code, gone.status_code) == (200, 404)


async def test_without_leave_a_get_of_01_changes_nothing_and_says_how_to_get_it(
    old: Any, embedded: Start
) -> None:
    async with embedded(Echo) as client:
        job_id = await post_job(client, old, "ECHO")
        await ended(client, job_id)

        answer = await http(client, "GET", f"/DANE/job/{job_id}/delete")
        still = await http(client, "GET", f"/DANE/job/{job_id}")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "COMPAT.GET_ACTIONS" in answer.json()["detail"]
    assert still.status_code == 200


def spec(tasks: Any, source_id: str = "x") -> dict[str, Any]:
    return {"source_url": f"/{source_id}", "source_id": source_id, "tasks": tasks}


async def post_job(client: Client, old: Any, tasks: Any, source_id: str = "x") -> int:
    job = old.Job(**spec(tasks, source_id))
    answer = await http(client, "POST", "/DANE/job", content=job.to_json())
    job_id: int = old.Job.from_json(answer.text).job_id
    return job_id


async def http(client: Client, method: str, path: str, **request: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=client.url, trust_env=False) as plain:
        return await plain.request(method, path, **request)


async def read(client: Client, path: str) -> str:
    answer = await http(client, "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.text


async def is_done(client: Client, old: Any, job_id: int) -> bool:
    return bool(old.Job.from_json(await read(client, f"/DANE/job/{job_id}")).isDone())


def keys_of(node: Any) -> Any:
    """The nesting of the library's objects, as they write it, with the keys alone."""
    if hasattr(node, "task_key"):
        return node.task_key
    return {type(node).__name__: [keys_of(inside) for inside in node]}
