"""The watchman: a small process that speaks for its worker when the worker cannot.

A worker whose interpreter is held, by a C extension or by work that blocks its loop, sends no
heartbeats and loses its connection, and would look dead. Its watchman then sends them in its
stead. And when the worker has really died, its watchman says so at once. It is no part of any
work: it holds nothing, and ends soon after its worker.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.amqp.line import open_line
from dane_core.exchange.amqp.publisher import Publisher
from dane_core.exchange.base import Fate
from dane_core.message import Gone, Heartbeat, Leased, Report, Ticket
from dane_core.worker.pipe import Frame, pack, read_frame
from dane_core.worker.spool import Spool
from dane_core.worker.watched import LOG_LINE, Brief, Running

logger = logging.getLogger("dane_core.worker.watchman")

#: A worker that has said nothing for so many pulses cannot speak.
_MISSED_PULSES: Final = 3
#: For one word to the broker, in seconds.
_PATIENCE: Final = 5.0
#: Between two tries to be heard, in seconds.
_AGAIN: Final = 0.2
#: How often a watchman tries to get at the answers its worker left.
_TRIES_AT_SPOOL: Final = 5
#: How long a watchman tries to say that its worker is gone, in seconds; less when it is told to
#: end itself, as a service manager does that clears up after a crash.
_LAST_WORDS: Final = 30.0
_LAST_WORDS_WHEN_TOLD: Final = 1.0
#: Between the end of the pipe and the end of the process that held it, in seconds.
_DYING: Final = 1.0
#: States of a process, in /proc, that does nothing: stopped by a signal, traced, dead.
_INERT: Final = frozenset("TtZX")

_ENDED: Final = "its process has ended without a goodbye"


def main(fd: int, parent: int) -> None:
    """Run a watchman at its end of the pipe; called by `watched` only."""
    asyncio.run(_main(socket.socket(fileno=fd), parent))


async def _main(pipe: socket.socket, parent: int) -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    reader, writer = await asyncio.open_connection(sock=pipe)
    if (first := await read_frame(reader)) is None:
        return
    del first["is"]
    brief = Brief(**first)
    logging.basicConfig(level=brief.log_level, format=LOG_LINE)
    for name in ("aio_pika", "aiormq", "dane_core.exchange"):  # we say ourselves what matters
        logging.getLogger(name).setLevel(logging.CRITICAL)
    voice = _Voice(brief, on_ready=lambda: writer.write(pack({"is": "ready"})))
    speaking = asyncio.create_task(voice.keep())
    try:
        reason = await _Watch(brief, parent, voice).follow(reader)
        if reason is not None:
            gone = Gone(worker=brief.worker, reason=reason)
            await _say_last_words(gone, _spool_of(brief), voice, told)
    finally:
        speaking.cancel()
        await asyncio.wait({speaking}, timeout=_AGAIN)
        writer.close()
    os._exit(0)  # whatever a broken wire may still hold up


async def _say_last_words(
    gone: Gone, spool: Spool | None, voice: "_Voice", told: asyncio.Event
) -> None:
    logger.warning("worker %s is gone: %s; telling the server", gone.worker, gone.reason)
    _let_go_of_output()
    saying: asyncio.Task[object] = asyncio.create_task(_say_gone(gone, spool, voice))
    hurry: asyncio.Task[object] = asyncio.create_task(told.wait())
    either = {saying, hurry}
    await asyncio.wait(either, timeout=_LAST_WORDS, return_when=asyncio.FIRST_COMPLETED)
    if hurry.done():
        await asyncio.wait({saying}, timeout=_LAST_WORDS_WHEN_TOLD)


async def _say_gone(gone: Gone, spool: Spool | None, voice: "_Voice") -> None:
    """What it had worked out is said first: with it are gone the attempts that it answers."""
    tries = 0
    while spool is not None and tries < _TRIES_AT_SPOOL:
        sent = await spool.send_from(gone.worker, voice.say)
        if sent:
            break
        tries += sent is None  # somebody else has it, or the process is not quite dead
        await asyncio.sleep(_AGAIN)
    await voice.insist(gone)


def _spool_of(brief: Brief) -> Spool | None:
    if brief.spool is None:
        return None
    return Spool(Path(brief.spool), f"{brief.worker}-watchman", socket.gethostname())


def _let_go_of_output() -> None:
    """Whoever reads what the worker printed waits until nobody can print any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)


class _Voice:
    """A connection to the broker of its own, opened early and kept, to send reports over."""

    def __init__(self, brief: Brief, on_ready: Callable[[], object]) -> None:
        self._brief = brief
        self._on_ready = on_ready
        self._publisher: Publisher | None = None

    async def keep(self) -> None:
        """Stay connected until cancelled."""
        name = f"dane watchman of {self._brief.worker}"
        while True:
            with suppress(ExchangeUnreachable):
                async with open_line(self._brief.url, name, _PATIENCE) as line:
                    self._publisher = Publisher(line, on_missing=lambda: None)
                    self._on_ready()
                    await asyncio.Event().wait()
            await asyncio.sleep(1)

    async def say(self, report: Report) -> bool:
        """Say something once; whether it has arrived."""
        if self._publisher is None:
            return False
        envelope = report.seal()
        (fate,) = await self._publisher.publish("", [(self._brief.response_queue, envelope)])
        return fate is Fate.ROUTED

    async def insist(self, report: Report) -> None:
        """Say something until it has arrived."""
        while not await self.say(report):  # noqa: ASYNC110 - a broker tells nobody that it is back
            await asyncio.sleep(_AGAIN)


class _Watch:
    """What is known of the worker, and what is to be said about it."""

    def __init__(self, brief: Brief, parent: int, voice: _Voice) -> None:
        self._brief = brief
        self._parent = parent
        self._voice = voice
        self._heard = time.monotonic()
        self._running: dict[Ticket, _Known] = {}
        self._standing_in = False

    async def follow(self, reader: asyncio.StreamReader) -> str | None:
        """Watch the worker to its end: how it is gone, or None when it left in good order."""
        hearing: asyncio.Task[str | None] = asyncio.create_task(self._hear(reader))
        speaking = asyncio.create_task(self._speak())
        try:
            while not hearing.done():
                await asyncio.wait({hearing}, timeout=self._brief.pulse)
                if not self._parent_exists() and not hearing.done():
                    # Somebody holds its end of the pipe: a process forked from it.
                    await asyncio.wait({hearing}, timeout=_AGAIN)
                    break
            return hearing.result() if hearing.done() else _ENDED
        finally:
            hearing.cancel()
            speaking.cancel()

    async def _hear(self, reader: asyncio.StreamReader) -> str | None:
        while (frame := await read_frame(reader)) is not None:
            self._heard = time.monotonic()
            match frame["is"]:
                case "pulse":
                    known = [_known(attempt) for attempt in frame["running"]]
                    self._running = {each.ticket: each for each in known}
                case "began":
                    for ticket in (Ticket(**fields) for fields in frame["tickets"]):
                        self._running[ticket] = _Known(ticket, runtime=0.0, leased=False)
                case "gone":
                    return "it has ended in the midst of its work"
                case "goodbye":
                    return None
        return await self._how_it_ended()

    async def _how_it_ended(self) -> str | None:
        until = time.monotonic() + _DYING
        while self._parent_exists():
            if time.monotonic() > until:
                return None  # it lives, and does not want this watchman any more
            await asyncio.sleep(_DYING / 100)
        return _ENDED

    def _parent_exists(self) -> bool:
        return os.getppid() == self._parent

    # --- in its stead -------------------------------------------------------------------------

    async def _speak(self) -> None:
        beat_due = 0.0
        last_look = time.monotonic()
        while True:
            await asyncio.sleep(self._brief.pulse / 2)
            now = time.monotonic()
            if now - last_look > _MISSED_PULSES * self._brief.pulse:
                self._heard = now  # we have been away ourselves, and know nothing of the worker
            last_look = now
            if not self._must_stand_in(now):
                beat_due = 0.0
            elif await self._say_leased() and now >= beat_due and await self._say_alive():
                beat_due = now + self._brief.beat

    def _must_stand_in(self, now: float) -> bool:
        silence = now - self._heard
        silent = silence > _MISSED_PULSES * self._brief.pulse and bool(self._running)
        must = silent and not is_inert(self._parent)
        if must and not self._standing_in:
            names = ", ".join(str(ticket.task_id) for ticket in [*self._running][:10])
            logger.warning(
                "worker %s has not been able to speak for %.1f s, with task %s running: "
                "its watchman sends its heartbeats",
                self._brief.worker,
                silence,
                names,
            )
        elif self._standing_in and not must:
            logger.info("worker %s speaks for itself again, or does nothing", self._brief.worker)
        self._standing_in = must
        return must

    async def _say_leased(self) -> bool:
        """Whether every attempt is on a lease: it will lose its message with the connection."""
        for known in [*self._running.values()]:
            if not known.leased:
                known.leased = await self._voice.say(
                    Leased(
                        ticket=known.ticket,
                        worker=self._brief.worker,
                        runtime=known.runtime,
                        lease=self._brief.lease,
                    )
                )
        return all(known.leased for known in self._running.values())

    async def _say_alive(self) -> bool:
        known = [*self._running.values()]
        return await self._voice.say(
            Heartbeat(
                worker=self._brief.worker,
                running=tuple(each.ticket for each in known),
                lease=self._brief.lease,
                leased=frozenset(each.ticket for each in known if each.leased),
            )
        )


class _Known:
    """An attempt that runs, or did when the worker was last heard of."""

    def __init__(self, ticket: Ticket, *, runtime: float, leased: bool) -> None:
        self.ticket = ticket
        self.leased = leased
        self._began = time.monotonic() - runtime

    @property
    def runtime(self) -> float:
        return time.monotonic() - self._began


def _known(frame: Frame) -> _Known:
    attempt = Running(**{**frame, "ticket": Ticket(**frame["ticket"])})
    return _Known(attempt.ticket, runtime=attempt.runtime, leased=attempt.leased)


def is_inert(process: int) -> bool:
    """Whether a process is stopped or dead; false where that cannot be found out."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text("utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in _INERT
