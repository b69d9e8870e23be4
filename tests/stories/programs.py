"""`dane` in processes of its own, as people run it: started, told to stop, killed."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from tests.stories.marks import PATIENCE, until

#: The command as it is installed beside this Python.
DANE = Path(sys.executable).with_name("dane")


class Program:
    """A `dane` that runs. What it prints is in files, and in the message when a test fails."""

    def __init__(self, process: asyncio.subprocess.Process, out: Path, err: Path) -> None:
        self._process = process
        self._out = out
        self._err = err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    async def facts(self) -> dict[str, Any]:
        """The first line of its output, where that is JSON."""
        await self.says("\n")
        facts: dict[str, Any] = json.loads(self.out.splitlines()[0])
        return facts

    async def says(self, text: str) -> None:
        """Wait until it has printed this."""

        def said() -> bool:
            assert self._process.returncode is None, f"it ended: {self.out}{self.err}"
            return text in self.out

        await until(said)

    def kill(self) -> None:
        """As `kill -9` does."""
        self._process.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def close(self) -> None:
        if self._process.returncode is None:
            self.terminate()
            with suppress(TimeoutError):
                await self.ended()
        if self._process.returncode is None:
            self.kill()
            await self.ended()


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """The environment of somebody who has configured nothing but these."""
    plain = {name: text for name, text in os.environ.items() if not name.startswith("DANE_")}
    return {**plain, "DANE_HOME": str(folder / "home"), "COLUMNS": "200", **settings}


_numbers = count(1)


@asynccontextmanager
async def running(*args: str | Path, folder: Path, **settings: str) -> AsyncIterator[Program]:
    """`dane ARGS` in a folder; told to stop at the end, if it has not ended by then."""
    number = next(_numbers)
    out, err = folder / f"program-{number}.out", folder / f"program-{number}.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = await asyncio.create_subprocess_exec(
            DANE,
            *map(str, args),
            cwd=folder,
            env=environment(folder, **settings),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out_file,
            stderr=err_file,
        )
    program = Program(process, out, err)
    try:
        yield program
    finally:
        await program.close()


async def finished(*args: str | Path, folder: Path, **settings: str) -> tuple[int, str, str]:
    """`dane ARGS` run to its end: exit code, output, and what it complained about."""
    async with running(*args, folder=folder, **settings) as program:
        return await program.ended(), program.out, program.err
