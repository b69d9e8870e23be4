"""What workers say of running attempts is taken down; what cannot be is put aside."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dane_core.errors import ExchangeUnreachable, StoreUnreachable, Unreachable
from dane_core.exchange.base import Fate
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import (
    RESPONSE_LIMIT,
    Answer,
    Ask,
    Control,
    Envelope,
    Gone,
    Heartbeat,
    Hello,
    Leased,
    Started,
    Ticket,
    open_control,
    open_verdict,
)
from dane_core.routing import DEAD_QUEUE, RESPONSE_QUEUE, inbox_queue
from dane_core.states import TaskState
from dane_server.runner.bell import LocalBell
from dane_server.runner.dispatch import Dispatcher, Moment
from dane_server.runner.record import Recorder
from dane_server.runner.ticket import Signer
from dane_server.storage.view import Claim, Recorded, Rejected
from dane_server.storage.writer import Writer
from tests.server.audit import audit
from tests.server.ledger import Ledger, hello, parallel, sequence
from tests.server.scripted import PATIENT, Office, at_work, done, until


@pytest.fixture
async def office(ledger: Ledger) -> AsyncIterator[Office]:
    """A runner that does nothing by the clock, and an exchange in this process."""
    async with at_work(ledger) as office:
        yield office


async def given_out(office: Office, tasks: Any, number: int = 1) -> list[Ticket]:
    """Submit a job whose tasks stay with their workers; what these hold."""
    await office.hire("A", "B", script=lambda _: None)
    await office.submit(tasks)

    async def seen() -> bool:
        return len(office.seen) == number

    await until(seen)
    return [task.ticket for task in office.seen]


async def say(office: Office, *reports: Any) -> None:
    await office.exchange.send(RESPONSE_QUEUE, [report.seal() for report in reports])


async def state_is(office: Office, ticket: Ticket, state: TaskState) -> None:
    async def holds() -> bool:
        return (await office.ledger.reader.task(ticket.task_id)).task.state is state

    await until(holds)


async def test_an_answer_that_is_too_large_fails_its_task_and_no_other(office: Office) -> None:
    """MariaDB closes the connection over it, and the batch would be tried again for ever."""
    large, fitting = await given_out(office, parallel("A", "A"), 2)
    edge = RESPONSE_LIMIT - len('{"pad":""}')
    await say(
        office,
        Answer(ticket=large, state=200, message="", response={"pad": "x" * (edge + 1)}, worker="w"),
        Answer(ticket=fitting, state=200, message="", response={"pad": "x" * edge}, worker="w"),
    )
    await state_is(office, fitting, TaskState.SUCCEEDED)

    await state_is(office, large, TaskState.FAILED)
    [attempt] = (await office.ledger.reader.task(large.task_id)).attempts
    assert attempt.message == "the response is 4,194,305 bytes and the limit is 4,194,304"


@pytest.mark.parametrize("together", [True, False])
async def test_a_task_that_two_workers_have_done_is_told_once_for_its_key(
    office: Office, caplog: pytest.LogCaptureFixture, *, together: bool
) -> None:
    """A second queue that somebody bound to the key doubles all its work, unseen."""
    tickets = await given_out(office, parallel("A", "A"), 2)
    answers = [
        Answer(ticket=ticket, state=200, message="", response={}, worker=worker)
        for ticket in tickets
        for worker in ("w1", "w2")
    ]

    for some in [answers] if together else [[one] for one in answers]:
        await say(office, *some)

    async def all_counted() -> bool:
        views = [await office.ledger.reader.task(ticket.task_id) for ticket in tickets]
        return all(view.rejected for view in views)

    await until(all_counted)
    warnings = [record.message for record in caplog.records if "two queues" in record.message]
    assert len(warnings) == 1
    assert "by w1 and by w2" in warnings[0]


# --- in one batch -------------------------------------------------------------------------------


async def test_an_answer_wins_over_all_else_that_is_said_in_its_batch(office: Office) -> None:
    """Its worker died right after it: what it has done is not done again."""
    first, second = await given_out(office, parallel("A", "A"), 2)

    await say(
        office,
        Started(ticket=first, worker="w1", runtime=1.0),
        Leased(ticket=first, worker="w1", runtime=60.0, lease=60.0),
        Gone(worker="w1"),
        done(office.seen[0]),
        done(office.seen[1]),
        Heartbeat(worker="w1", running=(first, second), lease=60.0),
        Leased(ticket=second, worker="w1", runtime=60.0, lease=60.0),
    )
    await state_is(office, second, TaskState.SUCCEEDED)

    task = (await office.ledger.reader.task(first.task_id)).task
    assert (task.state, task.attempt) == (TaskState.SUCCEEDED, 1)
    assert await audit(office.ledger.store, task.job_id) == []


async def test_the_task_of_a_worker_that_is_gone_is_sent_again_at_once(office: Office) -> None:
    [ticket] = await given_out(office, "A")

    await say(office, Leased(ticket=ticket, worker="w1", runtime=60.0, lease=60.0))
    await state_is(office, ticket, TaskState.RUNNING)
    await say(office, Gone(worker="w1", reason="ended by SIGKILL"))

    async def sent_again() -> bool:
        return [task.ticket.attempt for task in office.seen] == [1, 2]

    await until(sent_again)
    [attempt] = (await office.ledger.reader.task(ticket.task_id)).attempts
    assert attempt.message == "worker w1 is gone: ended by SIGKILL"


# --- words to workers -----------------------------------------------------------------------------


async def test_a_worker_at_work_on_an_old_attempt_is_told_to_stop(office: Office) -> None:
    """It may have been silent for ten minutes: another has its task."""
    async with office.exchange.listen(inbox_queue("w1")) as inbox:
        [ticket] = await given_out(office, "A")
        await office.runner.force_task(ticket.task_id)
        await asyncio.wait_for(inbox.take(1), 5)  # what the operator's act says to all

        await say(office, Heartbeat(worker="w1", running=(ticket, ticket), lease=60.0))

        [delivery] = await asyncio.wait_for(inbox.take(10), 5)
    order = open_control(delivery.envelope)
    assert replace(order, grace=None) == Control(
        act="cancel", task_id=ticket.task_id, attempt=ticket.attempt
    )


async def test_a_living_worker_keeps_its_task_when_another_gets_the_message(
    office: Office,
) -> None:
    [ticket] = await given_out(office, "A")
    await say(office, Started(ticket=ticket, worker="w1", runtime=1.0))

    async with office.exchange.listen("inbox") as inbox:
        await say(office, Ask(ticket=ticket, worker="w2", reply_to="inbox", redelivered=True))
        [delivery] = await asyncio.wait_for(inbox.take(1), 5)

    verdict = open_verdict(delivery.envelope)
    assert (verdict.run, verdict.reason) == (False, "worker w1 has it")


# --- what is not believed -------------------------------------------------------------------------


async def test_forged_reports_of_every_kind_are_counted_and_dropped(office: Office) -> None:
    [genuine] = await given_out(office, sequence("A", "B"))
    forged = replace(genuine, token="0" * 32)
    unheard_of = replace(forged, attempt=99)

    await say(
        office,
        Started(ticket=forged, worker="x", runtime=1.0),
        Leased(ticket=forged, worker="x", runtime=1.0, lease=60.0),
        Heartbeat(worker="x", running=(forged, genuine), lease=60.0),
        Answer(ticket=forged, state=200, message="", response={}, worker="x"),
        Answer(ticket=unheard_of, state=200, message="", response={}, worker="y"),
    )
    await state_is(office, genuine, TaskState.RUNNING)

    view = await office.ledger.reader.task(genuine.task_id)
    counted = {(one.attempt, one.reason, one.times, one.worker) for one in view.rejected}
    assert counted == {(0, Rejected.FORGED, 1, "y"), (1, Rejected.FORGED, 4, "x")}


# --- what cannot be written down ------------------------------------------------------------------


class Picky(Writer):
    """A writer that a certain answer is too much for, or that lacks something for a while."""

    wants: Exception | None = None  # until it is taken away
    confused = 0

    async def record(self, answers: Sequence[Answer], *, window: int, lease: timedelta) -> Recorded:
        if self.wants is not None:
            raise self.wants
        if self.confused:
            self.confused -= 1
            raise ValueError("somebody was quicker")
        for answer in answers:
            if answer.message == "poison":
                raise ValueError("no column is wide enough")
        return await super().record(answers, window=window, lease=lease)


class Handed(Dispatcher):
    """A dispatcher that does nothing with what it is given."""

    def __init__(self) -> None:
        pass

    @property
    def window(self) -> int:
        return PATIENT.window

    def hand_over(self, claims: Sequence[Claim], claimed: Moment) -> None:
        pass

    async def see_off(self) -> None:
        pass

    def note_bound(self, keys: Any) -> None:
        pass

    def note_settled(self, task_ids: Any) -> None:
        pass


def recorder(writer: Writer, exchange: MemoryExchange) -> Recorder:
    return Recorder(
        writer=writer,
        exchange=exchange,
        bell=LocalBell(),
        signer=Signer("s"),
        pace=PATIENT,
        dispatcher=Handed(),
    )


async def signed_answers(ledger: Ledger, number: int) -> list[Answer]:
    await ledger.submit(parallel(*["A"] * number))
    signer = Signer("s")
    return [
        Answer(
            ticket=signer.ticket(claim.task_id, claim.attempt, claim.dispatch),
            state=200,
            message="Success",
            response={},
        )
        for claim in await ledger.send()
    ]


async def test_a_report_that_cannot_be_written_down_is_parked_alone(ledger: Ledger) -> None:
    """Delivered again and again it would hold up everybody else's."""
    exchange = MemoryExchange()
    answers = await signed_answers(ledger, 5)
    answers[2] = replace(answers[2], message="poison")
    await exchange.declare_queue(RESPONSE_QUEUE)
    await exchange.send(RESPONSE_QUEUE, [answer.seal() for answer in answers])
    recording = asyncio.create_task(recorder(Picky(ledger.store), exchange).run())
    good = [answer for answer in answers if answer is not answers[2]]

    async def taken() -> bool:
        views = [await ledger.reader.task(answer.ticket.task_id) for answer in good]
        return all(view.task.state is TaskState.SUCCEEDED for view in views)

    async def failed() -> bool:
        view = await ledger.reader.task(answers[2].ticket.task_id)
        return view.task.state is TaskState.FAILED

    await until(taken)
    async with exchange.consume(DEAD_QUEUE, prefetch=10) as dead:
        [parked] = await asyncio.wait_for(dead.take(10), 5)
    await until(failed)
    poisoned = (await ledger.reader.task(answers[2].ticket.task_id)).task
    recording.cancel()

    assert parked.envelope.body == answers[2].seal().body
    assert parked.envelope.correlation_id == str(answers[2].ticket.task_id)
    assert parked.envelope.headers["fault"] == "ValueError: no column is wide enough"
    assert parked.envelope.headers["from"] == RESPONSE_QUEUE
    assert (poisoned.state, poisoned.number) == (TaskState.FAILED, 500)
    assert poisoned.message == "its answer cannot be recorded: ValueError: no column is wide enough"


async def test_a_report_that_failed_once_is_tried_again_before_it_is_parked(
    ledger: Ledger,
) -> None:
    """Two servers had something to write of the same row; that has passed."""
    exchange = MemoryExchange()
    [answer] = await signed_answers(ledger, 1)
    await exchange.declare_queue(RESPONSE_QUEUE)
    await exchange.send(RESPONSE_QUEUE, [answer.seal()])
    writer = Picky(ledger.store)
    writer.confused = 1
    recording = asyncio.create_task(recorder(writer, exchange).run())

    async def taken() -> bool:
        view = await ledger.reader.task(answer.ticket.task_id)
        return view.task.state is TaskState.SUCCEEDED

    await until(taken)
    dead = await exchange.depth(DEAD_QUEUE)
    recording.cancel()

    assert dead is not None
    assert dead.waiting == 0


@pytest.mark.parametrize(
    "wanted", [StoreUnreachable("not now"), OSError(24, "Too many open files"), MemoryError()]
)
async def test_no_report_is_parked_for_want_of_a_database_files_or_memory(
    ledger: Ledger, wanted: Exception
) -> None:
    """It stays in its queue until there is some."""
    exchange = MemoryExchange()
    [answer] = await signed_answers(ledger, 1)
    await exchange.declare_queue(RESPONSE_QUEUE)
    await exchange.send(RESPONSE_QUEUE, [answer.seal()])
    writer = Picky(ledger.store)
    writer.wants = wanted

    with pytest.raises(Unreachable):
        await recorder(writer, exchange).run()
    dead, left = await exchange.depth(DEAD_QUEUE), await exchange.depth(RESPONSE_QUEUE)
    assert dead is not None
    assert left is not None
    assert (dead.waiting, left.waiting) == (0, 1)


async def test_a_hello_without_a_ticket_is_taken_with_the_rest(ledger: Ledger) -> None:
    """Reports that name no attempt need no signature."""
    taker = recorder(Writer(ledger.store), MemoryExchange())

    await taker.take_reports(
        [
            Hello(worker="w1", host="h", pid=1, slots=1, inbox="i", offers=()),
            Heartbeat(worker="w1", running=(), lease=60.0),
            Gone(worker="w2"),
        ]
    )

    assert (await ledger.reader.keys()) == []


class Emptied(MemoryExchange):
    """Somebody removes each queue as soon as it is there."""

    async def declare_queue(self, queue: str, *args: Any, **kwargs: Any) -> None:
        await super().declare_queue(queue, *args, **kwargs)
        await self.delete_queue(queue)


async def test_a_queue_that_was_removed_at_once_is_made_again(ledger: Ledger) -> None:
    """That is no fault of ours: it is said in a line, and tried again."""
    with pytest.raises(ExchangeUnreachable, match="there is no queue"):
        await recorder(ledger.writer, Emptied()).run()


# --- what workers are told ------------------------------------------------------------------------


class Counted(MemoryExchange):
    """Counts how often it is used to send, and may be blocked."""

    def __init__(self, blocked: str = "") -> None:
        super().__init__()
        self.sendings: list[int] = []
        self._blocked = blocked

    @property
    def blocked(self) -> str:
        return self._blocked

    async def send_each(self, messages: Sequence[tuple[str, Envelope]]) -> Sequence[Fate]:
        self.sendings.append(len(messages))
        return await super().send_each(messages)


async def asks_and_hellos(ledger: Ledger) -> list[Ask | Hello]:
    """Three workers that come, and ask."""
    answers = await signed_answers(ledger, 3)
    names = [f"w{number}" for number in range(3)]
    asks = [
        Ask(ticket=answer.ticket, worker=name, reply_to=f"i.{name}")
        for answer, name in zip(answers, names, strict=True)
    ]
    return [*asks, *(replace(hello("A", worker=name), listening=7) for name in names)]


async def test_several_workers_are_told_in_one_go(ledger: Ledger) -> None:
    """A broker that says nothing holds up the recorder once, and not for each of them."""
    exchange = Counted()
    async with exchange.listen("i.w1") as inbox:
        await recorder(ledger.writer, exchange).take_reports(await asks_and_hellos(ledger))
        deliveries = [*await inbox.take(10)]

    assert exchange.sendings == [3, 3]
    welcome, verdict = (delivery.envelope for delivery in deliveries)
    word = open_control(welcome)
    assert (word.act, word.worker, word.listening) == ("welcome", "w1", 7)
    assert word.sent_at is not None
    assert open_verdict(verdict).run


async def test_workers_are_told_nothing_while_the_broker_is_blocked(ledger: Ledger) -> None:
    """It would arrive when it is not true any more; and answers are recorded meanwhile."""
    exchange = Counted(blocked="low on memory")

    await recorder(ledger.writer, exchange).take_reports(await asks_and_hellos(ledger))

    assert exchange.sendings == []
