"""How a server stops: at its word nothing is left half done, and nobody is sent to it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import httpx
import pytest

from dane_core import TaskContext, Worker
from dane_core.exchange.amqp import connect
from dane_core.exchange.amqp.exchange import AmqpExchange
from dane_core.exchange.base import Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import Envelope
from dane_core.routing import work_queue
from dane_core.states import TaskState
from dane_server.app import run_server
from dane_server.settings import ServerSettings
from dane_server.storage.engine import open_store
from dane_server.storage.reader import Reader

WAIT = 30


class Once(Worker):
    """Counts how often it is run."""

    key = "ONCE"
    runs: ClassVar[int] = 0

    async def work(self, task: TaskContext) -> dict[str, Any]:
        del task
        type(self).runs += 1
        return {}


class Held:
    """Publishing that holds back the confirmations until the test lets them go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, exchange: type[Any]) -> None:
        self.sent, self.confirm = asyncio.Event(), asyncio.Event()
        publish = exchange.publish

        async def held(this: Any, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
            fates: Sequence[Fate] = await publish(this, messages)
            self.sent.set()
            await self.confirm.wait()
            return fates

        monkeypatch.setattr(exchange, "publish", held)


@asynccontextmanager
async def server(
    settings: ServerSettings, *workers: type[Worker]
) -> AsyncIterator[tuple[str, asyncio.Event, "asyncio.Task[None]"]]:
    """A server of this process: its URL, the word to stop, and its end."""
    stop, urls = asyncio.Event(), asyncio.Queue[str]()
    running = asyncio.create_task(
        run_server(
            settings,
            workers=workers,
            port=0,
            on_ready=urls.put_nowait,
            stop=stop,
            heed_signals=False,
        )
    )
    try:
        yield await asyncio.wait_for(urls.get(), WAIT), stop, running
    finally:
        stop.set()
        await asyncio.wait_for(running, WAIT)


async def submit(http: httpx.AsyncClient, url: str, number: int) -> None:
    tasks = {"taskParallel": [{"Task": {"task_key": "ONCE"}}] * number}
    body = {"source_url": f"{url}/S", "source_id": "S", "tasks": tasks}
    (await http.post(f"{url}/DANE/job", json=body)).raise_for_status()


async def states(folder: Path) -> list[TaskState]:
    async with open_store(f"sqlite+aiosqlite:///{folder}/dane.sqlite") as store:
        return [task.state for task in await Reader(store).tasks(1, limit=100)]  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(DANE_SERVER={"DATA_FOLDER": tmp_path})


@pytest.mark.services
async def test_a_stop_in_the_middle_of_a_publish_leaves_nothing_to_be_sent_again(
    settings: ServerSettings, amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at each rolling restart. Until it ends, the server says that it is not ready."""
    Once.runs = 0
    names = {"EXCHANGE": f"dane.{uuid4()}", "RESPONSE_QUEUE": f"dane.{uuid4()}"}
    settings = ServerSettings(
        DANE_SERVER={"DATA_FOLDER": tmp_path},
        STORE={"URL": f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite"},
        EXCHANGE={"URL": amqp_url},
        RABBITMQ=names,
        RUNNER={"LEASE": 1},
    )
    async with connect(amqp_url, task_exchange=names["EXCHANGE"]) as exchange:
        await exchange.declare_queue(work_queue("ONCE"), ["#.ONCE"])
    with monkeypatch.context() as patch:
        held = Held(patch, AmqpExchange)
        await _stop_while(held, settings)
    assert await states(tmp_path) == [TaskState.QUEUED] * 5

    async with server(settings, Once) as (url, _, _), httpx.AsyncClient() as http:
        await _all_done(http, url)
    assert Once.runs == 5


async def test_a_stop_in_the_middle_of_a_publish_in_one_process_leaves_it_done(
    settings: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker, who is stopped later, has done it, and its answers are recorded."""
    Once.runs = 0
    await _stop_while(Held(monkeypatch, MemoryExchange), settings, Once)

    assert await states(tmp_path) == [TaskState.SUCCEEDED] * 5
    assert Once.runs == 5


async def _stop_while(held: Held, settings: ServerSettings, *workers: type[Worker]) -> None:
    """Stop a server whose broker has its messages and has not said so; then it does."""
    async with server(settings, *workers) as (url, stop, running), httpx.AsyncClient() as http:
        before = await http.get(f"{url}/DANE/ready")
        await submit(http, url, 5)
        await asyncio.wait_for(held.sent.wait(), WAIT)
        stop.set()
        await asyncio.sleep(0)
        while (ready := await http.get(f"{url}/DANE/ready")).status_code == 200:
            pass
        await asyncio.wait({running}, timeout=0.5)
        assert not running.done(), "it waits for the broker's word"
        held.confirm.set()

    assert (before.status_code, "server" in before.json()) == (200, False)
    assert (ready.status_code, ready.json()["server"]) == (503, "stopping")
    assert "retry-after" in ready.headers


async def _all_done(http: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(WAIT):
        while (await http.get(f"{url}/DANE/job/1")).json()["status"] != "succeeded":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
