"""Answers on disk until they are confirmed, so that they survive the process that has them.

    <folder>/<worker id>/lock                      held by flock while that worker lives
    <folder>/<worker id>/<task id>.<attempt>.json  an answer as it will be sent
    <folder>/unreadable/                           what could not be read, for people

Whoever can take the lock of a worker's folder has found a dead one, and sends what is in it.
"""

import asyncio
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import orjson

from dane_core.errors import BadMessage
from dane_core.message import Answer, Envelope, Ticket, open_report

logger = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")

#: An answer that nobody could deliver for so long is not wanted any more.
_KEPT: Final = timedelta(days=7)
#: A living worker touches its lock this often; flock may mean little on a shared folder.
_EVERY: Final = 60.0  # seconds
#: A folder of another host is taken over once its lock was not touched for this many seconds.
_ABSENCE: Final = 600.0
#: A disk that takes longer to write an answer down is not waited for.
_PATIENCE: Final = 10.0  # seconds
_LOCK: Final = "lock"
_ASIDE: Final = "unreadable"


def spool_folder(root: Path, exchange_url: str, response_queue: str) -> Path:
    """Where the answers for one deployment are kept: they mean nothing to another one."""
    parts = urlsplit(exchange_url)
    name = f"{parts.hostname}:{parts.port or 5672}{parts.path} {response_queue}"
    return root / hashlib.sha256(name.encode()).hexdigest()[:16]


class _DiskIsSilent(Exception):
    """It may never answer: a network that is gone, a device that is stuck."""


class Spool:
    """The answers of one worker process on disk, and those of dead ones.

    No fault of the disk is raised: an answer that cannot be kept is sent all the same.
    """

    def __init__(self, folder: Path, worker_id: str, host: str) -> None:
        self._root = folder
        self._own = folder / worker_id
        self._host = host
        self._lock: int | None = None
        self._moving_in = threading.Lock()  # answers are kept in several threads at once
        self._complaint = ""

    async def keep(self, answer: Answer) -> bool:
        """Write an answer down; true once it would survive a power cut."""
        return await self._on_disk(self._keep, answer) or False

    async def drop(self, ticket: Ticket) -> None:
        """The answer to this ticket has arrived."""
        await self._on_disk(self._remove, self._own / _name(ticket))

    async def find(self, ticket: Ticket) -> Answer | None:
        """The answer to a ticket, whichever worker on this disk had it."""
        return await self._on_disk(self._find, ticket)

    async def forget(self, ticket: Ticket) -> None:
        """The answer that was found for a ticket has arrived."""
        await self._on_disk(self._forget, ticket)

    async def run(self, send: Callable[[Answer], Awaitable[bool]]) -> None:
        """Send what dead workers left, now and every minute, until cancelled.

        `send` tells whether an answer has arrived; what has not is tried again the next time.
        """
        while True:
            await self.send_left(send)
            await asyncio.sleep(_EVERY)

    async def send_left(self, send: Callable[[Answer], Awaitable[bool]]) -> None:
        """Send what dead workers left, once."""
        with suppress(_DiskIsSilent):
            await self._in_time(self._touch)
            for folder in await self._in_time(self._others):
                async with self._taken(folder) as is_ours:
                    if is_ours and not await self._send_all(folder, send):
                        return  # nobody takes them now: the others can wait too

    async def send_from(
        self, worker_id: str, send: Callable[[Answer], Awaitable[bool]]
    ) -> bool | None:
        """Send what one worker left: whether all has arrived; None while somebody has it.

        What is on a disk that does not answer is not waited for.
        """
        folder = self._root / worker_id
        with suppress(_DiskIsSilent):
            if await self._in_time(folder.exists):
                async with self._taken(folder) as is_ours:
                    return await self._send_all(folder, send) if is_ours else None
        return True

    def close(self) -> None:
        """Leave; what is still there is anybody's."""
        if self._lock is not None:
            leaving = threading.Thread(target=_leave, args=(self._own, self._lock), daemon=True)
            leaving.start()
            leaving.join(_PATIENCE)
            self._lock = None

    async def _on_disk(self, act: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | None:
        """Do something in a thread; None when the disk does not answer."""
        with suppress(_DiskIsSilent):
            return await self._in_time(act, *args, **named)
        return None

    async def _in_time(self, act: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Do something in a thread. Raises: _DiskIsSilent."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return await asyncio.to_thread(act, *args, **named)
        except TimeoutError:
            raise self._silence() from None

    def _silence(self) -> "_DiskIsSilent":
        self._complain("answers are not kept: %s", TimeoutError("the disk does not answer"))
        return _DiskIsSilent()

    # --- our own ----------------------------------------------------------------------------

    def _keep(self, answer: Answer) -> bool:
        path = self._own / _name(answer.ticket)
        draft = path.with_suffix(".new")
        try:
            with self._moving_in:
                self._move_in()
            _write(draft, _packed(answer.seal()))
            draft.rename(path)
            _sync_folder(self._own)
        except OSError as fault:
            self._complain("answers are not kept on disk: %s", fault)
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            return False
        self._complaint = ""
        return True

    def _move_in(self) -> None:
        """Make our folder and hold its lock. Raises: OSError."""
        if self._lock is None:
            for folder in (self._root.parent, self._root):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while self._lock is None:
            self._own.mkdir(mode=0o700, exist_ok=True)
            # None: somebody found the folder before it was locked, and removed it.
            self._lock = _try_lock(self._own)
        _sync_folder(self._root)

    def _touch(self) -> None:
        if self._lock is not None:
            with suppress(OSError):
                os.utime(self._own / _LOCK)

    # --- of others --------------------------------------------------------------------------

    def _others(self) -> list[Path]:
        """Folders whose workers may be dead."""
        return [
            folder
            for folder in self._folders()
            if folder != self._own and (self._is_local(folder) or _is_deserted(folder))
        ]

    def _folders(self) -> list[Path]:
        try:
            return sorted(each for each in self._root.iterdir() if each.name != _ASIDE)
        except OSError:  # none of us has kept anything yet
            return []

    def _is_local(self, folder: Path) -> bool:
        return folder.name.startswith(f"{self._host}-")

    @asynccontextmanager
    async def _taken(self, folder: Path) -> AsyncIterator[bool]:
        """Hold the lock of a folder, if nobody else does. Raises: _DiskIsSilent."""
        lock = await self._lock_of(folder)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                await self._on_disk(_leave, folder, lock)

    async def _lock_of(self, folder: Path) -> int | None:
        locking = asyncio.create_task(asyncio.to_thread(_try_lock, folder))
        try:
            await asyncio.wait({locking}, timeout=_PATIENCE)
            if not locking.done():
                raise self._silence()
            return locking.result()
        except OSError:
            return None
        finally:
            if not locking.done():  # once it is had, nobody wants it any more
                locking.add_done_callback(_let_go)

    async def _send_all(self, folder: Path, send: Callable[[Answer], Awaitable[bool]]) -> bool:
        for path in await self._in_time(self._answers_in, folder):
            answer = await self._in_time(self._read, path)
            if answer is None:
                continue
            if not await send(answer):
                return False
            logger.info(
                "sent what %s had left: the answer of task %s", folder.name, answer.ticket.task_id
            )
            await self._in_time(self._remove, path)
        return True

    def _answers_in(self, folder: Path) -> list[Path]:
        """What a dead worker has left; what it was still writing goes."""
        try:
            for draft in folder.glob("*.new"):
                self._remove(draft)
            return sorted(folder.glob("*.json"))
        except OSError as fault:
            self._complain("a folder of answers cannot be read: %s", fault)
            return []

    def _find(self, ticket: Ticket) -> Answer | None:
        for folder in self._folders():
            path = folder / _name(ticket)
            if path.exists() and (answer := self._read(path)) is not None:
                return answer if answer.ticket.token == ticket.token else None
        return None

    def _forget(self, ticket: Ticket) -> None:
        for folder in self._folders():
            self._remove(folder / _name(ticket))

    def _read(self, path: Path) -> Answer | None:
        """An answer; None when it is too old, cannot be read, or is gone. Raises nothing."""
        try:
            if time.time() - path.stat().st_mtime > _KEPT.total_seconds():
                logger.warning("dropped an answer that is %d days old: %s", _KEPT.days, path)
                self._remove(path)
                return None
            return _unpacked(path.read_bytes())
        except FileNotFoundError:  # sent by somebody else meanwhile
            return None
        except OSError as fault:
            self._complain("an answer cannot be read: %s", fault)
        except (BadMessage, ValueError, KeyError, TypeError, AttributeError) as fault:
            self._put_aside(path, fault)
        return None

    def _put_aside(self, path: Path, fault: Exception) -> None:
        aside = self._root / _ASIDE
        logger.error("%s is not an answer (%s): moved to %s", path, fault, aside)
        try:
            aside.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside / f"{path.parent.name}.{path.name}")
        except OSError as trouble:
            self._complain("it could not be moved: %s", trouble)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as fault:
            self._complain("an answer that was sent stays on disk: %s", fault)

    def _complain(self, sentence: str, fault: OSError) -> None:
        """Log a fault of the disk: once, until something could be kept again."""
        if self._complaint != sentence:
            logger.error(sentence, fault)
            self._complaint = sentence


def _name(ticket: Ticket) -> str:
    return f"{ticket.task_id}.{ticket.attempt}.json"


def _packed(envelope: Envelope) -> bytes:
    return orjson.dumps(
        {
            "v": 1,
            "type": envelope.type,
            "correlation_id": envelope.correlation_id,
            "headers": dict(envelope.headers),
            "body": envelope.body.decode(),
        }
    )


def _unpacked(data: bytes) -> Answer:
    """Raises: ValueError, KeyError, TypeError, AttributeError, BadMessage."""
    saved: dict[str, Any] = orjson.loads(data)
    envelope = Envelope(
        type=saved["type"],
        body=saved["body"].encode() if isinstance(saved["body"], str) else b"",
        correlation_id=saved["correlation_id"],
        headers=saved["headers"],
    )
    report = open_report(envelope)
    if not isinstance(report, Answer):
        raise BadMessage(f"{envelope.type} instead of an answer")
    return report


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_deserted(folder: Path) -> bool:
    with suppress(OSError):
        return time.time() - (folder / _LOCK).stat().st_mtime > _ABSENCE
    return False


def _try_lock(folder: Path) -> int | None:
    """Hold the lock of a folder; None when somebody else does. Raises: OSError."""
    path = folder / _LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:  # the folder was removed
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever left may have removed the lock that we waited at.
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _let_go(locking: asyncio.Task[int | None]) -> None:
    if locking.cancelled() or locking.exception() is not None:
        return
    if (lock := locking.result()) is not None:
        os.close(lock)


def _leave(folder: Path, lock: int) -> None:
    """Let go of a folder, and remove it when nothing is in it."""
    with suppress(OSError):
        if [each.name for each in folder.iterdir()] == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(lock)
