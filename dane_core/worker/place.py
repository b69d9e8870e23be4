"""Where work is done: on the loop, in a thread, or (see `isolation`) in a child process."""

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Protocol, Self

from dane_core.errors import BadWorker
from dane_core.outcome import Failed, Outcome, Refused
from dane_core.worker.answer import failure_of, outcome_of, read_args
from dane_core.worker.context import TaskContext
from dane_core.worker.worker import Worker

logger = logging.getLogger(__name__)

Run = Callable[[TaskContext], Awaitable[Outcome]]


class Place(Protocol):
    """Where the tasks of one worker class are done, once it is set up there."""

    async def __aenter__(self) -> Self:
        """Set the worker up. Raises: BadWorker, if it cannot be."""

    async def __aexit__(self, *exc: object) -> None:
        """Tear the worker down; nothing runs any more."""

    def seat(self) -> AbstractAsyncContextManager[Run]:
        """A seat for one task: what runs it there, ready to start at once.

        Cancelling the run stops the work as hard as the place can.
        Raises: Refused, when there can be no seat now.
        """


def do_work(worker: Worker, task: TaskContext) -> Outcome:
    """Do a task now, whatever may come of it."""
    try:
        value = worker.work(task, *read_args(type(worker), task.args))
    except (Exception, SystemExit) as error:  # noqa: BLE001  the attempt: all faults are outcomes
        value = _explain(error, task)
    return outcome_of(value, type(worker))


async def await_work(worker: Worker, task: TaskContext) -> Outcome:
    """Do a task on the loop, whatever may come of it, except being cancelled."""
    try:
        value = await worker.work(task, *read_args(type(worker), task.args))
    except asyncio.CancelledError as error:
        if (current := asyncio.current_task()) is not None and current.cancelling():
            raise
        value = _explain(error, task)  # the work raised it by itself
    except (Exception, SystemExit) as error:  # noqa: BLE001  the attempt: all faults are outcomes
        value = _explain(error, task)
    return outcome_of(value, type(worker))


def _explain(error: BaseException, task: TaskContext) -> Failed | Refused:
    if isinstance(error, Failed | Refused):
        return error
    task.log.error("%s raised", task.key, exc_info=error)
    return failure_of(error)


class LoopPlace:
    """One instance; its `async def work` shares the loop with everything else here."""

    def __init__(self, worker: type[Worker]) -> None:
        self._class = worker

    async def __aenter__(self) -> Self:
        try:
            self._worker = self._class()
            await _awaited(self._worker.setup())
        except Exception as fault:
            raise setup_failed(self._class, fault) from fault
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await _awaited(self._worker.teardown())
        except Exception:
            logger.exception("%s: teardown failed", self._class.key)

    def seat(self) -> AbstractAsyncContextManager[Run]:
        return nullcontext(partial(await_work, self._worker))


class ThreadPlace:
    """One instance, and a thread for each task. A thread cannot be stopped, only left alone."""

    def __init__(self, worker: type[Worker], slots: int) -> None:
        self._class = worker
        self._slots = slots
        self._threads: set[threading.Thread] = set()

    async def __aenter__(self) -> Self:
        try:
            self._worker = await asyncio.to_thread(self._class)
            await asyncio.to_thread(self._worker.setup)
        except Exception as fault:
            raise setup_failed(self._class, fault) from fault
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await asyncio.to_thread(self._worker.teardown)
        except Exception:
            logger.exception("%s: teardown failed", self._class.key)

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[Run]:
        if len(self._threads) >= self._slots:
            raise Refused(30.0, "earlier work that does not stop holds every slot")
        yield self._run

    async def _run(self, task: TaskContext) -> Outcome:
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Outcome] = loop.create_future()

        def work() -> None:
            done = do_work(self._worker, task)
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(finish, done)

        def finish(done: Outcome) -> None:
            self._threads.discard(thread)
            if not outcome.done():
                outcome.set_result(done)

        # A daemon: work that hangs must not keep the process from ending.
        thread = threading.Thread(target=work, name=f"{task.key} {task.task_id}", daemon=True)
        self._threads.add(thread)
        thread.start()
        return await outcome


def setup_failed(worker: type[Worker], fault: BaseException | str) -> BadWorker:
    text = fault if isinstance(fault, str) else f"{type(fault).__name__}: {fault}"
    return BadWorker(f"{worker.key} could not be set up: {text}")


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
