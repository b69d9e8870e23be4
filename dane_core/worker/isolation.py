"""Child processes: a crash, a hang or a leak in one costs an attempt and not the worker."""

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Self

from dane_core.errors import BadWorker
from dane_core.outcome import Done, Failed, Outcome, Refused
from dane_core.worker.context import TaskContext
from dane_core.worker.discover import origin_of
from dane_core.worker.ending import OomKills, how_it_ended, memory_events, wait_for
from dane_core.worker.pipe import Frame, pack, read_frame
from dane_core.worker.place import LoopPlace, Place, Run, ThreadPlace, setup_failed
from dane_core.worker.worker import Worker, place_of

logger = logging.getLogger(__name__)

#: How long a child may take to end after a polite word, in seconds, before it is killed.
PATIENCE: Final = 3.0

#: Between two polite words, in seconds.
_ASK_AGAIN: Final = 0.1

#: Set in a child's environment until it has loaded its worker.
LOADING: Final = "DANE_CHILD_LOADING"

#: Without our own sys.path a child might not find this very package.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dane_core.worker.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)

_oom_kills: Final = OomKills(memory_events())


def place_for(worker: type[Worker], slots: int) -> Place:
    """Where the tasks of a worker are done, not yet open; at most `slots` at once.

    Raises: BadWorker, in a child that is still loading its worker: a script that serves
    when it is imported would make children of children without end.
    """
    if LOADING in os.environ:
        raise BadWorker(
            f"{worker.key} is served by the very module a child process imports to do its "
            'tasks: put that under  if __name__ == "__main__":'
        )
    match place_of(worker):
        case "loop":
            return LoopPlace(worker)
        case "thread":
            return ThreadPlace(worker, slots)
        case "process":
            return ProcessPlace(worker)


class ProcessPlace:
    """Children of one worker class: as many as are at work at once, and used again."""

    def __init__(self, worker: type[Worker]) -> None:
        self._class = worker
        self._idle: list[Child] = []
        self._all: set[Child] = set()

    async def __aenter__(self) -> Self:
        origin_of(self._class)
        # A setup is worth waiting for now: it may fail, and it may take minutes.
        if self._class.setup is not Worker.setup:
            self._idle.append(await self._new_child())
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(child.close() for child in self._all))

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[Run]:
        child = self._idle_child() or await self._new_child()
        try:
            yield child.work
        finally:
            if child.is_free:
                self._idle.append(child)
            else:
                self._all.discard(child)

    def _idle_child(self) -> "Child | None":
        while self._idle:
            child = self._idle.pop()
            if child.is_free:
                return child
            self._all.discard(child)
        return None

    async def _new_child(self) -> "Child":
        child = Child(self._class)
        self._all.add(child)
        try:
            await child.start()
        except BaseException:
            self._all.discard(child)
            raise
        return child


class Child:
    """A process of our own that does tasks of one worker class, one at a time."""

    def __init__(self, worker: type[Worker]) -> None:
        self._class = worker
        self._loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[str] = self._loop.create_future()  # how, in words
        self._set_up: asyncio.Future[str | None] = self._loop.create_future()
        self._task: TaskContext | None = None
        self._outcome: asyncio.Future[Outcome] = self._loop.create_future()
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process and set the worker up in it. Raises: BadWorker."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(theirs.fileno(), self._class)
            except OSError as fault:
                ours.close()
                raise setup_failed(self._class, fault) from fault
        threading.Thread(target=self._wait_for_exit, daemon=True).start()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._life = asyncio.create_task(self._hear_until_the_end(reader))
        self._send({"origin": origin_of(self._class).as_json(), "level": _log_level()})
        try:
            fault_text = await asyncio.shield(self._set_up)
        except asyncio.CancelledError:
            await self._end()
            raise
        if fault_text is not None:
            await self._end()
            raise setup_failed(self._class, fault_text)

    @property
    def is_free(self) -> bool:
        return self._task is None and self._ending is None and not self._exit.done()

    async def work(self, task: TaskContext) -> Outcome:
        """Have the child do a task. When this is cancelled, the child is ended."""
        if self._life.done():
            return Refused(0.0, "the process ended before it began")
        self._task, self._outcome = task, self._loop.create_future()
        task.cancelled.then(lambda: self._loop.call_soon_threadsafe(self._cancel, task))
        self._send({"do": "work", "task": _brief(task)})
        try:
            return await asyncio.shield(self._outcome)
        except asyncio.CancelledError:
            await self._end()
            raise
        finally:
            self._task = None

    async def close(self) -> None:
        """Let the worker be torn down, and the process end."""
        self._send({"do": "stop"})
        await asyncio.wait({self._life}, timeout=PATIENCE)
        await self._end()

    def _cancel(self, task: TaskContext) -> None:
        if self._task is task:
            self._send({"do": "cancel"})

    async def _end(self) -> None:
        if self._ending is None:
            self._ending = asyncio.create_task(self._terminate())
        await asyncio.shield(self._ending)

    async def _terminate(self) -> None:
        """Ask the process to unwind and end; make it, when it does not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + PATIENCE
        # More than once: Python acts on a signal between two steps, and misses one that comes
        # just before a step that sleeps.
        while not self._life.done() and loop.time() < until:
            self._signal(signal.SIGTERM)
            await asyncio.wait({self._life}, timeout=_ASK_AGAIN)
        self._signal(signal.SIGKILL)
        await self._life

    def _signal(self, number: signal.Signals) -> None:
        # Until somebody has waited for the process, its number is nobody else's.
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _wait_for_exit(self) -> None:
        """In a thread of its own: wait for the process, and end what it leaves running."""
        pid = self._process.pid
        if hasattr(os, "waitid"):
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        code, peak = wait_for(pid)
        self._process.returncode = code
        words = how_it_ended(code, peak, oom=code == -signal.SIGKILL and _oom_kills.noticed())
        with suppress(RuntimeError):  # the loop has ended before the child
            self._loop.call_soon_threadsafe(self._exit.set_result, words)

    async def _hear_until_the_end(self, reader: asyncio.StreamReader) -> None:
        hearing: asyncio.Future[Any] = asyncio.create_task(self._hear(reader))
        await asyncio.wait({hearing, self._exit}, return_when=asyncio.FIRST_COMPLETED)
        # One goes soon after the other, unless the child lost its pipe, or gave it away.
        await asyncio.wait({hearing, self._exit}, timeout=PATIENCE)
        self._signal(signal.SIGKILL)
        words = await self._exit
        hearing.cancel()
        self._writer.close()
        if not self._set_up.done():
            self._set_up.set_result(words)
        if not self._outcome.done():
            self._outcome.set_result(Failed(f"the process doing {self._class.key} {words}"))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while (frame := await read_frame(reader)) is not None:
            match frame["is"]:
                case "ready":
                    self._set_up.set_result(None)
                case "broken":
                    self._set_up.set_result(frame["text"])
                case "progress":
                    self._note_progress(frame)
                case "log":
                    _log_for_child(frame)
                case _ if not self._outcome.done():
                    self._outcome.set_result(_outcome(frame))

    def _note_progress(self, frame: Frame) -> None:
        task = self._task
        if task and (task.task_id, task.attempt) == (frame["task_id"], frame["attempt"]):
            task.on_progress(frame["fraction"], frame["message"])

    def _send(self, frame: Frame) -> None:
        if not self._writer.is_closing():
            self._writer.write(pack(frame))


def _spawn(end: int, worker: type[Worker]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(end), str(os.getpid())]
    return subprocess.Popen(  # noqa: S603  our own interpreter, our own code
        [*command, worker.key],  # the key is for people who look at the process list
        env={**os.environ, LOADING: worker.key},
        stdin=subprocess.DEVNULL,
        stdout=2,  # what work prints must not get between what the parent prints
        pass_fds=(end,),
        start_new_session=True,  # Ctrl-C is for the parent, who drains
    )


def _brief(task: TaskContext) -> Frame:
    here = ("cancelled", "on_progress")
    names = [field.name for field in dataclasses.fields(task) if field.name not in here]
    return {name: getattr(task, name) for name in names}


def _outcome(frame: Frame) -> Outcome:
    match frame:
        case {"is": "done", "response": response, "message": message}:
            return Done(response, message)
        case {"is": "refused", "delay": delay, "message": message}:
            return Refused(delay, message)
        case _:
            return Failed(frame["message"], frame["state"], frame["response"])


def _log_level() -> int:
    """The lowest level that may be wanted; what comes is judged again here."""
    ours = logging.getLogger("dane_core")
    return min(ours.getEffectiveLevel(), logging.getLogger().getEffectiveLevel())


def _log_for_child(frame: Frame) -> None:
    source = logging.getLogger(frame["name"])
    if source.isEnabledFor(frame["level"]):
        text = (frame["text"],)
        ids: dict[str, Any] = frame["ids"]
        source.handle(
            source.makeRecord(source.name, frame["level"], "", 0, "%s", text, None, extra=ids)
        )
