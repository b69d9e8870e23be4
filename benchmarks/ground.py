"""What contenders run on: one broker, one database, and processes that end with the round.

Everybody gets a virtual host and a database of their own on the same two servers, which keep
what DANE promises: persistent messages, and a commit that is on the disk.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

import asyncmy

from tests.services.mariadb import database_at
from tests.services.provider import private_broker, private_database
from tests.services.rabbitmq import CONTROL_VARIABLE, virtual_host_at

#: Between two looks at whether a round is over, in seconds.
_GLANCE = 0.02
_GRACE = 20.0
#: Clock ticks in a second, as the kernel counts the time of processes.
_TICKS = os.sysconf("SC_CLK_TCK")


class Size(Enum):
    """How much is measured: a trial shows that it works, the whole is what targets are for."""

    TRIAL = "trial"
    USUAL = "usual"
    WHOLE = "whole"

    def of(self, *, trial: int, usual: int, whole: int | None = None) -> int:
        """How many of something; the whole is the usual, unless it is said."""
        sizes = {Size.TRIAL: trial, Size.USUAL: usual}
        return sizes.get(self, usual if whole is None else whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """A virtual host, a database and a folder for one contender in one round."""

    amqp_url: str
    mysql_url: str  # mysql+asyncmy://…/name
    folder: Path
    size: Size

    def mysql_as(self, driver: str) -> str:
        """The database's URL for another library: `mysql+pymysql`, say."""
        return urlsplit(self.mysql_url)._replace(scheme=driver).geturl()

    @asynccontextmanager
    async def process(self, *command: str, **environment: str) -> AsyncIterator["Process"]:
        """A command that runs for as long as the block, told to stop at its end."""
        log = self.folder / f"{Path(command[-1]).name}-{os.urandom(3).hex()}.log"
        plain = {name: text for name, text in os.environ.items() if not name.startswith("DANE_")}
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={**plain, **environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            yield Process(process, log)
        finally:
            await _end(process)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of a contender, and what it printed."""

    _process: asyncio.subprocess.Process
    _log: Path

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    async def says(self, text: str, within: float = 60.0) -> str:
        """Wait until it has printed this; all that it has. Raises: RuntimeError, TimeoutError."""
        async with asyncio.timeout(within):
            while text not in (said := self.said):
                if self._process.returncode is not None:
                    raise RuntimeError(f"it ended: {said[-2000:]}")
                await asyncio.sleep(_GLANCE)
        return said

    async def ended(self) -> None:
        """Wait until it has ended well. Raises: RuntimeError."""
        if code := await self._process.wait():
            raise RuntimeError(f"it ended with {code}: {self.said[-2000:]}")

    @property
    def peak_memory(self) -> float:
        """The most it has held in memory so far, in MB (Linux: VmHWM)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the kernel does not tell")

    @property
    def effort(self) -> float:
        """Processor seconds it has used so far, its threads included (Linux)."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / _TICKS


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()


class Books:
    """A look into a contender's database, at the same cost for all of them."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)

    async def __aenter__(self) -> Self:
        parts = self._url
        self._connection = await asyncmy.connect(
            user=parts.username,
            password=parts.password or "",
            host=parts.hostname,
            port=parts.port,
            db=parts.path.lstrip("/"),
            autocommit=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.close()

    async def number(self, query: str) -> Any:
        """The one value that a query gives."""
        row = await self.row(query)
        return row[0] if row else None

    async def row(self, query: str) -> Any:
        """The first row that a query gives."""
        async with self._connection.cursor() as cursor:
            await cursor.execute(query)
            return await cursor.fetchone()

    async def do(self, statement: str) -> None:
        """Change something."""
        async with self._connection.cursor() as cursor:
            await cursor.execute(statement)

    async def numbers(self, query: str) -> list[float]:
        """The first value of every row that a query gives."""
        async with self._connection.cursor() as cursor:
            await cursor.execute(query)
            return [float(row[0]) for row in await cursor.fetchall()]

    async def reaches(self, query: str, wanted: int, within: float = 600.0) -> None:
        """Wait until a count is as high as wanted. Raises: TimeoutError."""
        async with asyncio.timeout(within):
            while (await self.number(query) or 0) < wanted:  # noqa: ASYNC110  another process counts
                await asyncio.sleep(_GLANCE)


@contextmanager
def grounds(size: Size) -> Iterator["Grounds"]:
    """The servers, started for this run. Raises: NoService."""
    with private_broker() as broker, private_database() as database:
        os.environ[CONTROL_VARIABLE] = shlex.join(broker.control_command)
        yield Grounds(broker.url, database.url, size)


@dataclass(frozen=True, slots=True)
class Grounds:
    """Gives each contender in each round a ground of its own."""

    amqp_url: str
    mysql_url: str
    size: Size

    @contextmanager
    def new(self) -> Iterator[Ground]:
        with (
            virtual_host_at(self.amqp_url) as virtual_host,
            database_at(self.mysql_url) as mysql_url,
            TemporaryDirectory(prefix="dane-bench-") as folder,
        ):
            yield Ground(
                amqp_url=virtual_host.url,
                mysql_url=mysql_url,
                folder=Path(folder),
                size=self.size,
            )


def python(*arguments: str) -> tuple[str, ...]:
    """A command line for the Python that runs this."""
    return (sys.executable, *arguments)


def settings(**sections: Mapping[str, object]) -> dict[str, str]:
    """Settings of DANE as its environment has them."""
    return {
        f"DANE_{section}__{name}": str(value)
        for section, members in sections.items()
        for name, value in members.items()
    }
