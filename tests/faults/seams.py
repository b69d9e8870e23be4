"""Places in the product where a process of a test can be made to die, and never anywhere else.

`DANE_CRASH_AT=<point>:<n>` ends the process with `os._exit(137)` when it passes the point for the
n-th time. The product knows nothing of it: `install` wraps its methods, and is called only by
`tests.faults.server` and `tests.faults.worker`. A method that is not there is an error at once.
"""

import asyncio
import functools
import importlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dane_core.exchange.base import Fate
from dane_core.message import Answer
from dane_core.routing import RESPONSE_QUEUE
from dane_server.storage.view import Submitted

CRASH_VARIABLE: Final = "DANE_CRASH_AT"
#: Names the file in which every process notes the points that it has passed.
PASSED_VARIABLE: Final = "FAULTS_PASSED"
#: As a shell shows a process that was ended by SIGKILL.
CRASHED: Final = 137

Program = Literal["server", "worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a wrapped method; without `result` when it has not run yet."""

    args: tuple[Any, ...]
    result: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """A point, and the calls that pass it."""

    point: str
    program: Program
    target: str  # module:function or module:Class.method
    when: Literal["before", "after"] = "after"
    counts: Callable[[Call], bool] = lambda _: True
    delay: float = 0.0  # seconds after the call at which it is passed


class _Record:
    """Whether this process has recorded an answer whose successors may be published."""

    settled = False


_record: Final = _Record()


def _has_answer(call: Call) -> bool:
    return any(isinstance(report, Answer) for report in call.args[1])


def _is_answer(call: Call) -> bool:
    return isinstance(call.args[1], Answer)


def _has_sent(call: Call, message_type: str) -> bool:
    """Whether a window of messages has one of this type that was confirmed."""
    fates, _ = call.result
    return any(
        parcel.properties.message_type == message_type and fate is Fate.ROUTED
        for parcel, fate in zip(call.args[2], fates, strict=True)
    )


def _has_sent_task(call: Call) -> bool:
    return _has_sent(call, "task")


def _has_sent_answer(call: Call) -> bool:
    return _has_sent(call, "answer")


SEAMS: Final = (
    # --- server
    Seam(
        point="job-before-commit",
        program="server",
        target="dane_server.storage.writer:store_jobs",
    ),
    Seam(
        point="job-committed",
        program="server",
        target="dane_server.storage.writer:Writer.store_jobs",
    ),
    Seam(
        point="claimed-ahead",  # in the transaction that stored its job
        program="server",
        target="dane_server.storage.writer:Writer.store_jobs",
        counts=lambda call: any(isinstance(one, Submitted) and one.claims for one in call.result),
    ),
    Seam(
        point="claimed",
        program="server",
        target="dane_server.storage.writer:Writer.claim_ready",
        counts=lambda call: bool(call.result),
    ),
    Seam(
        point="task-published",  # nobody has been told yet that it was confirmed
        program="server",
        target="dane_core.exchange.amqp.publisher:Publisher._send_over",
        counts=_has_sent_task,
    ),
    Seam(
        point="task-confirmed",
        program="server",
        target="dane_core.exchange.amqp.exchange:AmqpExchange.publish",
        counts=lambda call: Fate.ROUTED in call.result,
    ),
    Seam(
        point="answer-received",
        program="server",
        target="dane_server.runner.record:Recorder.take_reports",
        when="before",
        counts=_has_answer,
    ),
    Seam(
        point="answers-half-written",  # the tasks are settled, their answers not yet stored
        program="server",
        target="dane_server.storage.recording:_settle_answers",
        when="before",
    ),
    Seam(
        point="answers-committed",
        program="server",
        target="dane_server.storage.writer:Writer.record",
        counts=lambda call: bool(call.result.settled),
    ),
    Seam(
        point="answers-acked",  # with the dispatcher kept from publishing what became ready
        program="server",
        target="dane_core.exchange.amqp.subscription:AmqpSubscription.ack_through",
        counts=lambda call: call.args[0].queue == RESPONSE_QUEUE and _record.settled,
    ),
    Seam(
        point="attempt-closed",  # of a lost worker; the next one is there to be sent
        program="server",
        target="dane_server.storage.sweeps:Sweeps.lose",
        counts=lambda call: bool(call.result),
    ),
    Seam(
        point="server-draining",
        program="server",
        target="dane_server.app:_Team.drain",
        when="before",
    ),
    # --- worker
    Seam(
        point="task-delivered",
        program="worker",
        target="dane_core.worker.counter:_Lane._handle",
        when="before",
    ),
    Seam(
        point="mid-task",
        program="worker",
        target="dane_core.worker.attempt:Attempt._begin",
        delay=0.2,
    ),
    Seam(
        point="answer-computed",
        program="worker",
        target="dane_core.worker.attempt:Attempt._report",
        when="before",
        counts=_is_answer,
    ),
    Seam(
        point="answer-published",
        program="worker",
        target="dane_core.exchange.amqp.publisher:Publisher._send_over",
        counts=_has_sent_answer,
    ),
    Seam(
        point="answer-confirmed",  # and the task's message not yet acknowledged
        program="worker",
        target="dane_core.worker.outbox:Outbox.deliver",
        counts=_is_answer,
    ),
)
POINTS: Final = tuple(seam.point for seam in SEAMS)


class _Crash:
    """Counts the passings, and dies at the one that was asked for."""

    def __init__(self, asked: str, passed: Path | None) -> None:
        self.point, _, number = asked.partition(":")
        self._number = int(number or 1)
        self._passed = passed
        self._times: Counter[str] = Counter()

    def passing(self, point: str) -> None:
        self._times[point] += 1
        if self._passed is not None and self._times[point] == 1:
            with self._passed.open("a") as file:
                file.write(f"{point}\n")
        if point == self.point and self._times[point] == self._number:
            os._exit(CRASHED)


def install(program: Program) -> None:
    """Wrap the methods of a program's seams. Raises: LookupError, for a point or a method."""
    asked = os.environ.get(CRASH_VARIABLE, "")
    passed = os.environ.get(PASSED_VARIABLE)
    crash = _Crash(asked, Path(passed) if passed else None)
    if asked and crash.point not in POINTS:
        raise LookupError(f"{CRASH_VARIABLE}: no point is called {crash.point!r}: {POINTS}")
    for seam in seams_of(program):
        owner, name = find(seam)
        setattr(owner, name, _wrapped(getattr(owner, name), seam, crash))
    if program == "server":
        _watch_recording(hold=crash.point == "answers-acked")


def seams_of(program: Program) -> Iterable[Seam]:
    return (seam for seam in SEAMS if seam.program == program)


def find(seam: Seam) -> tuple[Any, str]:
    """Where the method of a seam is, and its name there. Raises: LookupError."""
    module, _, path = seam.target.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    try:
        for one in classes:
            owner = getattr(owner, one)
        getattr(owner, name)
    except AttributeError:
        raise LookupError(
            f"the crash point {seam.point} is at {seam.target}, which is not there any more: "
            "tests/faults/seams.py must follow"
        ) from None
    return owner, name


def _wrapped(inner: Any, seam: Seam, crash: _Crash) -> Any:
    def pass_by(call: Call) -> None:
        if not seam.counts(call):
            return
        if seam.delay:
            asyncio.get_running_loop().call_later(seam.delay, crash.passing, seam.point)
        else:
            crash.passing(seam.point)

    @functools.wraps(inner)
    async def waited(*args: Any, **kwargs: Any) -> Any:
        if seam.when == "before":
            pass_by(Call(args=args))
        result = await inner(*args, **kwargs)
        if seam.when == "after":
            pass_by(Call(args=args, result=result))
        return result

    @functools.wraps(inner)
    def called(*args: Any, **kwargs: Any) -> Any:
        if seam.when == "before":
            pass_by(Call(args=args))
        result = inner(*args, **kwargs)
        if seam.when == "after":
            pass_by(Call(args=args, result=result))
        return result

    return waited if inspect.iscoroutinefunction(inner) else called


def _watch_recording(*, hold: bool) -> None:
    """Note when answers were recorded; with `hold`, nothing is published from then on.

    A runner acknowledges and publishes side by side. To die between the two, the publishing
    has to be the slow one, as it may be.
    """
    from dane_core.exchange.amqp.exchange import AmqpExchange  # noqa: PLC0415
    from dane_server.storage.writer import Writer  # noqa: PLC0415 - of the server only

    record, publish = Writer.record, AmqpExchange.publish

    async def recorded(self: Writer, *args: Any, **kwargs: Any) -> Any:
        result = await record(self, *args, **kwargs)
        _record.settled = _record.settled or bool(result.settled)
        return result

    async def published(self: AmqpExchange, *args: Any) -> Any:
        if hold and _record.settled:
            await asyncio.Event().wait()
        return await publish(self, *args)

    setattr(Writer, "record", recorded)  # noqa: B010 - a method is replaced on purpose
    setattr(AmqpExchange, "publish", published)  # noqa: B010
