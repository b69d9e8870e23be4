"""A whole large job: the same answer as a small one has, written some tasks at a time."""

from itertools import islice
from typing import Any

import httpx
import pytest

from dane_core.errors import NotFound
from dane_server.api import jobs, whole
from dane_server.api.answer import dump
from dane_server.api.shape import job_answer
from dane_server.storage.view import LargeJob
from tests.server.api.served import Served
from tests.server.ledger import LEASE, answer, graph, parallel, sequence, spec, task

TREES: dict[str, Any] = {
    "alike": parallel(*["A"] * 11),
    "nested": sequence("A", parallel("B", sequence("C", "B"), "B"), parallel("D", "E", "F")),
    "named": graph(**{"n7": "A", 'a "3" \\': ("B", "n7"), "8": ("A", "n7", 'a "3" \\')}),
    "told": sequence(
        task("A", name='5 "six" \\7', args={"n": [1, {"2": "3"}]}, priority=7, timeout=1.5),
        task("B", retry={"limit": 3, "delay": 1, "factor": 2, "max_delay": 9}, allow_failure=True),
        parallel(*(task("C", name=f"c{n}") for n in range(5))),
    ),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any job is a large one."""
    monkeypatch.setattr(jobs, "LARGE_JOB", 0)
    monkeypatch.setattr(whole, "_TASKS", 2)
    monkeypatch.setattr(whole, "_ANSWERS", 3)
    monkeypatch.setattr(whole, "_FIRST_ANSWERS", 1)


async def answer_some(dane: Served) -> None:
    """Every second of the tasks that are ready has its answer."""
    claims = await dane.writer.claim_ready(window=1000, limit=100, lease=LEASE)
    some = [answer(one, response={"id": one.task_id}) for one in islice(claims, 0, None, 2)]
    await dane.writer.record(some, window=0, lease=LEASE)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
async def test_a_large_job_is_shown_as_a_small_one_is(dane: Served, tree: Any) -> None:
    """In both shapes, and however many have answered."""
    job = (await dane.runner.submit(spec(tree))).job_id
    for _ in range(4):
        view = await dane.reader.job_view(job)
        for shape, exact in (("", False), ("?shape=0.1", True)):
            shown = await dane.http.get(f"/DANE/job/{job}{shape}")

            assert shown.headers["content-type"] == "application/json"
            assert shown.content == dump(job_answer(view, exact=exact))
        await answer_some(dane)


async def test_the_answer_to_a_large_submission_says_where_it_is(http: httpx.AsyncClient) -> None:
    """Streamed or not, it has the headers of a submission."""
    told = {"source_url": "http://127.0.0.1/S1", "source_id": "S1", "tasks": parallel("A", "B")}

    shown = await http.post("/DANE/job", json=told)

    assert (shown.status_code, shown.headers["location"]) == (201, "/DANE/job/1")
    assert [one["Task"]["task_key"] for one in shown.json()["tasks"]["taskParallel"]] == ["A", "B"]


async def test_the_answer_breaks_off_where_the_job_is_deleted_meanwhile(dane: Served) -> None:
    """Half a job must not look like a whole one."""
    job = (await dane.runner.submit(spec(parallel(*["A"] * 5)))).job_id
    large = await dane.reader.small_job_view(job, most=0)
    assert isinstance(large, LargeJob)
    parts = whole.whole_job(dane.reader, large, exact=False)
    await anext(parts)
    await anext(parts)
    await dane.runner.delete_job(job)

    with pytest.raises(NotFound):
        await anext(parts)


async def test_nothing_more_is_read_for_a_client_that_has_gone(dane: Served) -> None:
    """A reader who gives up does not leave the rest of the work behind."""
    job = (await dane.runner.submit(spec(parallel(*["A"] * 9)))).job_id
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await (await jobs.show_job(dane.reader, job))({"type": "http"}, receive, send)

    assert len(sent) <= 3  # its start, its head, and two of nine tasks
