"""Worker processes of their own, for tests of what only a process can do: be held, be killed."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from dane_core import TaskContext, Worker
from dane_core.exchange.amqp import connect
from dane_core.worker.attempt import Pace
from dane_core.worker.serve import Serving, serve

_ROOT: Final = Path(__file__).parents[2]


class Holds(Worker):
    """Leaves a mark, then holds up the loop, and with it everything else in its process."""

    key = "HOLDS"

    class Args(BaseModel):
        marks: Path
        seconds: float

    async def work(self, task: TaskContext, args: Args) -> None:
        _leave_mark(args.marks, task)
        time.sleep(args.seconds)  # noqa: ASYNC251 - that is what it is about


class Stays(Worker):
    """Does not end by itself, and holds up nothing."""

    key = "STAYS"

    async def work(self, _task: TaskContext) -> None:
        await asyncio.Event().wait()


class Forks(Worker):
    """Leaves a process behind that holds everything this one has open, for some seconds."""

    key = "FORKS"

    async def work(self, _task: TaskContext) -> None:
        if os.fork() == 0:
            time.sleep(5)  # noqa: ASYNC251 - in the copy
            os._exit(0)


def _leave_mark(marks: Path, task: TaskContext) -> None:
    with marks.open("a") as file:
        file.write(f"{task.task_id}\n")


def main() -> None:
    """Serve as the argument says, until SIGTERM."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    logging.basicConfig(level="INFO")
    asyncio.run(_serve(told))


async def _serve(told: dict[str, Any]) -> None:
    draining = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, draining.set)
    serving = Serving(
        worker_id=told["worker_id"],
        response_queue=told["response_queue"],
        pulse=timedelta(seconds=told["pulse"]),
        beat=timedelta(seconds=told["beat"]),
        hello_every=timedelta(seconds=60),
        pace=Pace(hand_off=timedelta(seconds=told["hand_off"])),
        watched_at=told["url"],
    )
    async with connect(told["url"], name=told["worker_id"]) as exchange:
        await serve([Holds, Stays, Forks], exchange, serving, draining=draining)


@dataclass(frozen=True)
class Laboring:
    """A worker process, and what it logs."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def watchman(self) -> int:
        [child] = children(self.process.pid)
        return child

    async def says(self, text: str) -> None:
        """Wait until it has logged this."""
        await eventually(lambda: text in self.log.read_text())


@contextmanager
def laboring(url: str, log: Path, worker_id: str, **told: Any) -> Iterator[Laboring]:
    """A worker process with short times; killed at the end if it still runs."""
    brief = {"url": url, "worker_id": worker_id, "beat": 1.0, "hand_off": 60.0, "pulse": 1.0}
    code = "from tests.core.labor import main; main()"
    command = [sys.executable, "-c", code, json.dumps({**brief, **told})]
    with (
        log.open("wb") as output,
        subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stderr=output) as process,
    ):
        try:
            yield Laboring(process, log)
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command_line(pid: int) -> str:
    """How a process looks to whoever lists them."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not dead and waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def has_ended(pid: int) -> None:
    await eventually(lambda: not runs(pid))


async def heeds_sigterm(pid: int) -> None:
    """Wait until a process has a handler for it."""
    await eventually(lambda: bool(_caught(pid) & 1 << (signal.SIGTERM - 1)))


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds of another process, which has no event for it."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def _caught(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigCgt:")[2].split()[0], 16)
