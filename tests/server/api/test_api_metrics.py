"""The page for Prometheus, and what the doctor's last round found."""

import asyncio
import time
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from dane_core.exchange.memory import MemoryExchange
from dane_core.message import Answer, Ticket
from dane_core.routing import RESPONSE_QUEUE
from dane_server.metrics import Metrics
from dane_server.runner.gauges import Gauges
from dane_server.storage import migrate
from dane_server.storage.access import Access
from dane_server.storage.engine import Store
from dane_server.storage.tables import jobs
from tests.server.api.served import Served
from tests.server.ledger import Ledger
from tests.server.scripted import at_work

SPEC = {"source_url": "http://127.0.0.1/x", "source_id": "x", "tasks": "OCR"}


async def numbers(dane: Served) -> dict[str, float]:
    """The page as Prometheus reads it: `name{label=value}` and its number."""
    answer = await dane.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return read(answer.text)


def read(page: str) -> dict[str, float]:
    return {
        sample.name + str(sample.labels or ""): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def test_the_page_tells_of_tasks_queues_and_the_version(dane: Served) -> None:
    await dane.http.post("/DANE/job", json=SPEC)
    await dane.exchange.declare_queue("dane.OCR", ["#.OCR"])

    found = await numbers(dane)

    assert found["dane_tasks{'state': 'ready', 'task_key': 'OCR'}"] == 1
    assert found["dane_queue_messages{'queue': 'dane.OCR'}"] == 0
    assert found["dane_queue_consumers{'queue': 'dane.OCR'}"] == 0
    assert found["dane_reachable{'part': 'store'}"] == 1
    assert found["dane_dispatcher_paused"] == 0
    assert any(name.startswith("dane_server_info") for name in found)
    assert any(name.startswith("dane_store_connections") for name in found)


async def test_the_store_is_not_asked_for_every_scrape(dane: Served) -> None:
    """Numbers are read when they are asked for, and are good for some seconds."""
    before = await numbers(dane)
    await dane.http.post("/DANE/job", json=SPEC)
    after = await numbers(dane)

    assert [name for name in {*before, *after} if name.startswith("dane_tasks")] == []


async def test_a_state_that_has_no_task_any_more_has_no_number(sqlite_store: Store) -> None:
    """A gauge that stayed would show what is long gone."""
    gauges = Gauges(
        metrics=Metrics(),
        pools={"api": Access.to(sqlite_store)},
        exchange=MemoryExchange(),
        response_queue=RESPONSE_QUEUE,
        fresh=timedelta(0),
    )
    ledger = Ledger.of(sqlite_store)
    await ledger.submit("OCR")
    before = read((await gauges.page()).decode())
    await ledger.answer_all()
    after = read((await gauges.page()).decode())

    name = "dane_tasks{'state': 'ready', 'task_key': 'OCR'}"
    assert name in before
    assert name not in after


async def test_the_worst_stall_of_the_event_loop_is_told_once() -> None:
    """What the loop was late in between is over when somebody looks."""
    name, metrics = "dane_event_loop_stall_seconds", Metrics()
    watching = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251  the stall
    while not (worst := read(metrics.page().decode())[name]):  # noqa: ASYNC110  it is a number
        await asyncio.sleep(0)
    after = read(metrics.page().decode())[name]
    watching.cancel()

    assert worst > 0.05
    assert after == 0


async def test_refused_answers_are_counted_by_their_reason(sqlite_store: Store) -> None:
    async with at_work(Ledger.of(sqlite_store)) as office:
        ticket = Ticket(task_id=99, attempt=1, dispatch=1, token="not ours")  # type: ignore[arg-type]
        forged = Answer(ticket=ticket, state=200, message="", response={})
        await office.exchange.declare_queue(RESPONSE_QUEUE)
        await office.exchange.send(RESPONSE_QUEUE, [forged.seal()])
        await office.hire("A")
        await office.ended(await office.submit("A"))

        page = read((await office.runner.gauges.page()).decode())

    assert page["dane_rejected_total{'reason': 'forged'}"] == 1


async def test_before_its_first_round_the_doctor_has_nothing_to_say(dane: Served) -> None:
    answer = await dane.http.get("/DANE/doctor")

    assert answer.json() == {"checked_at": None, "divergences": []}


async def test_the_last_round_of_the_doctor_is_told(dane: Served) -> None:
    await dane.http.post("/DANE/job", json=SPEC)

    async def miscount(connection: Any) -> None:
        await connection.execute(sa.update(jobs).values(active=2))

    await migrate.upgrade(dane.store)
    await dane.store.write(miscount)
    assert dane.runner.rounds is not None
    await dane.runner.rounds.go_round()

    told = (await dane.http.get("/DANE/doctor")).json()

    [found] = told["divergences"]
    assert (found["check"], found["ids"], found["repaired"]) == ("counters", [1], True)
    assert told["checked_at"] is not None
