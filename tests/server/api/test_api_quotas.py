"""What clients and operators see of owners, limits, priorities, and of a server that is full."""

from typing import Any

import httpx
import pytest

from dane_core.states import TaskState
from dane_server.storage.view import Claim
from tests.server.api.served import Serve, Served
from tests.server.ledger import Ledger, hello, parallel, started

PARALLEL = parallel("A", "A", "A")


def spec(tasks: Any = "A", source: str = "S1") -> dict[str, Any]:
    return {"source_url": f"http://127.0.0.1/{source}", "source_id": source, "tasks": tasks}


async def posted(http: httpx.AsyncClient, tasks: Any = "A", **headers: str) -> int:
    answer = await http.post("/DANE/job", json=spec(tasks), headers=headers)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["job_id"])


# --- full ---------------------------------------------------------------------------------------


async def test_a_full_server_says_when_to_come_again_and_how_full_it_is(serve: Serve) -> None:
    http = (await serve(LIMITS={"OPEN_TASKS": 3})).http
    await posted(http, parallel("A", "A"))

    answer = await http.post("/DANE/job", json=spec(parallel("A", "A")))

    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:dane:problem:too-much-open"
    assert "2 tasks are open, and 3 may be" in answer.json()["detail"]
    assert len((await http.get("/DANE/jobs")).json()["jobs"]) == 1


async def test_an_owner_who_has_too_much_open_is_refused_and_others_are_not(serve: Serve) -> None:
    chosen = {"LIMITS": {"OPEN_TASKS_PER_OWNER": 2}, "API": {"OWNER_HEADER": "X-Owner"}}
    http = (await serve(**chosen)).http
    await posted(http, parallel("A", "A"), **{"X-Owner": "many"})

    refused = await http.post("/DANE/job", json=spec(), headers={"X-Owner": "many"})
    other = await http.post("/DANE/job", json=spec(), headers={"X-Owner": "other"})

    assert (refused.status_code, other.status_code) == (429, 201)
    assert int(refused.headers["retry-after"]) > 0
    assert "many" in refused.json()["detail"]


async def test_of_a_batch_the_rest_is_refused_line_by_line(serve: Serve) -> None:
    http = (await serve(LIMITS={"OPEN_TASKS": 2})).http

    lines = (await http.post("/DANE/jobs", json=[spec() for _ in range(4)])).json()

    assert [line["status"] for line in lines] == [201, 201, 429, 429]
    assert lines[2]["type"] == "urn:dane:problem:too-much-open"


async def test_clients_can_ask_for_the_limits_beforehand(serve: Serve) -> None:
    http = (await serve(LIMITS={"OPEN_TASKS": 7, "OPEN_TASKS_PER_OWNER": 5})).http

    limits = (await http.get("/DANE/limits")).json()

    assert (limits["open_tasks"], limits["open_tasks_per_owner"]) == (7, 5)


# --- owners -------------------------------------------------------------------------------------


async def test_whose_a_job_is_the_proxy_says_and_nobody_else(serve: Serve) -> None:
    http = (await serve(API={"OWNER_HEADER": "X-Remote-User"})).http

    mine = await posted(http, **{"X-Remote-User": "ann"})
    nobodys = await posted(http)

    heads = {job["job_id"]: job for job in (await http.get("/DANE/jobs")).json()["jobs"]}
    assert heads[mine]["owner"] == "ann"
    assert "owner" not in heads[nobodys]
    assert await ids(http, owner="ann") == [mine]
    assert await ids(http, owner="") == [nobodys]
    assert await ids(http, owner="bob") == []


async def ids(http: httpx.AsyncClient, **filters: str) -> list[int]:
    page = (await http.get("/DANE/jobs", params=filters)).json()
    return [job["job_id"] for job in page["jobs"]]


async def test_without_the_setting_no_header_makes_an_owner(http: httpx.AsyncClient) -> None:
    job = await posted(http, **{"X-Remote-User": "ann"})

    assert "owner" not in (await http.get(f"/DANE/job/{job}?tasks=false")).json()


@pytest.mark.parametrize("names", [["a b"], ["x" * 101], ["ann", "bob"], [""]])
async def test_an_owner_that_cannot_be_one_is_refused(serve: Serve, names: list[str]) -> None:
    http = (await serve(API={"OWNER_HEADER": "X-Remote-User"})).http

    for path, body in (("/DANE/job", spec()), ("/DANE/jobs", [spec()])):
        answer = await http.post(
            path, json=body, headers=[("X-Remote-User", name) for name in names]
        )

        assert answer.status_code == 400
        assert answer.json()["errors"][0]["path"] == "header.X-Remote-User"


async def test_a_job_in_the_shape_of_0_1_has_no_owner(serve: Serve) -> None:
    http = (await serve(API={"OWNER_HEADER": "X-Remote-User"})).http
    job = await posted(http, **{"X-Remote-User": "ann"})

    assert "owner" not in (await http.get(f"/DANE/job/{job}?shape=0.1")).json()


async def test_an_owner_is_given_a_share_and_a_bound(serve: Serve) -> None:
    http = (await serve(API={"OWNER_HEADER": "X-Remote-User"})).http
    await posted(http, PARALLEL, **{"X-Remote-User": "ann"})

    changed = (await http.put("/DANE/owners/ann", json={"weight": 3, "max_open": 4})).json()
    await http.put("/DANE/owners/of/a-team", json={"weight": 2})
    kept = (await http.put("/DANE/owners/ann", json={"max_open": None})).json()
    page = (await http.get("/DANE/owners?limit=2")).json()

    assert changed == {"owner": "ann", "weight": 3, "max_open": 4, "open": 3}
    assert (kept["weight"], kept["max_open"]) == (3, None)
    assert [one["owner"] for one in page["owners"]] == ["", "ann"]
    rest = (await http.get(page["next"])).json()
    assert [one["owner"] for one in rest["owners"]] == ["of/a-team"]


async def test_nobody_in_particular_has_a_share_too(http: httpx.AsyncClient) -> None:
    answer = await http.put("/DANE/owners/", json={"weight": 5})

    assert answer.json() == {"owner": "", "weight": 5, "max_open": None, "open": 0}


# --- limits of a key ----------------------------------------------------------------------------


async def test_a_key_is_limited_and_let_go_again(http: httpx.AsyncClient) -> None:
    put = await http.put("/DANE/workers/asr/limits", json={"concurrency": 2, "rate": 10})
    more = await http.put("/DANE/workers/ASR/limits", json={"burst": 5})
    gone = await http.put("/DANE/workers/ASR/limits", json={"rate": None})

    assert put.json() == {
        "task_key": "ASR",
        "limits": {"concurrency": 2, "rate": 10.0, "burst": None},
    }
    assert more.json()["limits"] == {"concurrency": 2, "rate": 10.0, "burst": 5}
    assert gone.json()["limits"] == {"concurrency": 2, "rate": None, "burst": None}
    [key] = (await http.get("/DANE/workers")).json()["keys"]
    assert key["limits"] == gone.json()["limits"]


async def test_who_has_the_places_of_a_key_can_be_listed(dane: Served) -> None:
    job = await posted(dane.http, PARALLEL)
    claims = await sent(dane)
    await dane.writer.see_workers([hello("A")])
    await dane.writer.note_reports([started(claims[0], "w1")], [], [])

    page = (await dane.http.get("/DANE/workers/A/limits?limit=2")).json()
    rest = (await dane.http.get(page["next"])).json()

    assert page["limits"] == {"concurrency": None, "rate": None, "burst": None}
    found = {one["task_id"]: one for one in page["holders"] + rest["holders"]}
    assert sorted(found) == sorted(claim.task_id for claim in claims)
    first = found[claims[0].task_id]
    assert (first["job_id"], first["state"], first["worker"]) == (job, TaskState.RUNNING, "w1")
    assert first["since"] is not None
    assert {one["worker"] for one in found.values()} == {"w1", None}


async def sent(dane: Served) -> list[Claim]:
    return await Ledger.of(dane.store).send()


async def test_explain_names_who_has_the_place(dane: Served) -> None:
    await dane.http.put("/DANE/workers/A/limits", json={"concurrency": 2})
    job = await posted(dane.http, PARALLEL)
    claims = await sent(dane)

    tasks = (await dane.http.get(f"/DANE/job/{job}/tasks")).json()["tasks"]
    [waiting] = [row["Task"]["task_id"] for row in tasks if row["Task"]["status"] == "ready"]
    told = (await dane.http.get(f"/DANE/task/{waiting}/explain")).json()

    assert len(claims) == 2
    assert told["reason"] == "limit"
    assert f"held by task {min(claim.task_id for claim in claims)} (job {job})" in told["sentence"]


async def test_explain_says_when_the_rate_lets_it_go(dane: Served) -> None:
    await dane.http.put("/DANE/workers/A/limits", json={"rate": 0.01})
    job = await posted(dane.http, parallel("A", "A"))
    await sent(dane)

    tasks = (await dane.http.get(f"/DANE/job/{job}/tasks")).json()["tasks"]
    [waiting] = [row["Task"]["task_id"] for row in tasks if row["Task"]["status"] == "ready"]
    told = (await dane.http.get(f"/DANE/task/{waiting}/explain")).json()

    assert told["reason"] == "rate"
    assert 90 < told["data"]["wait"] <= 100


# --- priorities ---------------------------------------------------------------------------------


async def test_a_job_and_a_task_are_given_other_priorities(http: httpx.AsyncClient) -> None:
    job = await posted(http, PARALLEL)

    head = await http.put(f"/DANE/job/{job}/priority", json={"priority": 7})
    tasks = [row["Task"] for row in (await http.get(f"/DANE/job/{job}/tasks")).json()["tasks"]]
    one = await http.put(f"/DANE/task/{tasks[1]['task_id']}/priority", json={"priority": 0})

    assert (head.status_code, head.json()["priority"]) == (202, 7)
    assert [task["priority"] for task in tasks] == [7, 7, 7]
    assert one.json()["Task"]["priority"] == 0


# --- wrong inputs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        ("job/1/priority", b'{"priority": 11}', "priority"),
        ("job/1/priority", b'{"priority": -1}', "priority"),
        ("job/1/priority", b'{"priority": "7"}', "priority"),
        ("job/1/priority", b'{"priority": true}', "priority"),
        ("job/1/priority", b"{}", "priority"),
        ("task/1/priority", b'{"priority": 1.5}', "priority"),
        ("task/1/priority", b'{"priority": 1, "more": 2}', "more"),
        ("task/1/priority", b"[1]", "body"),
        ("task/1/priority", b"{", "body"),
        ("workers/A/limits", b'{"concurrency": 0}', "concurrency"),
        ("workers/A/limits", b'{"concurrency": 99999999999}', "concurrency"),
        ("workers/A/limits", b'{"rate": 0}', "rate"),
        ("workers/A/limits", b'{"rate": NaN}', "rate"),
        ("workers/A/limits", b'{"rate": 1e999}', "rate"),
        ("workers/A/limits", b'{"burst": 0, "rate": 1}', "burst"),
        ("workers/A/limits", b'{"burst": 5}', "burst"),
        ("workers/A/limits", b"{}", "body"),
        ("owners/ann", b'{"weight": 0}', "weight"),
        ("owners/ann", b'{"weight": 1001}', "weight"),
        ("owners/ann", b'{"weight": null}', "weight"),
        ("owners/ann", b'{"max_open": 0}', "max_open"),
        ("owners/ann", b"", "body"),
        ("owners/a%20b", b'{"weight": 1}', "path.name"),
    ],
)
async def test_a_wrong_change_is_refused_by_the_name_of_its_member(
    http: httpx.AsyncClient, path: str, body: bytes, fault: str
) -> None:
    answer = await http.put(
        f"/DANE/{path}", content=body, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == 422
    assert [error["path"] for error in answer.json()["errors"]] == [fault]


@pytest.mark.parametrize("path", ["job/9/priority", "task/9/priority"])
async def test_what_is_not_there_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    assert (await http.put(f"/DANE/{path}", json={"priority": 1})).status_code == 404


async def test_a_change_is_json_and_short(http: httpx.AsyncClient) -> None:
    form = await http.put("/DANE/owners/ann", content=b"weight=1")
    long = await http.put("/DANE/owners/ann", json={"weight": 1, "more": "x" * 5000})

    assert (form.status_code, long.status_code) == (415, 413)
