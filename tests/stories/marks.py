"""How workers in any process tell a test what they did, and a test lets them go on: files."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

#: Seconds after which something that should happen has not, on a machine with much else to do.
PATIENCE = 60.0


class Mark(NamedTuple):
    """What a worker did, in which attempt at which task."""

    what: str
    task_id: int
    attempt: int


@dataclass(frozen=True)
class Marks:
    """The marks in one folder, in the order in which they were left."""

    folder: Path

    def leave(self, what: str, task_id: int, attempt: int) -> None:
        line = f"{what} {task_id} {attempt}\n".encode()
        file = os.open(self.folder / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line)  # one write, so that lines of several processes do not mix
        finally:
            os.close(file)

    def all(self, what: str | None = None) -> list[Mark]:
        path = self.folder / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        marks = [_read(line) for line in lines]
        return [mark for mark in marks if what in (None, mark.what)]

    def tasks(self, what: str) -> list[int]:
        """The tasks with such a mark, one entry for each mark."""
        return [mark.task_id for mark in self.all(what)]

    def say(self, word: str = "go") -> None:
        """Let go on who waits for this word."""
        (self.folder / f"word-{word}").touch()

    def has_word(self, word: str) -> bool:
        return (self.folder / f"word-{word}").exists()

    async def seen(self, what: str, count: int = 1) -> list[Mark]:
        """Wait until there are so many marks of a kind."""
        await until(lambda: len(self.all(what)) >= count)
        return self.all(what)


def _read(line: str) -> Mark:
    what, task_id, attempt = line.split()
    return Mark(what, int(task_id), int(attempt))


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds that other processes bring about."""
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.02)


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """The same for what has to be asked for."""
    async with asyncio.timeout(PATIENCE):
        while not await holds():  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.05)
