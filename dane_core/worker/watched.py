"""Being watched: a child process that speaks for this worker when it cannot; see `watchman`."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Self

from dane_core.message import Ticket
from dane_core.worker.pipe import Frame, pack, read_frame

logger = logging.getLogger(__name__)

#: How a line of the log looks, here and there.
LOG_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: Without our own sys.path a child might not find this very package.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dane_core.worker.watchman import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)

#: Before the next watchman is posted: the first pause and the longest, in seconds.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
#: A watchman that was told to go gets this long, in seconds.
_FAREWELL: Final = 1.0
#: Words for a watchman that does not listen are dropped beyond this many bytes.
_BACKLOG: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What a watchman is told first. Times in seconds."""

    url: str = field(repr=False)
    worker: str
    response_queue: str
    pulse: float
    beat: float
    lease: float
    spool: str | None = None  # the folder, if answers are kept
    log_level: int = logging.INFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """An attempt as a watchman knows it."""

    ticket: Ticket
    runtime: float  # seconds
    leased: bool


class Watched:
    """Keeps a watchman while inside, and tells it each moment what runs.

    Without a watchman the worker goes on; another one is posted. On leaving, the watchman says
    that the worker is gone, unless `said_goodbye`.
    """

    def __init__(self, brief: Brief, running: Callable[[], Sequence[Running]]) -> None:
        self.said_goodbye = False
        #: Whether a watchman is there and could be heard.
        self.connected = False
        self._brief = brief
        self._running = running
        self._writer: asyncio.StreamWriter | None = None
        self._begun: list[Ticket] = []
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    def note_begin(self, ticket: Ticket) -> None:
        """Say that an attempt begins. Its work is to begin in a task that is made after this.

        That work may hold up everything else here, so it is said before: what begins in one
        turn of the loop is told when the next begins, and only then comes the turn of the work.
        """
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._tell_begun)
        self._begun.append(ticket)

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, []
        self._tell({"is": "began", "tickets": begun})

    async def _keep(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                how = await self._be_watched()
            except OSError as fault:
                how = str(fault)
            if pause == _FIRST_PAUSE:
                logger.warning("the watchman of this worker has ended (%s); posting another", how)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _be_watched(self) -> str:
        """Have a watchman until it ends; how that came about. Raises: OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = _spawn(theirs.fileno(), self._brief.worker)
            except OSError:
                ours.close()
                raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            level = logging.getLogger("dane_core").getEffectiveLevel()
            self._tell({"is": "brief", **asdict(self._brief), "log_level": level})
            await self._pulse(reader)
        except asyncio.CancelledError:
            self._tell({"is": "goodbye" if self.said_goodbye else "gone"})
            raise
        finally:
            self._writer.close()
            self._writer = None
            await asyncio.shield(_see_off(process))
        return f"exit code {process.returncode}"

    async def _pulse(self, reader: asyncio.StreamReader) -> None:
        hearing = asyncio.create_task(self._hear(reader))
        try:
            while not hearing.done():
                running = [asdict(attempt) for attempt in self._running()]
                self._tell({"is": "pulse", "running": running})
                await asyncio.wait({hearing}, timeout=self._brief.pulse)
        finally:
            hearing.cancel()
            self.connected = False

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Listen until the watchman ends; it says only when it has its own connection."""
        while await read_frame(reader) is not None:
            self.connected = True
            logger.info("a watchman is there, to speak for this worker when it cannot")

    def _tell(self, frame: Frame) -> None:
        writer = self._writer
        if writer is None or writer.is_closing():
            return
        if writer.transport.get_write_buffer_size() < _BACKLOG:
            writer.write(pack(frame))


async def _see_off(process: "subprocess.Popen[bytes]") -> None:
    """Wait a moment for a watchman to end; one that still tries to be heard is left to it."""
    # A daemon, unlike the loop's own threads: it must not keep this process.
    waiting = threading.Thread(target=process.wait, daemon=True)
    waiting.start()
    await asyncio.to_thread(waiting.join, _FAREWELL)


def _spawn(end: int, worker: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), str(end), str(os.getpid())]
    return subprocess.Popen(  # noqa: S603  our own interpreter, our own code
        [*command, f"watchman of {worker}"],  # for people who look at the process list
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(end,),
        start_new_session=True,  # what ends the worker's terminal or group is to be told by it
    )
