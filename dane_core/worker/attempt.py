"""One attempt at one task, from the message to the confirmed answer."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final

from dane_core.errors import BadWorker
from dane_core.message import Answer, Leased, Progress, Released, Started, TaskMessage, Ticket
from dane_core.outcome import Done, Failed, Outcome, Refused
from dane_core.worker.answer import clean_text, failure_of, read_args
from dane_core.worker.context import TaskContext
from dane_core.worker.isolation import PATIENCE
from dane_core.worker.outbox import Outbox
from dane_core.worker.place import Place
from dane_core.worker.worker import Worker

logger = logging.getLogger(__name__)

#: How long a worker that cannot be set up leaves its tasks to others, in seconds.
_SETUP_PAUSE: Final = 30.0
#: Work that was stopped by force gets this long to be gone, in seconds.
_LAST_MOMENTS: Final = 2 * PATIENCE


class Stop(Enum):
    """Why an attempt has to end before its work does."""

    CANCELLED = "cancelled"  # by an operator or owner, or because another attempt has taken over
    TIMED_OUT = "it runs longer than its task may"
    DRAINED = "the worker leaves"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When an attempt speaks, and how long it leaves its work to end by itself."""

    started: timedelta = timedelta(seconds=1)  # a task that runs this long is worth a Started
    progress: timedelta = timedelta(seconds=1)  # between two Progress
    courtesy: timedelta = timedelta(seconds=5)  # from `task.cancelled` to the end by force
    hand_off: timedelta = timedelta(seconds=60)  # from its delivery to the end of its message


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What all attempts in one worker process share."""

    worker_id: str
    outbox: Outbox
    lease: timedelta = timedelta(seconds=60)  # of what goes on without its message
    on_begin: Callable[[Ticket], object] = lambda _: None
    api_url: str | None = None
    pace: Pace = field(default_factory=Pace)


class Attempt:
    """The life of an attempt. Whatever happens in it, it ends in an answer.

    It begins on its message, which the broker would give to somebody else should we die. After
    the hand-off it lives on a lease in the store, and its message is to be settled.
    """

    def __init__(
        self,
        message: TaskMessage,
        worker: type[Worker],
        place: Place,
        desk: Desk,
        *,
        delivered: float,
    ) -> None:
        """`delivered`: when its message came, on the loop's clock."""
        loop = asyncio.get_running_loop()
        self.message = message
        #: Set once the server has it in writing that this attempt goes on without its message.
        self.leased: asyncio.Future[None] = loop.create_future()
        #: Set at the end: whether its answer was confirmed.
        self.answered: asyncio.Future[bool] = loop.create_future()
        self._worker = worker
        self._place = place
        self._desk = desk
        self._task = _context(message, desk.api_url, self._note_progress)
        self._stopped: asyncio.Future[Stop] = loop.create_future()
        self._courtesy = desk.pace.courtesy
        self._outcome: Outcome = Failed("it has not run")
        self._delivered = delivered
        self._began: float | None = None
        self._runtime: float | None = None
        self._started_at: str | None = None
        self._progress: tuple[float, str] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._handing_off: asyncio.Task[None] | None = None
        self._ending = False
        self._timers: list[asyncio.TimerHandle] = []

    async def live(self) -> None:
        """Do the task and have its answer confirmed."""
        try:
            self._desk.on_begin(self.message.ticket)
            self._set_timer(self._desk.pace.hand_off.total_seconds() - self.age, self.hand_off)
            await self._perform()
            await self._hush()
            report = self._judge()
            await self._report(report)
            self._log_end(report)
            self.answered.set_result(True)
        finally:
            if not self.answered.done():
                self.answered.set_result(False)

    def stop(self, why: Stop, courtesy: timedelta | None = None) -> None:
        """End it before its time; by force after this courtesy. The first reason counts."""
        if not self._stopped.done():
            if courtesy is not None:
                self._courtesy = courtesy
            logger.info("%s has to stop: %s", self, why.value)
            self._stopped.set_result(why)
            self._task.cancelled.set()

    def hand_off(self) -> None:
        """Have it live on a lease from now on; see `leased`. Said again, where that is due."""
        if self._ending or self.leased.done():
            return
        if self._handing_off is not None:
            self._handing_off.cancel()  # it may be waiting for its next try
        self._handing_off = asyncio.create_task(self._say_leased())

    @property
    def age(self) -> float:
        """Seconds since its message came."""
        return asyncio.get_running_loop().time() - self._delivered

    # --- perform --------------------------------------------------------------------------

    async def _perform(self) -> None:
        work = asyncio.create_task(self._work())
        try:
            await either(work, self._stopped)
            if self._stopped.done():
                self._outcome = await self._cut_short(work, self._stopped.result())
            else:
                self._outcome = work.result()
        finally:
            self._runtime = self._elapsed()
            if not work.done():  # we were cancelled ourselves: take the work along
                work.cancel()
                await asyncio.wait({work}, timeout=_LAST_MOMENTS)

    async def _work(self) -> Outcome:
        try:
            read_args(self._worker, self._task.args)
            async with self._place.seat() as run:
                self._begin()
                return await run(self._task)
        except (Failed, Refused) as outcome:
            return outcome
        except BadWorker as fault:
            logger.error("%s", fault)  # noqa: TRY400  the sentence says it all
            return Refused(_SETUP_PAUSE, clean_text(fault))
        except Exception as error:
            logger.exception("task %s: the worker itself failed", self._task.task_id)
            return failure_of(error)

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._started_at = datetime.now(UTC).isoformat()
        self._set_timer(self._desk.pace.started.total_seconds(), self._start_telling)
        if self.message.timeout is not None:
            self._set_timer(self.message.timeout, self.stop, Stop.TIMED_OUT)

    def _set_timer(self, delay: float, act: Callable[..., None], *args: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay, act, *args))

    def _elapsed(self) -> float | None:
        return None if self._began is None else time.monotonic() - self._began

    async def _say_leased(self) -> None:
        lease = self._desk.lease.total_seconds()
        await self._desk.outbox.deliver(
            Leased(
                ticket=self.message.ticket,
                worker=self._desk.worker_id,
                runtime=self._elapsed() or 0.0,
                lease=lease,
            )
        )
        logger.info("%s goes on without its message, after %.1f s", self, self.age)
        self.leased.set_result(None)

    async def _cut_short(self, work: "asyncio.Task[Outcome]", why: Stop) -> Outcome:
        """Have stopped work end, by itself or by force; then say what that makes of the task."""
        if why is Stop.CANCELLED:
            await asyncio.wait({work}, timeout=self._courtesy.total_seconds())
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=_LAST_MOMENTS)
        if not work.done():
            logger.warning("task %s does not stop; left alone", self._task.task_id)
        match why:
            case Stop.CANCELLED:
                return Failed("Cancelled", 499)
            case Stop.TIMED_OUT:
                return Failed(f"ran longer than its timeout of {self.message.timeout:g} s", 504)
            case Stop.DRAINED:
                done = work.done() and not work.cancelled() and isinstance(work.result(), Done)
                # Work that sees `task.cancelled` may fail for it, but nobody has cancelled it.
                return work.result() if done else Refused(0.0, "the worker stops")

    # --- tell how it goes -------------------------------------------------------------------

    def _note_progress(self, fraction: float, message: str) -> None:
        # Called from any thread, any number of times: the latest is told, at its time.
        self._progress = (fraction, clean_text(message))

    def _start_telling(self) -> None:
        self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        ticket, told = self.message.ticket, None
        await self._desk.outbox.post(
            Started(ticket=ticket, worker=self._desk.worker_id, runtime=self._elapsed() or 0.0)
        )
        while True:
            if (latest := self._progress) is not None and latest is not told:
                told = latest
                fraction, message = latest
                await self._desk.outbox.post(
                    Progress(ticket=ticket, fraction=fraction, message=message)
                )
            await asyncio.sleep(self._desk.pace.progress.total_seconds())

    async def _hush(self) -> None:
        self._ending = True
        for timer in self._timers:
            timer.cancel()
        talks = {talk for talk in (self._telling, self._handing_off) if talk is not None}
        for talk in talks:
            talk.cancel()
        if talks:
            await asyncio.wait(talks)

    # --- judge and report -------------------------------------------------------------------

    def _judge(self) -> Answer | Released:
        match self._outcome:
            case Refused(delay=delay, message=reason):
                return Released(
                    ticket=self.message.ticket,
                    worker=self._desk.worker_id,
                    delay=delay,
                    reason=reason,
                )
            case Failed(message=message, state=state, response=response):
                return self._answer(state, message, response)
            case Done(response=response, message=message):
                return self._answer(200, message, response)

    def _answer(self, state: int, message: str, response: Mapping[str, Any]) -> Answer:
        return Answer(
            ticket=self.message.ticket,
            state=state,
            message=message,
            response=response,
            worker=self._desk.worker_id,
            runtime=self._runtime,
            started_at=self._started_at,
        )

    async def _report(self, report: Answer | Released) -> None:
        await self._desk.outbox.deliver(report)

    def _log_end(self, report: Answer | Released) -> None:
        """Say what a person who watches would want to know: not each of a thousand successes."""
        end = report.reason if isinstance(report, Released) else report.message
        match report:
            case Released():
                word, level = "handed back", logging.INFO
            case Answer(state=200):
                lasted = (self._runtime or 0.0) >= self._desk.pace.started.total_seconds()
                word, level = "done", logging.INFO if lasted else logging.DEBUG
            case _:
                word, level = f"ended as {report.state}", logging.WARNING
        logger.log(level, "%s %s after %.1f s: %s", self, word, self._runtime or 0.0, end[:200])

    def __str__(self) -> str:
        ticket = self.message.ticket
        return f"{self.message.key} task {ticket.task_id} (attempt {ticket.attempt})"


async def either(one: "asyncio.Future[Any]", other: "asyncio.Future[Any]") -> None:
    """Wait until one of two is done. For two, `asyncio.wait` does far more than it takes."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def note(_: object) -> None:
        if not done.done():
            done.set_result(None)

    one.add_done_callback(note)
    other.add_done_callback(note)
    try:
        await done
    finally:
        one.remove_done_callback(note)
        other.remove_done_callback(note)


def _context(
    message: TaskMessage, api_url: str | None, on_progress: Callable[[float, str], None]
) -> TaskContext:
    return TaskContext(
        task_id=message.ticket.task_id,
        job_id=message.job_id,
        attempt=message.ticket.attempt,
        key=message.key,
        name=message.name,
        source_url=message.source_url,
        source_id=message.source_id,
        type=message.type,
        metadata=message.metadata,
        args=message.args,
        response=message.response,
        partial=message.partial,
        api_url=api_url,
        on_progress=on_progress,
    )
