"""The client: what it sends, what it makes of answers, and how it follows a job."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest

from dane_core.client import BlockingClient, Client, server_address, tasks_in
from dane_core.errors import RefusedByServer, ServerUnreachable

Answer = httpx.Response | Exception


class Script:
    """A server that answers each `METHOD path` with what it was told, the last for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[httpx.Request] = []

    def answer(self, line: str, *answers: Answer) -> None:
        self.answers[line] = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answers = self.answers[f"{request.method} {request.url.raw_path.decode()}"]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def lines(self) -> list[str]:
        return [f"{asked.method} {asked.url.raw_path.decode()}" for asked in self.requests]


@pytest.fixture
def server() -> Script:
    return Script()


@pytest.fixture
async def client(server: Script) -> AsyncIterator[Client]:
    transport = httpx.MockTransport(server)
    async with Client("http://dane.test", transport=transport, pauses=(0, 0)) as client:
        yield client


def json(body: Any, status: int = 200) -> httpx.Response:
    return httpx.Response(status, json=body)


def problem(status: int, title: str, detail: str = "", *errors: dict[str, str]) -> httpx.Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return httpx.Response(
        status,
        content=orjson.dumps({**body, "errors": errors}),
        headers={"content-type": "application/problem+json"},
    )


# --- asking ------------------------------------------------------------------------------------


async def test_a_specification_is_posted_as_it_is(client: Client, server: Script) -> None:
    """Raw JSON keeps even its faults, so that the server can name them."""
    raw = b'{"source_url": "a", "source_url": "b"}'
    server.answer("POST /DANE/job", json({"job_id": 7}, 201))

    job = await client.submit(raw, idempotency_key="once")

    assert job == {"job_id": 7}
    assert server.requests[0].content == raw
    assert server.requests[0].headers["idempotency-key"] == "once"
    assert server.requests[0].headers["content-type"] == "application/json"


async def test_many_specifications_go_as_lines_and_keep_their_numbers(
    client: Client, server: Script
) -> None:
    """They travel a thousand at a time; the caller sees one numbering."""
    first = [{"line": n, "status": 201, "job_id": n} for n in range(1, 1001)]
    second = {"line": 1, "status": 422, "title": "No"}
    ndjson = {"content-type": "application/x-ndjson"}
    server.answer(
        "POST /DANE/jobs",
        httpx.Response(200, content=b"\n".join(map(orjson.dumps, first)), headers=ndjson),
        httpx.Response(200, content=orjson.dumps(second) + b"\n", headers=ndjson),
    )

    outcomes = await client.submit_many({"source_id": str(n)} for n in range(1001))

    assert len(server.requests[0].content.splitlines()) == 1000
    assert len(outcomes) == 1001
    assert outcomes[-1] == {"line": 1001, "status": 422, "title": "No"}


async def test_a_list_is_read_page_by_page_until_there_is_enough(
    client: Client, server: Script
) -> None:
    server.answer(
        "GET /DANE/jobs?status=failed&limit=3",
        json({"jobs": [{"job_id": 9}, {"job_id": 8}], "next": "/DANE/jobs?after=8"}),
    )
    server.answer(
        "GET /DANE/jobs?after=8", json({"jobs": [{"job_id": 7}, {"job_id": 6}], "next": None})
    )

    jobs = await client.jobs(limit=3, status="failed", state=None)

    assert [job["job_id"] for job in jobs] == [9, 8, 7]


#: An answer that any verb can read.
EMPTY: dict[str, Any] = {
    "jobs": [],
    "keys": [],
    "Task": {},
    "holders": [],
    "owners": [],
    "next": None,
}


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda client: client.retry(1), "POST /DANE/job/1/retry"),
        (lambda client: client.cancel(1), "POST /DANE/job/1/cancel"),
        (lambda client: client.pause(1), "POST /DANE/job/1/pause"),
        (lambda client: client.resume(1), "POST /DANE/job/1/resume"),
        (lambda client: client.delete(1), "DELETE /DANE/job/1"),
        (lambda client: client.of_source("a/b c"), "GET /DANE/search/a%2Fb%20c"),
        (lambda client: client.unfinished(), "GET /DANE/job/inprogress"),
        (lambda client: client.task(1), "GET /DANE/task/1"),
        (lambda client: client.explain(1), "GET /DANE/task/1/explain"),
        (lambda client: client.retry_task(1), "POST /DANE/task/1/retry"),
        (lambda client: client.force_task(1), "POST /DANE/task/1/forceretry"),
        (lambda client: client.reset_task(1), "POST /DANE/task/1/reset"),
        (lambda client: client.workers(), "GET /DANE/workers"),
        (lambda client: client.pause_key("ASR"), "POST /DANE/workers/ASR/pause"),
        (lambda client: client.resume_key("ASR"), "POST /DANE/workers/ASR/resume"),
        (lambda client: client.retry_key("ASR", 500), "POST /DANE/workers/ASR/retry?state=500"),
        (lambda client: client.limits(), "GET /DANE/limits"),
        (lambda client: client.prioritize(1, 7), "PUT /DANE/job/1/priority"),
        (lambda client: client.prioritize_task(1, 7), "PUT /DANE/task/1/priority"),
        (lambda client: client.key_limits("ASR"), "GET /DANE/workers/ASR/limits"),
        (lambda client: client.limit_key("ASR", rate=1), "PUT /DANE/workers/ASR/limits"),
        (lambda client: client.owners(), "GET /DANE/owners"),
        (lambda client: client.change_owner("a/b", weight=2), "PUT /DANE/owners/a%2Fb"),
        (lambda client: client.ready(), "GET /DANE/ready"),
    ],
)
async def test_each_verb_asks_for_its_route(
    client: Client, server: Script, ask: Callable[[Client], Any], line: str
) -> None:
    server.answer(line, json(EMPTY))

    await ask(client)

    assert server.lines == [line]


# --- what goes wrong ---------------------------------------------------------------------------


async def test_a_problem_is_raised_with_all_its_faults(client: Client, server: Script) -> None:
    faults = [{"path": "tasks", "message": "is empty"}, {"path": "type", "message": "is long"}]
    server.answer("POST /DANE/job", problem(422, "Cannot be accepted", "2 faults", *faults))

    with pytest.raises(RefusedByServer) as caught:
        await client.submit({})

    assert caught.value.status == 422
    assert [fault.path for fault in caught.value.faults] == ["tasks", "type"]
    assert str(caught.value) == (
        "422 Cannot be accepted: 2 faults\n  tasks: is empty\n  type: is long"
    )


async def test_the_detail_of_a_single_fault_is_said_once(client: Client, server: Script) -> None:
    fault = {"path": "tasks", "message": "is empty"}
    server.answer("POST /DANE/job", problem(422, "Cannot be accepted", "tasks: is empty", fault))

    with pytest.raises(RefusedByServer) as caught:
        await client.submit({})

    assert str(caught.value) == "422 Cannot be accepted: tasks: is empty"
    assert [fault.path for fault in caught.value.faults] == ["tasks"]


async def test_a_question_is_asked_again_when_it_fails_for_now(
    client: Client, server: Script
) -> None:
    server.answer(
        "GET /DANE/limits",
        httpx.ConnectError("refused"),
        problem(503, "The store cannot be reached now"),
        json({"tasks": 5}),
    )

    assert await client.limits() == {"tasks": 5}


async def test_a_question_is_not_asked_for_ever(client: Client, server: Script) -> None:
    server.answer("GET /DANE/limits", problem(503, "The store cannot be reached now"))

    with pytest.raises(RefusedByServer, match="503 The store"):
        await client.limits()

    assert len(server.requests) == 3


async def test_nothing_that_changes_something_is_sent_twice(client: Client, server: Script) -> None:
    """After a lost answer nobody knows whether the server has acted."""
    server.answer("POST /DANE/job", httpx.ReadError("reset"), json({"job_id": 1}))

    with pytest.raises(ServerUnreachable, match=r"no DANE server answers at http://dane\.test"):
        await client.submit({})

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>hello</html>"),
        httpx.Response(404, text="nginx"),
        httpx.Response(301, headers={"location": "https://elsewhere.test"}),
    ],
)
async def test_something_else_behind_the_address_is_said_so(
    client: Client, server: Script, answer: httpx.Response
) -> None:
    server.answer("GET /DANE/limits", answer)

    with pytest.raises(ServerUnreachable, match="not as a DANE server"):
        await client.limits()


async def test_nobody_at_the_address_is_unreachable(unused_port: int) -> None:
    async with Client(f"http://127.0.0.1:{unused_port}", pauses=()) as client:
        with pytest.raises(ServerUnreachable, match="no DANE server answers"):
            await client.limits()


@pytest.mark.parametrize("url", ["http://[::1", "http://a b", "http://x:99999", "ftp://x"])
async def test_an_address_that_is_none_is_unreachable(url: str) -> None:
    with pytest.raises(ServerUnreachable):
        async with Client(url, pauses=()) as client:
            await client.limits()


async def test_no_proxy_stands_before_the_loopback_address(
    monkeypatch: pytest.MonkeyPatch, unused_port: int
) -> None:
    """Many machines have HTTP_PROXY set; it cannot know this machine's 127.0.0.1."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")

    async with Client(f"127.0.0.1:{unused_port}", pauses=()) as client:
        with pytest.raises(ServerUnreachable, match=f"127.0.0.1:{unused_port}.*attempts failed"):
            await client.limits()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("localhost:5500", "http://localhost:5500"),
        ("http://h:1/DANE/", "http://h:1"),
        ("https://h/base/DANE", "https://h/base"),
    ],
)
def test_an_address_is_taken_as_people_write_it(written: str, meant: str) -> None:
    assert server_address(written) == meant


# --- following ---------------------------------------------------------------------------------


class Story:
    """A server with one job, which is a chapter further each time its head was asked for."""

    def __init__(self, *chapters: tuple[str, str, float | None], total: int = 1) -> None:
        self.chapters = list(chapters)
        self.total = total
        self.now = chapters[0]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.query == b"tasks=false":
            self.now = self.chapters.pop(0) if self.chapters else self.now
            if self.now[0] == "away":
                raise httpx.ConnectError("refused")
        status, state, progress = self.now
        row = {"task_key": "A", "task_id": 1, "task_msg": "x"}
        if request.url.path.endswith("/tasks"):
            rows = [{"Task": {**row, "status": state, "progress": progress}}]
            return json({"tasks": rows, "next": None})
        head = {"job_id": 1, "status": status, "counts": {"total": self.total}}
        if request.url.query:
            return json(head)
        tasks = {"taskSequential": [{"Task": dict(row)}]}
        return json({**head, "tasks": tasks, "response": {"A": {"n": 1}}})


async def seen(story: Story, **limits: timedelta) -> list[dict[str, Any]]:
    at_once: dict[str, timedelta] = {"shortest": timedelta(0), "longest": timedelta(0)}
    transport = httpx.MockTransport(story)
    async with Client("http://dane.test", transport=transport, pauses=()) as client:
        return [snapshot async for snapshot in client.follow(1, **at_once, **limits)]


async def test_following_gives_a_snapshot_for_each_change_and_ends_with_the_job() -> None:
    story = Story(
        ("running", "queued", None),
        ("running", "queued", None),
        ("running", "running", 0.5),
        ("running", "running", 0.5),
        ("succeeded", "succeeded", 1.0),
    )

    snapshots = await seen(story)

    tasks = [tasks_in(snapshot["tasks"])[0] for snapshot in snapshots]
    assert [task["progress"] for task in tasks] == [None, 0.5, 1.0]
    assert [snapshot["status"] for snapshot in snapshots] == ["running", "running", "succeeded"]
    assert snapshots[-1]["response"] == {"A": {"n": 1}}


async def test_a_huge_job_is_followed_by_its_counts() -> None:
    """A hundred thousand tasks every second would be megabytes for nothing."""
    snapshots = await seen(Story(("succeeded", "succeeded", None), total=100_000))

    assert "tasks" not in snapshots[0]


async def test_following_outlives_a_restart_of_the_server() -> None:
    story = Story(
        ("running", "queued", None), ("away", "", None), ("away", "", None), ("failed", "", None)
    )

    snapshots = await seen(story)

    assert [snapshot["status"] for snapshot in snapshots] == ["running", "failed"]


async def test_following_does_not_wait_for_a_server_for_ever() -> None:
    story = Story(("running", "queued", None), *[("away", "", None)] * 3)

    with pytest.raises(ServerUnreachable):
        await seen(story, patience=timedelta(0))


async def test_a_server_that_speaks_as_0_1_did_cannot_be_followed(
    client: Client, server: Script
) -> None:
    """COMPAT.EXACT_SHAPE leaves the status of jobs out."""
    server.answer("GET /DANE/job/1?tasks=false", json({"job_id": 1}))

    with pytest.raises(RefusedByServer, match="cannot be followed"):
        await client.wait(1)


async def test_following_nobody_fails_at_once() -> None:
    with pytest.raises(ServerUnreachable):
        await seen(Story(("away", "", None)))


# --- the shape of a job ------------------------------------------------------------------------


def test_tasks_are_found_in_the_order_of_the_specification() -> None:
    def task(key: str) -> dict[str, Any]:
        return {"Task": {"task_key": key}}

    tree = {
        "taskSequential": [
            task("A"),
            {"taskParallel": [task("B"), {"taskSequential": [task("C")]}]},
            {"taskGraph": {"x": task("D"), "y": {"task": task("E"), "after": ["x"]}}},
        ]
    }

    assert "".join(found["task_key"] for found in tasks_in(tree)) == "ABCDE"


def test_the_blocking_client_needs_no_loop(unused_port: int) -> None:
    with BlockingClient(f"http://127.0.0.1:{unused_port}") as client:
        client.run(lambda _: asyncio.sleep(0))
        with pytest.raises(ServerUnreachable):
            client.submit({})


@pytest.fixture
def unused_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
