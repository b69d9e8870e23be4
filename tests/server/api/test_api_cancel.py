"""The deadline of a cancellation, as clients see it."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.server.api.served import Served

WAY = timedelta(seconds=15)


async def running_job(dane: Served) -> tuple[int, int]:
    """A job with a task that was sent; the ids of both."""
    spec = {"source_url": "/x", "source_id": "x", "tasks": {"taskParallel": ["A", "B"]}}
    job = (await dane.http.post("/DANE/job", json=spec)).json()["job_id"]
    [claim, _] = await dane.writer.claim_ready(window=9, limit=2, lease=WAY)
    return job, claim.task_id


def span(cancel: dict[str, Any]) -> timedelta:
    times = [datetime.fromisoformat(cancel[name]) for name in ("requested_at", "ended_by")]
    return times[1] - times[0]


async def test_who_cancels_is_told_when_what_runs_will_have_ended(dane: Served) -> None:
    job, task = await running_job(dane)

    answer = await dane.http.post(f"/DANE/job/{job}/cancel")
    shown = (await dane.http.get(f"/DANE/job/{job}")).json()
    detail = (await dane.http.get(f"/DANE/task/{task}")).json()["Task"]

    assert answer.status_code == 202
    assert span(answer.json()["cancel"]) == timedelta(seconds=10)
    assert shown["cancel"] == answer.json()["cancel"]
    assert detail["cancel"] == answer.json()["cancel"]


async def test_nothing_is_said_of_a_deadline_where_there_is_none(dane: Served) -> None:
    job, task = await running_job(dane)

    assert "cancel" not in (await dane.http.get(f"/DANE/job/{job}")).json()
    assert (await dane.http.get(f"/DANE/task/{task}")).json()["Task"]["cancel"] is None


@pytest.mark.parametrize("kind", ["job", "task"])
async def test_clients_of_dane_0_1_see_nothing_of_it(kind: str, dane: Served) -> None:
    job, task = await running_job(dane)
    await dane.http.post(f"/DANE/job/{job}/cancel")

    ids = {"job": job, "task": task}
    exact = await dane.http.get(f"/DANE/{kind}/{ids[kind]}", params={"shape": "0.1"})

    assert '"cancel"' not in exact.text
