"""Jobs and tasks over HTTP, on the real store."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from dane_core.job import TaskId
from dane_core.message import Answer, Hello, Offer, Ticket
from tests.server.api.served import Serve, Served

SEQUENCE = {"taskSequential": ["DOWNLOAD", {"taskParallel": ["HASH", "HASH"]}, "INDEX"]}
EXACT_JOB = {"job_id", "source_url", "source_id", "metadata", "priority", "tasks", "response"}
EXACT_TASK = {"task_key", "task_id", "task_state", "task_msg", "job_id"}


def spec(**members: Any) -> dict[str, Any]:
    return {"source_url": "http://127.0.0.1/x", "source_id": "T1", "tasks": "NOOP", **members}


async def submit(http: httpx.AsyncClient, **members: Any) -> dict[str, Any]:
    answer = await http.post("/DANE/job", json=spec(**members))
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def finish(
    dane: Served, task_id: int, state: int = 200, message: str = "Success", **response: Any
) -> None:
    """As if a worker had answered."""
    ticket = Ticket(task_id=TaskId(task_id), attempt=1, dispatch=1, token="")
    answer = Answer(
        ticket=ticket, state=state, message=message, response=response, worker="w-1", runtime=2.5
    )
    await dane.writer.record([answer], window=10, lease=timedelta(seconds=1))


def tasks_in(node: Any) -> list[dict[str, Any]]:
    if "Task" in node:
        return [node["Task"]]
    [inside] = node.values()
    return [task for item in inside for task in tasks_in(item)]


# --- submitting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/DANE/job", "/DANE/job/"])
async def test_a_job_is_answered_with_where_it_is(http: httpx.AsyncClient, url: str) -> None:
    """DANE 0.1 documented the address with a slash, and its script had none."""
    answer = await http.post(url, json=spec(tasks=SEQUENCE))

    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/DANE/job/{job['job_id']}" == job["links"]["self"]
    assert (await http.get(answer.headers["location"])).json() == job
    assert job["status"] == "accepted"
    assert job["counts"]["total"] == 4


async def test_a_job_has_the_shape_of_dane_01(dane: Served) -> None:
    """The example of the contract, member by member."""
    job = await submit(dane.http, tasks={"taskSequential": ["NOOP", "NOOP"]}, priority="3")
    first, second = (task["task_id"] for task in tasks_in(job["tasks"]))
    await finish(dane, first)

    shown = (await dane.http.get(f"/DANE/job/{job['job_id']}?shape=0.1")).json()

    ident = job["job_id"]
    assert shown == {
        "job_id": ident,
        "source_url": "http://127.0.0.1/x",
        "source_id": "T1",
        "metadata": {},
        "priority": 3,
        "tasks": {
            "taskSequential": [
                {
                    "Task": {
                        "task_key": "NOOP",
                        "task_id": first,
                        "task_state": 200,
                        "task_msg": "Success",
                        "job_id": ident,
                    }
                },
                {
                    "Task": {
                        "task_key": "NOOP",
                        "task_id": second,
                        "task_state": shown["tasks"]["taskSequential"][1]["Task"]["task_state"],
                        "task_msg": shown["tasks"]["taskSequential"][1]["Task"]["task_msg"],
                        "job_id": ident,
                    }
                },
            ]
        },
        "response": {"SHARED": shown["response"]["SHARED"], "NOOP": [{}, None]},
    }
    assert shown["response"]["SHARED"].keys() == {"TEMP_FOLDER", "OUT_FOLDER"}


async def test_answers_of_one_key_stand_in_the_order_of_the_graph(dane: Served) -> None:
    """A place in the list always means the same task, whichever answered first."""
    job = await submit(dane.http, tasks=SEQUENCE)
    download, one, two, _ = tasks_in(job["tasks"])
    await finish(dane, download["task_id"], file_type="video")
    await finish(dane, two["task_id"], sum="b")

    half = (await dane.http.get(f"/DANE/job/{job['job_id']}")).json()["response"]
    await finish(dane, one["task_id"], sum="a")
    whole = (await dane.http.get(f"/DANE/job/{job['job_id']}")).json()["response"]

    assert list(half) == ["SHARED", "DOWNLOAD", "HASH"]
    assert half["DOWNLOAD"] == {"file_type": "video"}
    assert half["HASH"] == [None, {"sum": "b"}]
    assert whole["HASH"] == [{"sum": "a"}, {"sum": "b"}]


async def test_a_script_without_a_content_type_gets_the_exact_shape(
    http: httpx.AsyncClient,
) -> None:
    """DANE 0.1's client makes objects of all members, and breaks on one it does not know."""
    tasks = {"Task": {"task_key": "NOOP", "name": "n", "args": {"a": 1}}}
    bare = await http.post("/DANE/job", content=json.dumps(spec(tasks=tasks)))
    said = await http.post("/DANE/job", json=spec(tasks=tasks))

    assert bare.status_code == said.status_code == 201
    assert bare.json().keys() == EXACT_JOB
    assert bare.json()["tasks"]["Task"].keys() == EXACT_TASK
    assert said.json().keys() > EXACT_JOB
    assert said.json()["tasks"]["Task"].keys() == EXACT_TASK | {"name", "args"}


async def test_a_setting_makes_every_answer_exact(serve: Serve) -> None:
    dane = await serve(COMPAT={"EXACT_SHAPE": True})
    job = await submit(dane.http)
    task_id = job["tasks"]["Task"]["task_id"]

    shown = await dane.http.get(f"/DANE/job/{job['job_id']}")
    retried = await dane.http.post(f"/DANE/job/{job['job_id']}/retry")
    task = await dane.http.get(f"/DANE/task/{task_id}")
    reset = await dane.http.post(f"/DANE/task/{task_id}/reset")

    assert job.keys() == shown.json().keys() == retried.json().keys() == EXACT_JOB
    assert task.json()["Task"].keys() == reset.json()["Task"].keys() == EXACT_TASK


async def test_a_task_says_what_its_specification_said(http: httpx.AsyncClient) -> None:
    said = {
        "name": "sum",
        "args": {"algorithm": "sha256"},
        "priority": 7,
        "timeout": 60.0,
        "retry": {"limit": 1, "delay": 2.0, "factor": 2.0, "max_delay": 600.0},
        "allow_failure": True,
    }
    job = await submit(http, tasks={"Task": {"task_key": "hash", **said}})

    task = job["tasks"]["Task"]
    assert {name: task[name] for name in said} == said
    assert task["task_key"] == "HASH"


async def test_the_same_request_sent_again_is_the_same_job(http: httpx.AsyncClient) -> None:
    """A client that lost the answer may ask again without doing the work twice."""
    headers = {"Idempotency-Key": "a-key"}
    first = await http.post("/DANE/job", json=spec(), headers=headers)
    again = await http.post("/DANE/job", json=spec(), headers=headers)
    other = await http.post("/DANE/job", json=spec(priority=5), headers=headers)
    none = await http.post("/DANE/job", json=spec())

    assert first.status_code == again.status_code == none.status_code == 201
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert other.status_code == 422
    assert other.json()["errors"][0]["path"] == "header.Idempotency-Key"
    assert none.json()["job_id"] != first.json()["job_id"]


async def test_one_source_id_has_one_source_url(http: httpx.AsyncClient) -> None:
    await submit(http)

    answer = await http.post("/DANE/job", json=spec(source_url="http://127.0.0.1/other"))

    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:dane:problem:source-conflict"


async def test_a_large_job_is_shown_whole(http: httpx.AsyncClient) -> None:
    """Its answer is written beside the event loop; nobody should see a difference."""
    job = await submit(http, tasks={"taskParallel": ["NOOP"] * 1200})

    assert len(tasks_in(job["tasks"])) == 1200
    head = (await http.get(f"/DANE/job/{job['job_id']}?tasks=false")).json()
    assert head == {name: job[name] for name in job if name not in ("tasks", "response")}


@pytest.mark.parametrize("text", ["a/b c", "日本語 🎬", "100%", "a?b#c", "'; DROP TABLE jobs; --"])
async def test_a_source_is_found_by_its_id_whatever_that_is(
    http: httpx.AsyncClient, text: str
) -> None:
    job = await submit(http, source_id=text)
    ident = httpx.URL("http://x").copy_with(params={"q": text}).query.decode()[2:]
    ident = ident.replace("+", "%20")

    for address in ("search", "job/search"):
        answer = await http.get(f"/DANE/{address}/{ident}")
        assert answer.json() == {"jobs": [job["job_id"]]}
    assert job["source_id"] == text


# --- listing -------------------------------------------------------------------------------------


async def test_jobs_are_listed_page_by_page_newest_first(http: httpx.AsyncClient) -> None:
    ids = [(await submit(http))["job_id"] for _ in range(5)]

    seen, url = [], "/DANE/jobs?limit=2&status=accepted&status=running"
    while url:
        page = (await http.get(url)).json()
        seen.append([job["job_id"] for job in page["jobs"]])
        url = page["next"]

    assert seen == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    assert "tasks" not in page["jobs"][0]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["three", "two", "one"]),
        ({"source_id": "two"}, ["two"]),
        ({"task_key": "hash"}, ["two"]),
        ({"metadata.shelf": "A"}, ["three", "one"]),
        ({"metadata.shelf": "A", "metadata.box": "2"}, ["three"]),
        ({"status": "cancelled"}, ["one"]),
        ({"status": ["cancelled", "accepted"]}, ["three", "two", "one"]),
        ({"state": "499"}, ["one"]),
        ({"since": "2020-01-01"}, ["three", "two", "one"]),
        ({"until": "2020-01-01T00:00:00+02:00"}, []),
        ({"since": "2020-01-01T00:00:00Z", "until": "2020-01-02"}, []),
    ],
)
async def test_jobs_are_found_by_what_is_known_of_them(
    http: httpx.AsyncClient, query: dict[str, str], found: list[str]
) -> None:
    one = await submit(http, source_id="one", metadata={"shelf": "A", "box": "1"})
    await submit(http, source_id="two", metadata={"shelf": "B"}, tasks="HASH")
    await submit(http, source_id="three", metadata={"shelf": "A", "box": "2"})
    await http.post(f"/DANE/job/{one['job_id']}/cancel")

    answer = await http.get("/DANE/jobs", params=query)

    assert [job["source_id"] for job in answer.json()["jobs"]] == found, answer.text


async def test_a_plus_that_was_not_escaped_still_is_an_offset(http: httpx.AsyncClient) -> None:
    """A query turns it into a space; a time has no other use for one there."""
    job = await submit(http)

    answer = await http.get("/DANE/jobs?since=2020-01-01T00:00:00+00:00")

    assert [found["job_id"] for found in answer.json()["jobs"]] == [job["job_id"]]


async def test_tasks_are_listed_page_by_page_in_order(dane: Served) -> None:
    job = await submit(dane.http, tasks={"taskParallel": ["A", "B", "A", "A"]})
    ids = [task["task_id"] for task in tasks_in(job["tasks"])]
    await finish(dane, ids[0], 404, "no such source")
    address = f"/DANE/job/{job['job_id']}/tasks"

    first = (await dane.http.get(f"{address}?key=a&limit=2")).json()
    second = (await dane.http.get(first["next"])).json()
    failed = (await dane.http.get(f"{address}?state=failed")).json()

    assert [row["Task"]["task_id"] for row in first["tasks"]] == [ids[0], ids[2]]
    assert [row["Task"]["task_id"] for row in second["tasks"]] == [ids[3]]
    assert second["next"] is None
    [row] = failed["tasks"]
    assert (row["Task"]["task_state"], row["Task"]["status"]) == (404, "failed")
    assert row["Task"]["task_msg"] == "no such source"


async def test_what_is_not_done_is_in_progress(dane: Served) -> None:
    """DANE 0.1 counts jobs that ended with errors among them."""
    done, failed, waiting = [await submit(dane.http) for _ in range(3)]
    await finish(dane, done["tasks"]["Task"]["task_id"])
    await finish(dane, failed["tasks"]["Task"]["task_id"], 500, "it broke")

    answer = await dane.http.get("/DANE/job/inprogress")

    assert answer.json() == {"jobs": [failed["job_id"], waiting["job_id"]]}


# --- tasks ---------------------------------------------------------------------------------------


async def test_a_task_shows_its_attempts_and_its_answer(dane: Served) -> None:
    job = await submit(dane.http)
    task_id = job["tasks"]["Task"]["task_id"]
    await finish(dane, task_id, 500, "ValueError: no", size=3)

    task = (await dane.http.get(f"/DANE/task/{task_id}")).json()["Task"]

    assert (task["task_state"], task["task_msg"], task["status"]) == (
        500,
        "ValueError: no",
        "failed",
    )
    [attempt] = task["attempts"]
    assert (attempt["number"], attempt["state"], attempt["worker"]) == (1, 500, "w-1")
    assert attempt["runtime"] == 2.5
    assert datetime.fromisoformat(attempt["finished_at"]).utcoffset() == timedelta(0)


async def test_a_task_explains_why_it_does_not_run(http: httpx.AsyncClient) -> None:
    job = await submit(http, tasks=SEQUENCE)
    download, hashing, *_ = (task["task_id"] for task in tasks_in(job["tasks"]))

    why = (await http.get(f"/DANE/task/{hashing}/explain")).json()

    assert why["task_id"] == hashing
    assert why["reason"] == "predecessors"
    assert "DOWNLOAD" in why["sentence"]
    assert why["data"]["waits_for"] == [download]


async def test_a_worker_pages_through_the_answers_before_it(dane: Served) -> None:
    """As the worker asks: from -1, then from each `next`, until there is none."""
    job = await submit(
        dane.http, tasks={"taskSequential": [{"taskParallel": ["HASH"] * 5}, "INDEX"]}
    )
    *hashes, index = (task["task_id"] for task in tasks_in(job["tasks"]))
    for place, task_id in enumerate(hashes):
        await finish(dane, task_id, n=place)

    pages, after = [], -1
    while after is not None:
        page = await dane.http.get(f"/DANE/task/{index}/upstream?key=HASH&limit=2&after={after}")
        pages.append([item["response"]["n"] for item in page.json()["answers"]])
        after = page.json()["next"]

    assert pages == [[0, 1], [2, 3], [4]]
    first = await dane.http.get(f"/DANE/task/{index}/upstream", params={"key": "hash"})
    assert first.json()["answers"][0] == {
        "task_id": hashes[0],
        "task_key": "HASH",
        "name": None,
        "seq": 0,
        "response": {"n": 0},
    }


# --- acting --------------------------------------------------------------------------------------


async def test_a_job_is_cancelled_retried_paused_resumed_and_deleted(
    http: httpx.AsyncClient,
) -> None:
    address = (await submit(http, tasks=SEQUENCE))["links"]["self"]

    cancelled = await http.post(f"{address}/cancel")
    retried = await http.post(f"{address}/retry")
    paused = await http.post(f"{address}/pause")
    resumed = await http.post(f"{address}/resume")
    deleted = await http.delete(address)
    gone = await http.get(address)

    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
    assert (retried.status_code, retried.json()["status"]) == (200, "accepted")
    assert len(tasks_in(retried.json()["tasks"])) == 4
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    assert (resumed.status_code, resumed.json()["paused"]) == (202, False)
    assert (deleted.status_code, deleted.content, gone.status_code) == (204, b"", 404)


async def test_a_task_is_retried_forced_and_reset(dane: Served) -> None:
    job = await submit(dane.http)
    address = f"/DANE/task/{job['tasks']['Task']['task_id']}"
    await finish(dane, job["tasks"]["Task"]["task_id"])

    retried = await dane.http.post(f"{address}/retry")
    forced = await dane.http.post(f"{address}/forceretry")
    reset = await dane.http.post(f"{address}/reset")

    faces = [answer.json()["Task"] for answer in (retried, forced, reset)]
    assert {retried.status_code, forced.status_code, reset.status_code} == {200}
    assert [(face["task_state"], face["task_msg"]) for face in faces] == [
        (200, "Success"),
        (201, "Created"),
        (201, "Reset"),
    ]


async def test_a_task_key_is_paused_resumed_and_retried(dane: Served) -> None:
    job = await submit(dane.http)
    await finish(dane, job["tasks"]["Task"]["task_id"], 500, "it broke")

    paused = await dane.http.post("/DANE/workers/noop/pause")
    [shown] = (await dane.http.get("/DANE/workers")).json()["keys"]
    resumed = await dane.http.post("/DANE/workers/NOOP/resume")
    retried = await dane.http.post("/DANE/workers/NOOP/retry?state=500")
    again = await dane.http.post("/DANE/workers/NOOP/retry?state=500")

    assert {paused.status_code, resumed.status_code, retried.status_code} == {202}
    assert paused.json() == {"task_key": "NOOP", "paused": True}
    assert shown["paused"] is True
    assert resumed.json() == {"task_key": "NOOP", "paused": False}
    assert (retried.json()["retried"], again.json()["retried"]) == (1, 0)


async def test_workers_are_shown_with_what_waits_for_them(dane: Served) -> None:
    schema: Mapping[str, Any] = {"type": "object"}
    offer = Offer(key="NOOP", types=("video",), description="Nothing.", args_schema=schema)
    hello = Hello(
        worker="w-1", host="h", pid=7, slots=2, inbox="i", offers=(offer,), running=(), fresh=True
    )
    await dane.writer.see_workers([hello])
    await dane.exchange.declare_queue("dane.NOOP", ["#.NOOP"])
    await submit(dane.http)

    [key] = (await dane.http.get("/DANE/workers")).json()["keys"]

    assert (key["task_key"], key["types"], key["description"]) == ("NOOP", ["video"], "Nothing.")
    assert key["args_schema"] == schema
    assert key["ready"] == 1
    assert key["queue"] == {"name": "dane.NOOP", "messages": 0, "consumers": 0}
    [worker] = key["workers"]
    assert (worker["worker"], worker["host"], worker["slots"]) == ("w-1", "h", 2)


# --- the server ----------------------------------------------------------------------------------


async def test_health_is_empty_and_ready_says_what_is_reached(http: httpx.AsyncClient) -> None:
    health, ready = await http.get("/DANE/health"), await http.get("/DANE/ready")

    assert (health.status_code, health.content) == (200, b"")
    assert ready.status_code == 200
    assert ready.json() | {"database": "200 OK", "messagequeue": "200 OK"} == ready.json()


async def test_limits_are_those_of_the_settings(serve: Serve) -> None:
    dane = await serve(LIMITS={"TASKS": 3, "METADATA": 10})

    limits = (await dane.http.get("/DANE/limits")).json()
    many = await dane.http.post("/DANE/job", json=spec(tasks={"taskParallel": ["A"] * 4}))
    much = await dane.http.post("/DANE/job", json=spec(metadata={"a": "0123456789"}))

    assert (limits["tasks"], limits["metadata"], limits["depth"]) == (3, 10, 64)
    assert limits["states"]["422"] == "no worker"
    assert (many.status_code, much.status_code) == (422, 422)
