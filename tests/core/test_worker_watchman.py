"""The watchman: who speaks for a worker whose process is held, or dead."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from dane_core.exchange.amqp import connect
from dane_core.message import Answer, Ask, Gone, Goodbye, Heartbeat, Hello, Leased, Ticket
from dane_core.routing import work_queue
from dane_core.worker import watched
from dane_core.worker.pipe import Frame
from dane_core.worker.watched import Brief, Watched
from dane_core.worker.watchman import is_inert
from tests.core.desk import Desk, message
from tests.core.labor import (
    Forks,
    Holds,
    Stays,
    children,
    eventually,
    has_ended,
    heeds_sigterm,
    laboring,
    runs,
)
from tests.services.process import free_port

Office = tuple[Desk, str]


@pytest.fixture
async def office(amqp_url: str) -> AsyncIterator[Office]:
    """A server's end of a RabbitMQ, and the name of the queue it listens on."""
    queue = f"dane.responses.{uuid4().hex[:8]}"
    async with connect(amqp_url) as exchange:
        for worker in (Forks, Holds, Stays):
            await exchange.delete_queue(work_queue(worker.key))
        await exchange.declare_queue(queue)
        async with exchange.consume(queue, prefetch=100) as reports:
            yield Desk(exchange, reports), queue


def new_name() -> str:
    return f"w-{uuid4().hex[:8]}"


# --- a worker that is held -------------------------------------------------------------------


@pytest.mark.services
async def test_a_task_that_holds_its_worker_is_kept_alive_and_done_once(
    amqp_url: str, office: Office, tmp_path: Path
) -> None:
    """The worker answers no heartbeat of the broker, which gives its message to another one."""
    desk, queue = office
    marks = tmp_path / "marks"
    brief = {"response_queue": queue, "pulse": 0.2, "beat": 0.3}
    with laboring(f"{amqp_url}?heartbeat=1", tmp_path / "held", "held", **brief):
        await desk.hear(Hello)
        await desk.send(message(Holds, args={"marks": str(marks), "seconds": 4.5}))
        leased = await desk.hear(Leased)
        beats = [await desk.hear(Heartbeat) for _ in range(3)]
        with laboring(amqp_url, tmp_path / "idle", "idle", **brief):
            ask = await desk.hear(Ask)
            await desk.judge(ask, run=False)
            answer = await desk.hear(Answer)

    assert (leased.worker, leased.ticket) == ("held", answer.ticket)
    assert {beat.worker for beat in beats} == {"held"}
    assert all(beat.running == (answer.ticket,) for beat in beats)
    assert (ask.worker, ask.redelivered, ask.ticket) == ("idle", True, answer.ticket)
    assert (answer.state, answer.worker) == (200, "held")
    assert marks.read_text() == "1\n"
    assert [type(report) for report in desk.heard].count(Answer) == 1


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_a_stopped_process_is_told_from_a_busy_one(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    """Nobody may speak for a worker that does nothing: its tasks are to go to others."""
    assert not is_inert(sleeper.pid)
    sleeper.send_signal(signal.SIGSTOP)

    await eventually(lambda: is_inert(sleeper.pid))
    assert not is_inert(2**22 + 1)  # no such process: that cannot be found out


# --- a worker that is dead -------------------------------------------------------------------


@pytest.mark.services
async def test_a_killed_worker_is_gone_within_a_second(
    amqp_url: str, office: Office, tmp_path: Path
) -> None:
    desk, queue = office
    with laboring(
        amqp_url, tmp_path / "log", "killed", response_queue=queue, hand_off=0.1
    ) as worker:
        await desk.hear(Hello)
        await desk.send(message(Stays))
        await desk.hear(Leased)
        await worker.says("a watchman is there")
        watchman = worker.watchman
        worker.process.kill()
        began = time.monotonic()
        gone = await desk.hear(Gone)

        assert time.monotonic() - began < 1.0
        assert (gone.worker, gone.reason) == ("killed", "its process has ended without a goodbye")
        await has_ended(watchman)


@pytest.mark.services
async def test_a_worker_is_gone_also_when_a_copy_of_it_lives_on(
    amqp_url: str, office: Office, tmp_path: Path
) -> None:
    """A fork holds the pipe, and the connections: nobody else would notice for half a minute."""
    desk, queue = office
    brief = {"response_queue": queue, "pulse": 0.1}
    with laboring(amqp_url, tmp_path / "log", "forked", **brief) as worker:
        await desk.hear(Hello)
        await worker.says("a watchman is there")
        await desk.send(message(Forks))
        assert (await desk.hear(Answer)).state == 200
        worker.process.kill()

        assert (await desk.hear(Gone)).worker == "forked"


@pytest.mark.services
async def test_a_worker_that_leaves_in_good_order_takes_its_watchman_along(
    amqp_url: str, office: Office, tmp_path: Path
) -> None:
    desk, queue = office
    with laboring(amqp_url, tmp_path / "log", "drained", response_queue=queue) as worker:
        await desk.hear(Hello)
        await worker.says("a watchman is there")
        watchman = worker.watchman
        worker.process.terminate()
        await desk.hear(Goodbye)
        await asyncio.to_thread(worker.process.wait)
        await has_ended(watchman)

    assert not any(isinstance(report, Gone) for report in desk.heard)


def brief_at(url: str) -> Brief:
    return Brief(url=url, worker="w1", response_queue="q", pulse=0.05, beat=0.1, lease=1.0)


async def test_a_watchman_without_a_broker_ends_when_it_is_told_to() -> None:
    """As by a service manager, which clears up after a crash and then starts the next worker."""
    nowhere = f"amqp://guest:guest@127.0.0.1:{free_port()}/"
    earlier = set(children(os.getpid()))
    async with Watched(brief_at(nowhere), list):
        await eventually(lambda: set(children(os.getpid())) > earlier)
        [watchman] = set(children(os.getpid())) - earlier
        await heeds_sigterm(watchman)
    assert runs(watchman)  # it tries to say that the worker has gone
    os.kill(watchman, signal.SIGTERM)

    await has_ended(watchman)


class Overheard(Watched):
    """Notes what a watchman is told, and what else happens."""

    def __init__(self, brief: Brief) -> None:
        super().__init__(brief, list)
        self.story: list[object] = []

    def _tell(self, frame: Frame) -> None:
        self.story.append(frame["tickets"])


async def test_what_begins_in_one_turn_is_told_together_and_before_any_of_its_work() -> None:
    """Work may hold the loop from its first moment on, and nothing is told any more."""
    told = Overheard(brief_at("amqp://nowhere"))
    tickets = [message(Stays, number).ticket for number in (1, 2)]

    async def work() -> None:
        told.story.append("work")

    async def live(ticket: Ticket) -> None:
        told.note_begin(ticket)
        await asyncio.create_task(work())

    await asyncio.gather(*map(live, tickets))

    assert told.story == [tickets, "work", "work"]


async def test_a_watchman_that_ends_is_replaced_and_missed_once(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker is not held up by that; it works on."""
    monkeypatch.setattr(watched, "_FIRST_PAUSE", 0.01)
    earlier = set(children(os.getpid()))
    async with Watched(brief_at(amqp_url), list) as post:
        seen: set[int] = set()
        for _ in range(3):
            await eventually(lambda: post.connected)
            [watchman] = set(children(os.getpid())) - earlier
            seen.add(watchman)
            os.kill(watchman, signal.SIGKILL)
            await eventually(lambda: not post.connected)
        post.said_goodbye = True

    assert len(seen) == 3
    assert caplog.text.count("the watchman of this worker has ended (exit code -9)") == 1
