"""A worker process over the in-process exchange."""

import asyncio
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from dane_core import Done, Failed, Refused, TaskContext, Worker
from dane_core.errors import BadWorker, ExchangeUnreachable, QueueMismatch
from dane_core.exchange.base import Depth, Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import (
    Answer,
    Ask,
    Envelope,
    Goodbye,
    Hello,
    Progress,
    Released,
    Stamp,
    Started,
    Ticket,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, work_queue
from dane_core.worker import counter
from dane_core.worker import serve as serving
from dane_core.worker.attempt import Pace
from dane_core.worker.serve import serve
from tests.core import zoo
from tests.core.desk import LONG, MOMENT, QUIET, Deaf, Echo, Gate, message, served


class Says(Worker):
    """Ends as its arguments say."""

    key = "SAYS"

    async def work(self, task: TaskContext) -> Any:
        match task.args:
            case {"refuse": delay}:
                raise Refused(delay, "not now")
            case {"fail": state}:
                return Failed("as asked", state)
            case {"raise": text}:
                raise RuntimeError(text)
            case _:
                return Done({"a": 1}, "fine")


class Watchful(Worker):
    """Looks all the time whether it was cancelled, and then says so."""

    key = "WATCHFUL"

    async def work(self, task: TaskContext) -> None:
        while not task.cancelled:  # noqa: ASYNC110 - as its users do
            await asyncio.sleep(0)
        raise Failed("Cancelled", 499)


@pytest.fixture(autouse=True)
def gate() -> asyncio.Event:
    Gate.entered, Gate.gate = asyncio.Queue(), asyncio.Event()
    return Gate.gate


# --- the ordinary way -----------------------------------------------------------------------


async def test_a_task_is_done_answered_and_gone_from_its_queue() -> None:
    async with served(Echo) as (desk, _):
        await desk.send(message(Echo, args={"say": "hi"}))
        answer = await desk.hear(Answer)

        assert (answer.state, answer.message) == (200, "Success")
        assert answer.response == {"said": "hi", "attempt": 1}
        assert answer.ticket == message(Echo).ticket
        assert answer.worker == "w1"
        assert answer.runtime is not None
        assert answer.started_at is not None
    assert await desk.waiting(Echo) == 0  # nothing came back when the worker left


async def test_a_hello_offers_what_is_served_once_the_queues_are_bound() -> None:
    async with served(Echo, Gate, slots=3) as (desk, _):
        (hello,) = desk.heard

        assert isinstance(hello, Hello)
        assert hello.fresh
        assert (hello.worker, hello.slots, hello.inbox) == ("w1", 3, "dane.worker.w1")
        assert [offer.key for offer in hello.offers] == ["ECHO", "GATE"]
        assert hello.offers[0].args_schema is not None
        assert hello.offers[0].description == "Answers its arguments at once."


async def test_later_hellos_are_not_fresh_and_name_what_runs() -> None:
    async with served(Gate, hello_every=MOMENT) as (desk, _):
        await desk.send(message(Gate, 8))
        await Gate.entered.get()
        await desk.hear(Hello)  # may have been on its way
        hello = await desk.hear(Hello)

        assert not hello.fresh
        assert [ticket.task_id for ticket in hello.running] == [8]


async def test_a_server_that_has_just_started_is_greeted() -> None:
    async with served(Echo) as (desk, _):
        await desk.tell("roll")

        assert not (await desk.hear(Hello)).fresh


async def test_queues_that_were_lost_and_made_again_are_told_with_a_fresh_hello() -> None:
    async with served(Echo) as (desk, _):
        await desk.exchange.delete_queue(work_queue("ECHO"))

        assert (await desk.hear(Hello)).fresh


async def test_wrong_arguments_are_400_and_named() -> None:
    async with served(Echo) as (desk, _):
        await desk.send(message(Echo, args={"say": 3, "loud": True}))
        answer = await desk.hear(Answer)

        assert answer.state == 400
        assert "args.say" in answer.message
        assert "args.loud" in answer.message


@pytest.mark.parametrize(
    ("args", "state", "text"),
    [
        ({}, 200, "fine"),
        ({"fail": 404}, 404, "as asked"),
        ({"fail": 503}, 503, "as asked"),
        ({"raise": "oh"}, 500, "RuntimeError: oh"),
    ],
)
async def test_an_outcome_is_answered_with_its_number(
    args: dict[str, Any], state: int, text: str
) -> None:
    async with served(Says) as (desk, _):
        await desk.send(message(Says, args=args))
        answer = await desk.hear(Answer)

        assert (answer.state, answer.message) == (state, text)


async def test_a_refused_task_is_handed_back_with_its_delay_and_no_answer() -> None:
    async with served(Says) as (desk, _):
        await desk.send(message(Says, args={"refuse": 60}))
        released = await desk.hear(Released)

        assert (released.delay, released.reason, released.worker) == (60.0, "not now", "w1")
    assert await desk.waiting(Says) == 0


async def test_a_long_task_says_that_it_started_and_how_far_it_is() -> None:
    async with served(Gate, pace=Pace(started=MOMENT, progress=MOMENT)) as (desk, _):
        await desk.send(message(Gate))
        started = await desk.hear(Started)
        progress = await desk.hear(Progress)

        assert started.worker == "w1"
        assert started.runtime > 0
        assert (progress.fraction, progress.message) == (0.5, "half")


async def test_a_short_task_says_nothing_but_its_answer() -> None:
    async with served(Gate, pace=Pace(started=LONG)) as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
        Gate.gate.set()
        await desk.hear(Answer)

        assert [type(report) for report in desk.heard] == [Hello, Answer]


# --- how much at once -----------------------------------------------------------------------


async def test_no_more_run_than_there_are_slots_and_the_rest_stays_in_the_queue() -> None:
    """Nine workers must not be idle while one holds ten tasks."""
    async with served(Gate, slots=2) as (desk, _):
        await desk.send(*(message(Gate, number) for number in range(1, 6)))
        await Gate.entered.get()
        await Gate.entered.get()

        assert await desk.waiting(Gate) == 3
        assert Gate.entered.empty()


async def test_slots_are_shared_by_all_keys() -> None:
    async with served(Gate, Deaf, slots=1) as (desk, _):
        await desk.send(message(Gate, 1))
        await Gate.entered.get()
        await desk.send(message(Deaf, 2))
        await desk.tell("roll")
        await desk.hear(Hello)
        assert Gate.entered.empty()

        Gate.gate.set()

        assert await Gate.entered.get() == 2


async def test_a_task_that_finds_no_slot_goes_back_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counter, "_LOOKAHEAD", 0.01)
    async with served(Gate, Echo, slots=1) as (desk, _):
        await desk.send(message(Gate, 1))
        await Gate.entered.get()
        await desk.send(message(Echo, 2))

        async with desk.exchange.consume(work_queue("ECHO"), prefetch=1) as elsewhere:
            async with asyncio.timeout(10):
                (delivery,) = await elsewhere.take(1)
            depth = await desk.exchange.depth(work_queue("ECHO"))
            await elsewhere.nack(delivery)
        assert depth == Depth(waiting=0, consumers=1)  # the worker takes no more for now
        Gate.gate.set()

        assert (await desk.hear(Answer)).ticket.task_id == 1
        await desk.judge(await desk.hear(Ask), run=True)  # it came a second time
        assert (await desk.hear(Answer)).ticket.task_id == 2


async def test_a_key_with_many_tasks_does_not_keep_another_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Slots go round: the flood of one key must not starve the single task of another."""
    monkeypatch.setattr(counter, "_LOOKAHEAD", 0.01)
    async with served(Gate, Echo, slots=1) as (desk, _):
        await desk.send(message(Gate, 1))
        await Gate.entered.get()
        await desk.send(*(message(Gate, number) for number in range(100, 160)))
        await desk.send(message(Echo, 2))
        Gate.gate.set()

        while (said := await desk.hear_either(Answer, Ask)).ticket.task_id != 2:
            if isinstance(said, Ask):
                await desk.judge(said, run=True)

        assert await desk.waiting(Gate) > 0


# --- ask before run -------------------------------------------------------------------------


async def test_a_task_sent_while_nobody_listened_is_asked_about() -> None:
    """It may have been cancelled since, and the cancellation was not heard."""
    async with served(Echo, before=[message(Echo)]) as (desk, _):
        ask = await desk.hear(Ask)
        await desk.judge(ask, run=True)

        assert (ask.worker, ask.reply_to) == ("w1", "dane.worker.w1")
        assert (await desk.hear(Answer)).ticket == ask.ticket


async def test_a_redelivered_task_that_the_server_does_not_want_is_dropped() -> None:
    exchange = MemoryExchange()
    async with served(Gate, exchange=exchange, worker_id="w0") as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
    async with served(Gate, exchange=exchange) as (desk, _):
        await desk.judge(await desk.hear(Ask), run=False)
        await desk.send(message(Gate, 2))

        assert await Gate.entered.get() == 2
    assert await desk.waiting(Gate) == 1  # task 2


async def test_a_task_nobody_can_say_anything_about_goes_back_and_is_asked_about_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(counter, "_PAUSE", 0.01)
    async with served(Echo, before=[message(Echo)], ask_patience=MOMENT) as (desk, _):
        await desk.hear(Ask)
        again = await desk.hear(Ask)
        await desk.judge(again, run=True)

        while not isinstance(said := await desk.hear_either(Answer, Ask), Answer):
            await desk.judge(said, run=True)
        assert said.ticket == again.ticket


@pytest.mark.parametrize("about", [{"job_id": 1}, {"task_id": 2, "attempt": 1}, {"key": "ECHO"}])
@pytest.mark.parametrize("act", ["recall", "cancel"])
async def test_tasks_of_what_was_recalled_are_asked_about(act: str, about: dict[str, Any]) -> None:
    async with served(Echo) as (desk, _):
        await desk.tell(act, **about)
        await desk.tell("roll")
        await desk.hear(Hello)
        await desk.send(message(Echo, 2))
        await desk.judge(await desk.hear(Ask), run=False)
        await desk.send(message(Echo, 3, job_id=9, sent_at=time.time() + 1000))

        assert (await desk.hear(Answer)).ticket.task_id == 3


@pytest.mark.parametrize("wrong", [86_400, -86_400], ids=["a day ahead", "a day behind"])
async def test_the_clock_of_a_worker_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    """Only the server's times are compared: of its message, its recall and its welcome."""
    right = time.time
    async with served(Echo, exchange=MemoryExchange()) as (desk, _):
        monkeypatch.setattr(time, "time", lambda: right() + wrong)
        await desk.send(message(Echo, 1, sent_at=right() + 60))
        assert (await desk.hear(Answer)).ticket.task_id == 1
        await desk.send(message(Echo, 2, sent_at=right() - 60))
        await desk.judge(await desk.hear(Ask), run=False)
        await desk.tell("cancel", job_id=1, sent_at=right())
        await desk.tell("roll")
        await desk.hear(Hello)
        await desk.send(message(Echo, 3, sent_at=right() + 60))

        assert (await desk.hear(Ask)).ticket.task_id == 3
        assert [report.ticket.task_id for report in desk.heard if isinstance(report, Answer)] == [1]


async def test_what_one_server_says_is_in_order_whatever_its_clock_says() -> None:
    """It need not be asked about for as long as clocks of several servers may differ."""
    async with served(Echo) as (desk, _):
        just_now = {"sent_at": time.time() - 60, "stamp": Stamp.here()}
        await desk.send(message(Echo, 1, **just_now))
        assert (await desk.hear(Answer)).ticket.task_id == 1

        before = {"sent_at": time.time() + 60, "stamp": Stamp.here(time.monotonic() - 60)}
        await desk.send(message(Echo, 2, **before))
        await desk.judge(await desk.hear(Ask), run=True)
        await desk.hear(Answer)

        another = {"sent_at": time.time() + 1, "stamp": Stamp("another", time.monotonic() + 60)}
        await desk.send(message(Echo, 3, **another))
        assert (await desk.hear(Ask)).ticket.task_id == 3


async def test_everything_is_asked_about_until_a_server_gives_its_welcome() -> None:
    """Whatever clocks say: what was cancelled before could not be heard."""
    async with served(Echo, welcome=False) as (desk, _):
        (hello,) = desk.heard
        assert isinstance(hello, Hello)
        assert hello.listening == 1
        await desk.welcome(replace(hello, listening=0))  # of another time
        await desk.send(message(Echo, 1, sent_at=time.time() + 1e9))
        await desk.judge(await desk.hear(Ask), run=True)
        await desk.hear(Answer)
        await desk.welcome(hello)
        await desk.see_welcomed()
        await desk.send(message(Echo, 2, sent_at=time.time() + 1))

        await desk.judge(await desk.hear(Ask), run=True)  # clocks of servers differ a little
        await desk.hear(Answer)
        await desk.send(message(Echo, 3))
        assert (await desk.hear_either(Answer, Ask)).ticket.task_id == 3
        assert isinstance(desk.heard[-1], Answer)


async def test_a_worker_that_was_cut_off_wants_to_be_welcomed_anew() -> None:
    """A welcome from before says nothing of what was missed meanwhile."""
    async with served(Echo) as (desk, _):
        desk.welcomes = False
        await desk.exchange.delete_queue(work_queue("ECHO"))  # told like a reconnection
        hello = await desk.hear(Hello)
        assert hello.listening == 2
        await desk.welcome(hello, listening=1)
        await desk.send(message(Echo))

        await desk.judge(await desk.hear(Ask), run=True)
        await desk.hear(Answer)


async def test_what_a_server_of_an_earlier_version_recalls_is_always_asked_about() -> None:
    """It does not say when it recalled it."""
    async with served(Echo) as (desk, _):
        await desk.tell("recall", job_id=1, sent_at=None)
        await desk.tell("roll")
        await desk.hear(Hello)
        await desk.send(message(Echo, sent_at=time.time() + 1e9))

        await desk.judge(await desk.hear(Ask), run=True)
        await desk.hear(Answer)


async def test_messages_that_are_not_understood_are_passed_over() -> None:
    async with served(Echo) as (desk, _):
        for body in (b"", b"[]", b'{"v":1,"act":7}', b'{"v":1,"act":"dance"}'):
            await desk.exchange.broadcast(Envelope(type="control", body=body))
        await desk.exchange.send("dane.worker.w1", [Envelope(type="verdict", body=b"{}")])
        await desk.send(message(Echo))

        assert (await desk.hear(Answer)).state == 200


# --- end before the end -----------------------------------------------------------------------


async def test_a_cancelled_attempt_hears_of_it_and_ends_as_499() -> None:
    async with served(Gate, slots=2) as (desk, _):
        await desk.send(message(Gate, 1), message(Gate, 2, job_id=2))
        await Gate.entered.get()
        await Gate.entered.get()
        await desk.tell("cancel", job_id=2)
        answer = await desk.hear(Answer)

        assert (answer.ticket.task_id, answer.state) == (2, 499)
        assert [report for report in desk.heard if isinstance(report, Answer)] == [answer]


async def test_a_cancellation_of_an_old_attempt_leaves_the_present_one_alone() -> None:
    async with served(Gate) as (desk, _):
        await desk.send(
            message(
                Gate,
                ticket=Ticket(
                    task_id=message(Gate).ticket.task_id, attempt=2, dispatch=1, token="t"
                ),
            )
        )
        await Gate.entered.get()
        await desk.tell("cancel", task_id=1, attempt=1)
        await desk.tell("roll")
        await desk.hear(Hello)
        Gate.gate.set()

        assert (await desk.hear(Answer)).state == 200


async def test_a_work_that_does_not_listen_is_made_to_stop() -> None:
    async with served(Deaf, pace=Pace(courtesy=MOMENT)) as (desk, _):
        await desk.send(message(Deaf))
        await Gate.entered.get()
        await desk.tell("cancel", task_id=1)

        assert (await desk.hear(Answer)).state == 499


async def test_a_child_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with served(
        zoo.Stubborn, pace=Pace(started=MOMENT, progress=MOMENT, courtesy=MOMENT)
    ) as (desk, _):
        await desk.send(message(zoo.Stubborn, args={"trace": str(trace)}))
        await desk.hear(Progress)
        await desk.tell("cancel", task_id=1)

        assert (await desk.hear(Answer)).state == 499
    assert trace.read_text() == "unwound"


@pytest.mark.parametrize("worker", [Deaf, zoo.Stubborn])
async def test_a_task_that_runs_longer_than_it_may_is_504(worker: type[Worker]) -> None:
    async with served(worker) as (desk, _):
        await desk.send(message(worker, timeout=0.05))
        answer = await desk.hear(Answer)

        assert answer.state == 504
        assert "0.05 s" in answer.message
        assert answer.runtime is not None
        assert answer.runtime >= 0.05


class Hangs(Worker):
    """Cannot be stopped: it is in a thread."""

    key = "HANGS"
    run_in = "thread"
    end: ClassVar[threading.Event]

    def work(self, _task: TaskContext) -> None:
        self.end.wait()


@pytest.fixture
def hanging() -> Iterator[None]:
    Hangs.end = threading.Event()
    yield
    Hangs.end.set()


@pytest.mark.usefixtures("hanging")
async def test_threads_that_hang_take_no_more_slots_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dane_core.worker.attempt._LAST_MOMENTS", 0.01)
    async with served(Hangs) as (desk, _):
        await desk.send(message(Hangs, 1, timeout=0.01))
        assert (await desk.hear(Answer)).state == 504
        await desk.send(message(Hangs, 2))

        assert "holds every slot" in (await desk.hear(Released)).reason


# --- pause, drain, leave ------------------------------------------------------------------------


async def test_a_paused_key_takes_no_tasks_until_it_is_resumed() -> None:
    async with served(Gate, Echo, slots=2) as (desk, _):
        await desk.send(message(Gate, 1))
        await Gate.entered.get()
        await desk.tell("pause", key="GATE")
        await desk.tell("roll")
        await desk.hear(Hello)
        await desk.send(message(Gate, 2), message(Echo, 3))
        assert (await desk.hear(Answer)).ticket.task_id == 3
        Gate.gate.set()
        assert (await desk.hear(Answer)).ticket.task_id == 1  # what ran went on
        assert await desk.waiting(Gate) == 1

        await desk.tell("resume", key="GATE")

        assert (await desk.hear(Answer)).ticket.task_id == 2


async def test_a_drain_finishes_what_runs_and_leaves_the_rest() -> None:
    draining = asyncio.Event()
    async with served(Gate, draining=draining) as (desk, serving):
        await desk.send(message(Gate, 1), message(Gate, 2))
        await Gate.entered.get()
        draining.set()
        await desk.tell("roll")
        await desk.hear(Hello)
        assert not serving.done()
        Gate.gate.set()

        assert (await desk.hear(Answer)).ticket.task_id == 1
        assert (await desk.hear(Goodbye)).worker == "w1"
        await serving
    assert await desk.waiting(Gate) == 1


@pytest.mark.parametrize("worker", [Deaf, zoo.Stubborn, Watchful])
async def test_what_does_not_end_within_the_grace_is_handed_back(worker: type[Worker]) -> None:
    """Also where the work takes its end for a cancellation, and answers with it at once."""
    draining = asyncio.Event()
    pace = Pace(started=MOMENT, progress=MOMENT)
    async with served(worker, draining=draining, grace=MOMENT, pace=pace) as (desk, serving):
        await desk.send(message(worker))
        await desk.hear(Started)
        draining.set()
        released = await desk.hear(Released)
        await desk.hear(Goodbye)
        await serving

        assert (released.ticket.task_id, released.delay) == (1, 0.0)
    assert await desk.waiting(worker) == 0  # the server has it, not the queue


async def test_a_worker_is_drained_by_its_name_alone() -> None:
    async with served(Echo) as (desk, serving):
        await desk.tell("drain", worker="w2")
        await desk.send(message(Echo))
        await desk.hear(Answer)
        await desk.tell("drain", worker="w1")

        await desk.hear(Goodbye)
        await serving


async def test_a_worker_that_is_cancelled_drops_everything_where_it_is() -> None:
    async with served(Gate) as (desk, serving):
        await desk.send(message(Gate))
        await Gate.entered.get()
        serving.cancel()
        await asyncio.wait({serving})

    assert await desk.waiting(Gate) == 1


# --- when things go wrong -----------------------------------------------------------------------


class Unsteady(MemoryExchange):
    """Does not confirm the first answers."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = [Fate.UNKNOWN, Fate.UNROUTABLE]

    async def send(self, queue: str, envelopes: Sequence[Envelope]) -> Sequence[Fate]:
        if queue == RESPONSE_QUEUE and envelopes[0].type == "answer" and self.refusals:
            return [self.refusals.pop(0)] * len(envelopes)
        return await super().send(queue, envelopes)


async def test_an_answer_is_sent_until_it_is_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dane_core.worker.outbox._FIRST_PAUSE", 0.001)
    exchange = Unsteady()
    async with served(Echo, exchange=exchange) as (desk, _):
        await desk.send(message(Echo))

        assert (await desk.hear(Answer)).state == 200
        assert not exchange.refusals


@pytest.mark.parametrize(
    "bad",
    [
        Envelope(type="task", body=b"not json", correlation_id="1"),
        Envelope(type="task", body=b'{"v":2}', correlation_id="1"),
        message(Gate).seal(RESPONSE_QUEUE),
        replace(message(Echo).seal(RESPONSE_QUEUE), correlation_id="seven"),
    ],
)
async def test_a_message_that_is_no_task_of_the_key_is_put_aside(bad: Envelope) -> None:
    """Back in the queue it would come again at once, for ever; dropped, nobody could look."""
    async with served(Echo) as (desk, _):
        await desk.exchange.publish([("video.ECHO", bad)])
        async with desk.exchange.consume(DEAD_QUEUE, prefetch=1) as dead:
            (delivery,) = await dead.take(1)
            await dead.ack(delivery)
        await desk.send(message(Echo))
        await desk.hear(Answer)

        assert delivery.envelope.body == bad.body
        assert delivery.envelope.headers["from"] == "dane.ECHO"
        assert delivery.envelope.headers["fault"]
    assert await desk.waiting(Echo) == 0


async def test_the_same_attempt_delivered_twice_runs_once() -> None:
    """After a lost connection a worker is given again what it still works on."""
    async with served(Gate, slots=2) as (desk, _):
        await desk.send(message(Gate), message(Gate))
        await Gate.entered.get()
        await desk.tell("roll")
        await desk.hear(Hello)
        assert Gate.entered.empty()
        Gate.gate.set()
        await desk.hear(Answer)
        await desk.send(message(Gate, 2))
        await desk.hear(Answer)

        assert [type(report) for report in desk.heard].count(Answer) == 2
    assert await desk.waiting(Gate) == 0


async def test_a_worker_that_cannot_be_set_up_again_leaves_its_tasks_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose GPU is gone must not fail every task of the queue, one after another."""
    model = tmp_path / "model.bin"
    model.write_bytes(b"")
    monkeypatch.setenv("DANE_TEST_MODEL", str(model))
    async with served(zoo.LosesItsModel) as (desk, _):
        await desk.send(message(zoo.LosesItsModel, 1))
        assert (await desk.hear(Answer)).state == 500
        await desk.send(message(zoo.LosesItsModel, 2))
        released = await desk.hear(Released)

        assert released.delay == 30.0
        assert "LOSESITSMODEL could not be set up: FileNotFoundError" in released.reason


class InTheWay(MemoryExchange):
    """Has a queue of another shape under the name of ECHO's."""

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        if queue == work_queue("ECHO"):
            raise QueueMismatch(queue, "x-max-priority")
        await super().declare_queue(queue, bindings)


async def test_a_queue_that_is_in_the_way_stops_its_key_and_no_other() -> None:
    async with served(Echo, Says, exchange=InTheWay()) as (desk, _):
        (hello,) = desk.heard
        await desk.send(message(Says))

        assert isinstance(hello, Hello)
        assert [offer.key for offer in hello.offers] == ["SAYS"]
        assert (await desk.hear(Answer)).state == 200


class Reset(MemoryExchange):
    """Loses its connection while the first queues are made."""

    losses = 2

    def __init__(self) -> None:
        super().__init__()
        self.was_lost = asyncio.Event()

    async def declare_queue(self, queue: str, bindings: Sequence[str] = ()) -> None:
        if self.losses and queue == work_queue("ECHO"):
            self.losses -= 1
            self.was_lost.set()
            raise ExchangeUnreachable("reset")
        await super().declare_queue(queue, bindings)


async def test_a_connection_lost_while_queues_are_made_does_not_end_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its supervisor would have to load the model once more."""
    monkeypatch.setattr(serving, "_AGAIN", 0.01)
    async with served(Echo, exchange=Reset()) as (desk, _):
        await desk.send(message(Echo))

        assert (await desk.hear(Answer)).state == 200


async def test_a_worker_that_has_no_queues_yet_can_be_told_to_stop() -> None:
    exchange, draining = Reset(), asyncio.Event()
    exchange.losses = 1_000_000
    working = asyncio.create_task(serve([Echo], exchange, QUIET, draining=draining))
    await exchange.was_lost.wait()

    draining.set()

    await asyncio.wait_for(working, 10)


@pytest.mark.parametrize(
    ("workers", "exchange", "fault"),
    [
        ([], MemoryExchange(), BadWorker),
        ([Echo, Echo], MemoryExchange(), BadWorker),
        ([Worker], MemoryExchange(), BadWorker),
        ([zoo.NoModel], MemoryExchange(), BadWorker),
        ([Echo], InTheWay(), QueueMismatch),
    ],
)
async def test_what_cannot_be_served_is_refused_at_the_start(
    workers: list[type[Worker]], exchange: MemoryExchange, fault: type[Exception]
) -> None:
    with pytest.raises(fault):
        await serve(workers, exchange, QUIET)


async def test_health_says_whether_tasks_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    draining = asyncio.Event()
    caplog.set_level("INFO")
    async with served(Gate, draining=draining, health_port=0) as (desk, _):
        await desk.send(message(Gate))
        await Gate.entered.get()
        (url,) = re.findall(r"health at (http\S+)", caplog.text)
        async with httpx.AsyncClient() as client:
            well = await client.get(url)
            draining.set()
            leaving = await client.get(url)
        Gate.gate.set()
        await desk.hear(Goodbye)

    assert well.status_code == 200
    assert well.json() == {
        "status": "ok",
        "worker": "w1",
        "keys": ["GATE"],
        "slots": 1,
        "running": 1,
        "leased": [],
        "watched": False,
        "last_heartbeat": None,
    }
    assert leaving.status_code == 503
    assert leaving.json()["status"] == "draining"
