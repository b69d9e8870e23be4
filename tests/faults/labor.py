"""The workers of the fault matrix: they write down each start and end, and what they produced."""

import asyncio
import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from pydantic import BaseModel

from dane_core import Failed, TaskContext, Worker
from tests.faults.history import FOLDER_VARIABLE, Began, Ended, History, Misbehaved
from tests.faults.trouble import TROUBLE

#: The worker's process id, for what its child processes write down.
PID_VARIABLE: Final = "FAULTS_WORKER_PID"


class LaborArgs(BaseModel):
    """What to do, and how it ends."""

    seconds: float = 0.0
    size: int = 0  # of the answer, in bytes
    steps: int = 0  # how often progress is told
    good: int = 1  # attempts before this one fail for now
    fatal: bool = False  # it fails for good
    hold: str = ""  # goes on only once this word was said; `go-2` is for attempt 2 alone
    does: str = ""  # one of `trouble`, in the end


class Shift:
    """One execution of `work`, from the first line of history to the last."""

    def __init__(self, task: TaskContext, args: LaborArgs) -> None:
        self._task = task
        self._args = args
        self._history = History(Path(os.environ[FOLDER_VARIABLE]))
        self._facts: dict[str, Any] = {
            "task_id": task.task_id,
            "attempt": task.attempt,
            "job_id": task.job_id,
            "key": task.key,
            "pid": int(os.environ.get(PID_VARIABLE, os.getpid())),
            "value": uuid4().hex,
        }
        self._ends_at = time.monotonic() + args.seconds
        self._history.note(Began(**self._facts))

    @property
    def over(self) -> bool:
        """Whether the work is done. Raises: Failed, when it was told to stop."""
        if self._task.cancelled:
            raise self._failed(499, "stopped when told to")
        if self._holds:
            return False
        left = self._ends_at - time.monotonic()
        if self._args.steps and self._args.seconds:
            step = int(self._args.steps * (1 - max(left, 0) / self._args.seconds))
            self._task.progress(step / self._args.steps)
        return left <= 0

    @property
    def _holds(self) -> bool:
        word = self._args.hold
        words = (word, f"{word}-{self._task.attempt}")
        return bool(word) and not any(map(self._history.has_word, words))

    def end(self) -> dict[str, Any]:
        """What the work answers with. Raises: Failed, as it was told."""
        if self._args.fatal:
            raise self._failed(500, "as it was told")
        if self._task.attempt < self._args.good:
            raise self._failed(503, "for now, as it was told")
        if does := self._args.does:
            this = {name: self._facts[name] for name in ("task_id", "attempt")}
            self._history.note(Misbehaved(**this, does=does))
            TROUBLE[does]()
        self._history.note(Ended(**self._facts))
        return {"value": self._facts["value"], "pad": "x" * self._args.size}

    def _failed(self, outcome: int, message: str) -> Failed:
        self._history.note(Ended(**self._facts, outcome=outcome))
        return Failed(message, outcome)


class Toil(Worker):
    """Works on the worker's event loop."""

    key = "TOIL"
    Args = LaborArgs

    async def work(self, task: TaskContext, args: LaborArgs) -> dict[str, Any]:
        shift = Shift(task, args)
        while not shift.over:  # noqa: ASYNC110 - other processes say the word
            await asyncio.sleep(0.01)
        return shift.end()


class ChildToil(Worker):
    """The same in a child process."""

    key = "CHILDTOIL"
    Args = LaborArgs

    def work(self, task: TaskContext, args: LaborArgs) -> dict[str, Any]:
        shift = Shift(task, args)
        while not shift.over:
            time.sleep(0.01)
        return shift.end()


class ThreadToil(ChildToil):
    """The same in a thread."""

    key = "THREADTOIL"
    run_in = "thread"


class Other(Toil):
    """Like TOIL, but not of every worker: for stories about what has no worker yet."""

    key = "OTHER"


class Spin(Worker):
    """Holds the interpreter of the worker itself, in C, for as long as it was told."""

    key = "SPIN"
    Args = LaborArgs

    async def work(self, task: TaskContext, args: LaborArgs) -> dict[str, Any]:
        shift = Shift(task, args)
        until = time.monotonic() + args.seconds
        while time.monotonic() < until:  # never awaits: nothing else runs on this loop
            zlib.crc32(b"x" * 1_000_000)
        return shift.end()


class Lethal(Worker):
    """Takes its worker along, every time."""

    key = "LETHAL"
    run_in = "thread"
    Args = LaborArgs

    def work(self, task: TaskContext, args: LaborArgs) -> None:
        Shift(task, args)
        os.kill(os.getpid(), signal.SIGKILL)


#: Whom every worker process of a rig serves, unless it is told otherwise.
CREW: Final = (Toil, ThreadToil, ChildToil)
#: All that a rig may have queues of.
EVERYONE: Final = (*CREW, Other, Spin, Lethal)
