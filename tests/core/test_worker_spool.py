"""Answers that outlive the worker that had them."""

import asyncio
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from dane_core import TaskContext, Worker
from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Depth, Exchange, Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.job import TaskId
from dane_core.message import Answer, Ask, Envelope, Hello, TaskMessage, Ticket
from dane_core.routing import RESPONSE_QUEUE
from dane_core.worker import spool
from dane_core.worker.outbox import Outbox
from dane_core.worker.spool import Spool, spool_folder
from tests.core.desk import Desk, Echo, message, served
from tests.services.proxy import proxy_to
from tests.stories.programs import running


def ticket(number: int = 1, *, attempt: int = 1, token: str = "t") -> Ticket:
    return Ticket(task_id=TaskId(number), attempt=attempt, dispatch=1, token=token)


def answer(number: int = 1, *, runtime: float = 5.0) -> Answer:
    return Answer(
        ticket=ticket(number),
        state=200,
        message="fine, ü",
        response={"a": [1, None, "ß"]},
        worker="w0",
        runtime=runtime,
    )


def spool_of(name: str, folder: Path, host: str = "h") -> Spool:
    return Spool(folder, f"{host}-{name}", host)


def files(folder: Path) -> list[str]:
    # `walk` passes over a folder that goes away meanwhile.
    return sorted(
        name for _, _, names in os.walk(folder) for name in names if name.endswith(".json")
    )


def all_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


class Taker:
    """Whoever is sent answers; takes them, or not."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.got: list[Answer] = []

    async def __call__(self, answer: Answer) -> bool:
        self.got.append(answer)
        return self.takes


# --- on disk --------------------------------------------------------------------------------------


async def test_an_answer_of_a_dead_worker_is_sent_by_the_next_and_then_gone(tmp_path: Path) -> None:
    dead = spool_of("1", tmp_path)
    assert await dead.keep(answer())
    dead.close()
    taker = Taker()

    await spool_of("2", tmp_path).send_left(taker)

    assert taker.got == [answer()]
    assert all_in(tmp_path) == []


async def test_what_a_living_worker_has_is_left_to_it(tmp_path: Path) -> None:
    living, taker = spool_of("1", tmp_path), Taker()
    await living.keep(answer())

    await spool_of("2", tmp_path).send_left(taker)

    assert taker.got == []
    assert files(tmp_path) == ["1.1.json"]


async def test_of_two_that_start_at_once_each_answer_goes_to_one(tmp_path: Path) -> None:
    for name in "abc":
        dead = spool_of(name, tmp_path)
        for number in range(5):
            await dead.keep(answer(ord(name) * 10 + number))
        dead.close()
    taker = Taker()

    await asyncio.gather(*(spool_of(str(each), tmp_path).send_left(taker) for each in range(3)))
    await spool_of("last", tmp_path).send_left(taker)

    assert len(taker.got) == len({one.ticket for one in taker.got}) == 15
    assert files(tmp_path) == []


async def test_an_answer_that_nobody_takes_stays(tmp_path: Path) -> None:
    dead = spool_of("1", tmp_path)
    await dead.keep(answer(1))
    await dead.keep(answer(2))
    dead.close()
    taker, next_one = Taker(takes=False), spool_of("2", tmp_path)

    await next_one.send_left(taker)
    assert len(taker.got) == 1
    taker.takes = True
    await next_one.send_left(taker)

    assert [one.ticket.task_id for one in taker.got] == [1, 1, 2]


async def test_what_is_kept_is_nobody_elses_to_read(tmp_path: Path) -> None:
    spool = spool_of("1", tmp_path / "spool" / "deployment")
    await spool.keep(answer())

    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode))
        for path in [tmp_path / "spool", *(tmp_path / "spool").rglob("*")]
    }
    assert modes == {
        "spool": "0o700",
        "deployment": "0o700",
        "h-1": "0o700",
        "lock": "0o600",
        "1.1.json": "0o600",
    }


async def test_the_folder_of_another_host_is_taken_over_once_nobody_was_there_for_long(
    tmp_path: Path,
) -> None:
    """Its lock may mean nothing here; a container never comes back under its old name."""
    other = spool_of("1", tmp_path, host="elsewhere")
    await other.keep(answer())
    other.close()
    taker, ours = Taker(), spool_of("2", tmp_path)

    await ours.send_left(taker)
    assert taker.got == []
    os.utime(tmp_path / "elsewhere-1" / "lock", (0, 0))
    await ours.send_left(taker)

    assert taker.got == [answer()]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"type":"answer","correlation_id":"1","headers":3,"body":"{}"}',
        b'{"v":1}',
        b'{"type":"goodbye","correlation_id":null,"headers":{}}',
    ],
)
async def test_a_file_that_is_no_answer_is_put_aside_and_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    dead = spool_of("1", tmp_path)
    await dead.keep(answer(1))
    await dead.keep(answer(2))
    dead.close()
    (tmp_path / "h-1" / "1.1.json").write_bytes(content)
    taker = Taker()

    await spool_of("2", tmp_path).send_left(taker)

    assert [one.ticket.task_id for one in taker.got] == [2]
    assert (tmp_path / "unreadable" / "h-1.1.1.json").read_bytes() == content
    assert "is not an answer" in caplog.text


async def test_an_answer_that_is_too_old_is_dropped_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = spool_of("1", tmp_path)
    await dead.keep(answer())
    dead.close()
    os.utime(tmp_path / "h-1" / "1.1.json", (0, 0))
    taker = Taker()

    await spool_of("2", tmp_path).send_left(taker)

    assert taker.got == []
    assert files(tmp_path) == []
    assert "7 days old" in caplog.text


async def test_answers_that_come_at_once_are_all_kept(tmp_path: Path) -> None:
    """The first ones make the folder, in several threads; one of them has its lock."""
    for number in range(20):
        spool = spool_of(f"w{number}", tmp_path)
        kept = await asyncio.gather(*(spool.keep(answer(each)) for each in range(1, 9)))
        spool.close()

        assert all(kept)


async def test_a_full_disk_is_told_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = spool_of("1", tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert not await spool.keep(answer(1))
    assert not await spool.keep(answer(2))
    monkeypatch.undo()

    assert caplog.text.count("No space left on device") == 1
    assert await spool.keep(answer(3))
    assert files(tmp_path) == ["3.1.json"]
    assert all_in(tmp_path) == ["3.1.json", "h-1", "lock"]


async def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    spool, taker = spool_of("1", tmp_path / "file" / "spool"), Taker()

    assert not await spool.keep(answer())
    assert await spool.find(ticket()) is None
    await spool.send_left(taker)
    await spool.drop(ticket())
    spool.close()

    assert "answers are not kept on disk" in caplog.text


async def test_what_is_found_for_a_ticket_is_the_answer_to_that_very_attempt(
    tmp_path: Path,
) -> None:
    dead = spool_of("1", tmp_path)
    await dead.keep(answer())
    dead.close()
    other = spool_of("2", tmp_path)

    assert await other.find(ticket()) == answer()
    assert await other.find(replace(ticket(), dispatch=7)) == answer()
    assert await other.find(ticket(attempt=2)) is None
    assert await other.find(ticket(token="forged")) is None


def test_every_deployment_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """An answer for one server means nothing to another, and would be lost there."""
    urls = ["amqp://a:x@h/one", "amqp://a:x@h/two", "amqp://a:x@g/one", "amqp://a:x@h:1/one"]
    folders = {spool_folder(tmp_path, url, "q") for url in urls}

    assert len(folders) == 4
    assert spool_folder(tmp_path, "amqp://b:y@h:5672/one", "q") in folders
    assert spool_folder(tmp_path, urls[0], "r") not in folders


# --- when it is used ------------------------------------------------------------------------------


class Shaky(MemoryExchange):
    """Confirms the first reports only when a test allows it, and notes what was on disk then."""

    def __init__(self, folder: Path, *fates: Fate) -> None:
        super().__init__()
        self.folder = folder
        self.fates = [*fates]
        self.on_disk: list[list[str]] = []
        self.alarm = ""

    @property
    def blocked(self) -> str:
        return self.alarm

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        if envelopes[0].type != "answer":
            return await super().send(queue, envelopes)
        self.on_disk.append(files(self.folder))
        if self.fates:
            return [self.fates.pop(0)] * len(envelopes)
        return await super().send(queue, envelopes)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dane_core.worker.outbox._FIRST_PAUSE", 0.001)
    monkeypatch.setattr("dane_core.worker.outbox._ALARM_LOOK", 0.001)


async def delivered(exchange: Shaky, what: Answer) -> None:
    await exchange.declare_queue(RESPONSE_QUEUE)
    outbox = Outbox(exchange, RESPONSE_QUEUE, spool_of("1", exchange.folder))
    sending = asyncio.create_task(outbox.run())
    await outbox.deliver(what)
    sending.cancel()


async def until_on_disk(folder: Path, names: list[str]) -> None:
    async with asyncio.timeout(30):
        while files(folder) != names:  # noqa: ASYNC110 - the disk has no event for it
            await asyncio.sleep(0.001)


async def test_an_answer_that_took_long_is_on_disk_before_it_is_sent(tmp_path: Path) -> None:
    exchange = Shaky(tmp_path)

    await delivered(exchange, answer(runtime=1.0))

    assert exchange.on_disk == [["1.1.json"]]
    assert files(tmp_path) == []


async def test_an_answer_that_took_no_time_never_touches_the_disk(tmp_path: Path) -> None:
    exchange = Shaky(tmp_path)

    await delivered(exchange, answer(runtime=0.9))

    assert exchange.on_disk == [[]]
    assert all_in(tmp_path) == []


async def test_any_answer_that_is_not_taken_at_first_is_kept_until_it_is(tmp_path: Path) -> None:
    exchange = Shaky(tmp_path, Fate.UNKNOWN, Fate.REFUSED)

    await delivered(exchange, answer(runtime=0.1))

    assert exchange.on_disk == [[], ["1.1.json"], ["1.1.json"]]
    assert files(tmp_path) == []


async def test_nothing_is_said_twice_to_a_blocked_broker(tmp_path: Path) -> None:
    """What is said then waits on the wire and arrives after all; meanwhile the disk has it."""
    exchange = Shaky(tmp_path)
    exchange.alarm = "low on memory"
    delivering = asyncio.create_task(delivered(exchange, answer(runtime=0.1)))
    await until_on_disk(tmp_path, ["1.1.json"])
    exchange.alarm = ""
    await delivering

    assert exchange.on_disk == [["1.1.json"]]
    assert files(tmp_path) == []


class StuckDisk:
    """Does not answer one call, until it is let go."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act = act
        self._let_go = threading.Event()
        self.done = threading.Event()

    def __call__(self, *args: Any) -> Any:
        self._let_go.wait(30)
        try:
            return self._act(*args)
        finally:
            self.done.set()

    def let_go(self) -> None:
        self._let_go.set()
        self.done.wait(30)


@pytest.mark.parametrize("call", ["_try_lock", "_unpacked", "_leave"])
async def test_a_disk_that_does_not_answer_keeps_nobody_from_saying_who_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A watchman sends what its worker left on a network that is gone, and then says Gone."""
    dead = spool_of("1", tmp_path)
    await dead.keep(answer(7))
    dead.close()
    stuck = StuckDisk(getattr(spool, call))
    monkeypatch.setattr(spool, "_PATIENCE", 0.1)
    monkeypatch.setattr(spool, call, stuck)

    try:
        async with asyncio.timeout(10):
            said = await spool_of("2", tmp_path).send_from("h-1", Taker())
    finally:
        stuck.let_go()

    assert said is True


async def test_a_lock_that_is_had_too_late_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise what is in the folder would wait until this process ends."""
    dead = spool_of("1", tmp_path)
    await dead.keep(answer(7))
    dead.close()
    stuck = StuckDisk(spool._try_lock)
    with monkeypatch.context() as silent:
        silent.setattr(spool, "_PATIENCE", 0.1)
        silent.setattr(spool, "_try_lock", stuck)
        await spool_of("2", tmp_path).send_left(Taker())
        left = files(tmp_path)
        stuck.let_go()

    async with asyncio.timeout(10):
        while files(tmp_path):
            await spool_of("3", tmp_path).send_left(Taker())

    assert left == ["7.1.json"]


class Once(Worker):
    """Must not run again."""

    key = "ECHO"

    async def work(self, task: TaskContext) -> Any:
        raise AssertionError(task)


async def test_a_task_that_comes_again_is_answered_from_the_disk(tmp_path: Path) -> None:
    """Its worker died after the work; nobody is asked, and nothing is run."""
    dead = Spool(tmp_path, "elsewhere-1", "elsewhere")  # not found by looking for the dead
    await dead.keep(answer(7))
    dead.close()
    exchange = MemoryExchange()
    await leave_in_queue(exchange, message(Echo, 7), message(Echo, 8))
    async with served(Once, exchange=exchange, spool=tmp_path) as (desk, _):
        found = await desk.hear(Answer)
        ask = await desk.hear(Ask)

        assert found == answer(7)
        assert ask.ticket.task_id == 8
        assert [type(one) for one in desk.heard].count(Answer) == 1
    assert files(tmp_path) == []


async def leave_in_queue(exchange: Exchange, *tasks: TaskMessage) -> None:
    """Take tasks from their queue and leave, as a worker does that dies."""
    await exchange.declare_queue("dane.ECHO", ["#.ECHO"])
    await exchange.publish([("video.ECHO", task.seal(RESPONSE_QUEUE)) for task in tasks])
    async with exchange.consume("dane.ECHO", prefetch=len(tasks)) as hands:
        await hands.take(len(tasks))


async def test_a_worker_that_starts_sends_what_another_has_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Spool(tmp_path, "elsewhere-1", "elsewhere")
    await dead.keep(answer(7))
    dead.close()
    os.utime(tmp_path / "elsewhere-1" / "lock", (0, 0))
    caplog.set_level(logging.INFO)

    async with served(Echo, spool=tmp_path) as (desk, _):
        assert await desk.hear(Answer) == answer(7)
        await until_on_disk(tmp_path, [])
    assert "sent what elsewhere-1 had left: the answer of task 7" in caplog.text


async def test_what_is_on_disk_can_be_read_by_people(tmp_path: Path) -> None:
    await spool_of("1", tmp_path).keep(answer())

    saved = json.loads((tmp_path / "h-1" / "1.1.json").read_bytes())
    assert saved["correlation_id"] == "1"
    assert json.loads(saved["body"])["message"] == "fine, ü"


_SLOW = """
import time
from pathlib import Path
from dane_core import TaskContext, Worker

class Slow(Worker):
    key = "SLOW"

    def work(self, task: TaskContext) -> dict[str, int]:
        with Path("marks").open("a") as marks:
            marks.write(f"{task.task_id}\\n")
        time.sleep(1.2)
        return {"worth": 1}
"""


@pytest.mark.services
async def test_work_whose_worker_was_killed_before_it_could_answer_is_not_done_again(
    amqp_url: str, tmp_path: Path
) -> None:
    """As `dane worker` is run, without a connection when its task ends."""
    (tmp_path / "slow.py").write_text(_SLOW)
    queue, spool = f"dane.responses.{uuid4().hex[:8]}", tmp_path / "home" / "spool"
    async with proxy_to(amqp_url) as proxy, connect(amqp_url) as exchange:
        settings = {"DANE_EXCHANGE__URL": proxy.url, "DANE_RABBITMQ__RESPONSE_QUEUE": queue}
        await exchange.declare_queue(queue)
        await exchange.declare_queue("dane.SLOW", ["#.SLOW"])
        async with exchange.consume(queue, prefetch=100) as reports:
            desk = Desk(exchange, reports)
            async with running("worker", "slow.py", folder=tmp_path, **settings) as first:
                await desk.hear(Hello)
                task = replace(message(Echo), key="SLOW")
                await desk.send(task)
                await until_there(tmp_path / "marks")
                proxy.refuse()
                await until_on_disk(spool, ["1.1.json"])
                first.kill()
                await first.ended()
            proxy.mend()
            async with running("worker", "slow.py", folder=tmp_path, **settings):
                answers = await answers_until_it_rests(desk, spool)

    assert {(one.ticket, one.state, one.response["worth"]) for one in answers} == {
        (task.ticket, 200, 1)
    }
    assert (tmp_path / "marks").read_text() == "1\n"


async def until_there(path: Path) -> None:
    async with asyncio.timeout(30):
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
            await asyncio.sleep(0.01)


async def answers_until_it_rests(desk: Desk, spool: Path) -> list[Answer]:
    """What is said until the task's message and its answer are gone; a question is denied."""
    answers = [await desk.hear(Answer)]
    await until_on_disk(spool, [])

    async def deny() -> None:
        while True:
            await desk.judge(await desk.hear(Ask), run=False)

    denying = asyncio.create_task(deny())
    async with asyncio.timeout(30):
        while await desk.exchange.depth("dane.SLOW") != Depth(waiting=0, consumers=1):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    denying.cancel()
    return answers + [one for one in desk.heard if isinstance(one, Answer)]


async def test_what_one_worker_left_is_sent_unless_somebody_has_it(tmp_path: Path) -> None:
    """As a watchman does before it says that its worker is gone."""
    worker, watchman, taker = spool_of("1", tmp_path), spool_of("1-watchman", tmp_path), Taker()
    await worker.keep(answer())

    assert await watchman.send_from("h-1", taker) is None
    worker.close()
    taker.takes = False
    assert await watchman.send_from("h-1", taker) is False
    taker.takes = True
    assert await watchman.send_from("h-1", taker) is True
    assert await watchman.send_from("h-1", taker) is True
    assert taker.got == [answer(), answer()]
    assert files(tmp_path) == []
