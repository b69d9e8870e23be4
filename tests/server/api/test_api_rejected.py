"""What was not recorded of a task, as clients see it."""

from datetime import datetime, timedelta

from dane_core.message import Answer, Ticket
from dane_core.states import TaskState
from tests.server.api.served import Served

WAY = timedelta(seconds=15)


async def answered_twice(dane: Served) -> int:
    """A task whose answer came twice; its id."""
    spec = {"source_url": "/x", "source_id": "x", "tasks": "A"}
    assert (await dane.http.post("/DANE/job", json=spec)).status_code == 201
    [claim] = await dane.writer.claim_ready(window=9, limit=1, lease=WAY)
    ticket = Ticket(task_id=claim.task_id, attempt=1, dispatch=1, token="")
    answer = Answer(ticket=ticket, state=200, message="", response={"n": 1}, worker="w1")
    recorded = await dane.writer.record([answer, answer], window=1, lease=WAY)
    assert recorded.settled == {claim.task_id: TaskState.SUCCEEDED}
    return claim.task_id


async def test_a_task_tells_of_answers_that_were_not_recorded(dane: Served) -> None:
    task = await answered_twice(dane)

    [rejected] = (await dane.http.get(f"/DANE/task/{task}")).json()["Task"]["rejected"]

    assert datetime.fromisoformat(rejected.pop("last_at")).utcoffset() == timedelta(0)
    assert rejected == {"attempt": 1, "reason": "settled", "times": 1, "worker": "w1"}


async def test_clients_of_dane_0_1_see_nothing_of_rejections(dane: Served) -> None:
    task = await answered_twice(dane)

    exact = await dane.http.get(f"/DANE/task/{task}", params={"shape": "0.1"})

    assert "rejected" not in exact.text
