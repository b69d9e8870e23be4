"""DANE 0.1's clients and scripts, as their users have them."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.server.api.served import Serve


@dataclass
class OldTask:
    """Takes what DANE 0.1's `Task` takes, and nothing else."""

    task_key: str
    task_id: int | None = None
    api: None = None
    task_state: int | None = None
    task_msg: str | None = None
    job_id: int | None = None


@dataclass
class OldJob:
    """Takes what DANE 0.1's `Job` takes, and nothing else."""

    source_url: str
    source_id: str
    tasks: Any
    source_set: str | None = None
    job_id: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    priority: int = 1
    response: dict[str, Any] = field(default_factory=dict)
    api: None = None


def old_parse(node: Any) -> list[OldTask]:
    """Reads tasks as DANE 0.1 does: an object of one member, or a bare key."""
    if isinstance(node, str):
        return [OldTask(node)]
    [(kind, inside)] = node.items()
    if kind == "Task":
        return [OldTask(**inside)]
    return [task for item in inside for task in old_parse(item)]


#: What `Job.to_json` of DANE 0.1 writes for its own example.
OLD_SPEC = (
    '{ "source_url" : "some-url", "source_id" : "123", "job_id" : null, "tasks" : '
    '{ "taskParallel" : ["DEBUG", "FOO"]}, "metadata" : {}, "priority" : 1, "response" : {} }'
)

GET_ACTIONS = {"COMPAT": {"GET_ACTIONS": True}}


async def test_the_submit_script_of_01_reads_its_answer(http: httpx.AsyncClient) -> None:
    """It posts its JSON without a type, and makes objects of what comes back."""
    request = http.build_request("POST", "/DANE/job", content=OLD_SPEC)
    assert "content-type" not in request.headers

    answer = await http.send(request)

    assert answer.status_code == 201
    job = OldJob(**json.loads(answer.text))
    assert [task.task_key for task in old_parse(job.tasks)] == ["DEBUG", "FOO"]
    assert all(task.job_id == job.job_id for task in old_parse(job.tasks))


@pytest.mark.parametrize(
    ("address", "status", "reads"),
    [
        ("job/1/retry", 200, OldJob),
        ("task/1/retry", 200, OldTask),
        ("task/1/forceretry", 200, OldTask),
        ("task/1/reset", 200, OldTask),
    ],
)
async def test_acts_on_get_are_as_01_had_them(
    serve: Serve, address: str, status: int, reads: Any
) -> None:
    dane = await serve(**GET_ACTIONS)
    await dane.http.post("/DANE/job", content=OLD_SPEC)

    answer = await dane.http.get(f"/DANE/{address}")

    assert answer.status_code == status
    members = answer.json()
    assert reads(**members.get("Task", members)).job_id == 1


async def test_deleting_on_get_answers_as_01_did(serve: Serve) -> None:
    """200 and nothing, where ours is 204."""
    dane = await serve(**GET_ACTIONS)
    await dane.http.post("/DANE/job", content=OLD_SPEC)

    answer = await dane.http.get("/DANE/job/1/delete")

    assert (answer.status_code, answer.content) == (200, b"")
    assert (await dane.http.get("/DANE/job/1")).status_code == 404


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("HEAD", {}, 405),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", {"Origin": "http://evil.example"}, 403),
        ("GET", {"Sec-Purpose": "prefetch;prerender"}, 403),
        ("GET", {"Purpose": "prefetch"}, 403),
    ],
)
async def test_acts_on_get_are_still_not_for_browsers(
    serve: Serve, method: str, headers: dict[str, str], status: int
) -> None:
    """An image on somebody's page must not delete a job, nor a browser that looks ahead."""
    dane = await serve(**GET_ACTIONS)
    await dane.http.post("/DANE/job", content=OLD_SPEC)

    answer = await dane.http.request(method, "/DANE/job/1/delete", headers=headers)

    assert answer.status_code == status
    assert (await dane.http.get("/DANE/job/1")).status_code == 200


async def test_acts_on_get_are_off_unless_asked_for(http: httpx.AsyncClient) -> None:
    await http.post("/DANE/job", content=OLD_SPEC)

    answer = await http.get("/DANE/job/1/delete")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "COMPAT.GET_ACTIONS" in answer.json()["detail"]
    assert (await http.get("/DANE/job/1")).status_code == 200
