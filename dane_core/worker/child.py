"""The child process: sets one worker up, does its tasks one at a time, dies with its parent."""

import asyncio
import ctypes
import faulthandler
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from dane_core.outcome import Done, Failed, Outcome
from dane_core.worker.answer import clean_text, failure_of
from dane_core.worker.context import Cancellation, TaskContext
from dane_core.worker.discover import Origin, load_origin
from dane_core.worker.isolation import LOADING
from dane_core.worker.pipe import Frame, Pipe
from dane_core.worker.place import await_work, do_work
from dane_core.worker.worker import Worker

logger = logging.getLogger(__name__)

#: Progress goes to the parent at most this often, in seconds; the latest wins.
_PROGRESS_PAUSE: Final = 0.2
#: Of a log line, the end in characters: that is where a traceback says what happened.
_LOG_LIMIT: Final = 64 * 1024
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main(fd: int, parent: int) -> None:
    """Run a child process at its end of the pipe; called by `isolation` only."""
    _die_with(parent)
    faulthandler.enable()  # a crash in a C library prints where Python was
    signal.signal(signal.SIGTERM, _terminate)
    pipe = Pipe(socket.socket(fileno=fd))
    start = pipe.receive()
    if start is not None:
        _forward_logs(pipe, start["level"])
        with asyncio.Runner() as runner, suppress(_Terminated):
            _Child(pipe, runner).live(Origin(**start["origin"]))
    # Threads that the work left running do not keep the process.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(0)


class _Terminated(BaseException):
    """The parent wants this process to end: raised in the midst of the work, to unwind it."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Terminated


class _Child:
    def __init__(self, pipe: Pipe, runner: asyncio.Runner) -> None:
        self._pipe = pipe
        self._runner = runner
        self._orders: queue.SimpleQueue[Frame] = queue.SimpleQueue()
        self._cancelled = Cancellation()  # of the present task
        self._progress: Frame = {}
        self._news = threading.Event()

    def live(self, origin: Origin) -> None:
        for listen in (self._hear_orders, self._tell_progress):
            threading.Thread(target=listen, daemon=True).start()
        worker = self._set_up(origin)
        if worker is None:
            return
        while (order := self._orders.get())["do"] == "work":
            self._pipe.send(self._work(worker, order["task"]))
        try:
            self._finish(worker.teardown())
        except Exception:
            logger.exception("%s: teardown failed", worker.key)

    def _set_up(self, origin: Origin) -> Worker | None:
        try:
            worker_class = load_origin(origin)
            os.environ.pop(LOADING, None)
            worker = worker_class()
            self._finish(worker.setup())
        except (Exception, SystemExit) as fault:
            logger.debug("setup failed", exc_info=fault)
            self._pipe.send({"is": "broken", "text": failure_of(fault).message})
            return None
        self._pipe.send({"is": "ready"})
        return worker

    def _work(self, worker: Worker, brief: Frame) -> Frame:
        def note_progress(fraction: float, message: str) -> None:
            ids = {"task_id": task.task_id, "attempt": task.attempt}
            text = clean_text(message)
            self._progress = {"is": "progress", "fraction": fraction, "message": text, **ids}
            self._news.set()

        task = TaskContext(**brief, cancelled=self._cancelled, on_progress=note_progress)
        if inspect.iscoroutinefunction(worker.work):
            outcome = self._runner.run(await_work(worker, task))
        else:
            outcome = do_work(worker, task)
        return _outcome_frame(outcome)

    def _finish(self, value: Any) -> None:
        """Wait for what an `async def setup` or `teardown` returned."""
        if inspect.iscoroutine(value):
            self._runner.run(value)

    def _tell_progress(self) -> None:
        while self._news.wait():
            self._news.clear()
            self._pipe.send(self._progress)
            time.sleep(_PROGRESS_PAUSE)

    def _hear_orders(self) -> None:
        while (order := self._pipe.receive()) is not None:
            match order["do"]:
                case "work":
                    self._cancelled = Cancellation()
                    self._orders.put(order)
                case "cancel":
                    self._cancelled.set()
                case "stop":
                    self._orders.put(order)
        # The parent is gone: so are we, and the processes that the work has started.
        os.killpg(os.getpid(), signal.SIGKILL)


def _outcome_frame(outcome: Outcome) -> Frame:
    match outcome:
        case Done(response=response, message=message):
            return {"is": "done", "message": message, "response": response}
        case Failed(message=message, state=state, response=response):
            return {"is": "failed", "message": message, "state": state, "response": response}
        case _:
            return {"is": "refused", "message": outcome.message, "delay": outcome.delay}


class _ForwardLogs(logging.Handler):
    """Hands every log line to the parent, who knows where logs go."""

    def __init__(self, pipe: Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        ids = {name: getattr(record, name, None) for name in ("task_id", "job_id", "attempt")}
        with suppress(OSError):
            self._pipe.send(
                {
                    "is": "log",
                    "name": record.name,
                    "level": record.levelno,
                    "text": clean_text(text[-_LOG_LIMIT:], _LOG_LIMIT),
                    "ids": {name: value for name, value in ids.items() if value is not None},
                }
            )


def _forward_logs(pipe: Pipe, level: int) -> None:
    root = logging.getLogger()
    root.handlers[:] = [_ForwardLogs(pipe)]
    root.setLevel(level)


def _die_with(parent: int) -> None:
    """Have the kernel kill us with our parent, even when a C library holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
