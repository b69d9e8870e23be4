"""Makes of a specification what can be stored, without holding anybody else up.

A small one is read at once, a larger one in a thread. A very large one is read in a process of
its own: Python lets one thread go on at a time, and its values would fill this process's memory.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

import orjson

from dane_core.errors import BadSpec, Fault, Unreachable
from dane_core.spec import JobSpec, Limits, Parallel, parse_job
from dane_server.graph import Graph, compile_graph
from dane_server.storage.nodes import PackedGraph

#: Longer specifications are read in a thread.
_LONG: Final = 32 * 1024
#: Those with more values, or longer than this, are read in a process of their own.
_VALUES: Final = 50_000
_BYTES: Final = 1024 * 1024
#: So many are read in such processes at a time: each may take a hundred times its bytes.
_PROCESSES: Final = 2
_WRITTEN_AT_ONCE: Final = 1024 * 1024

#: Without our own sys.path it might not find this very package.
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dane_server.runner.reading import main; main()"
)

#: The tasks of a specification that was read elsewhere are in its graph alone.
_ELSEWHERE: Final = Parallel(())

Schemas = Mapping[str, Mapping[str, Any]]
#: Gives the schemas that there are for the args of some keys.
Ask = Callable[[Iterable[str]], Awaitable[Schemas]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A specification that was read and compiled."""

    spec: JobSpec
    graph: Graph | PackedGraph  # a packed one is of args that were checked


def draft(raw: bytes, limits: Limits) -> Draft:
    """Read and compile a specification, here and now. Raises: BadSpec."""
    return drafted(parse_job(raw, limits))


def drafted(spec: JobSpec) -> Draft:
    return Draft(spec=spec, graph=compile_graph(spec.tasks))


def is_very_large(raw: bytes) -> bool:
    """Whether a specification is to be read in a process of its own."""
    return len(raw) > _BYTES or raw.count(b",") + raw.count(b":") > _VALUES


class Drafts:
    """Reads specifications, very large ones a few at a time."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._places = asyncio.Semaphore(_PROCESSES)

    async def read(self, raw: bytes, limits: Limits) -> Draft:
        """Read and compile a specification. Raises: BadSpec; Unreachable."""
        if is_very_large(raw):
            try:
                async with self._places, _reading() as other:
                    return await self._read_by(other, raw, limits)
            except (EOFError, OSError) as fault:  # no memory, as a rule
                told = "the process that reads a very large specification ended early"
                raise Unreachable(f"{told} ({type(fault).__name__})") from None
        if len(raw) > _LONG:
            return await asyncio.to_thread(draft, raw, limits)
        return draft(raw, limits)

    async def _read_by(self, other: "_Other", raw: bytes, limits: Limits) -> Draft:
        await other.send(orjson.dumps(asdict(limits)))
        await other.send(raw)
        found = _whole(await other.receive())
        await other.send(orjson.dumps(await self._ask(found["keys"])))
        found = _whole(await other.receive())
        return Draft(
            spec=JobSpec(tasks=_ELSEWHERE, **found["spec"]),
            graph=PackedGraph(
                **found["graph"],
                node_parts=await other.receive_all(),
                link_parts=await other.receive_all(),
            ),
        )


@dataclass(frozen=True, slots=True)
class _Other:
    """A process that reads one specification, and how it is spoken to."""

    hears: asyncio.StreamWriter
    says: asyncio.StreamReader

    async def send(self, text: bytes) -> None:
        self.hears.write(len(text).to_bytes(8, "big"))
        for start in range(0, len(text), _WRITTEN_AT_ONCE):
            self.hears.write(text[start : start + _WRITTEN_AT_ONCE])
            await self.hears.drain()

    async def receive(self) -> bytes:
        length = await self.says.readexactly(8)
        return await self.says.readexactly(int.from_bytes(length, "big"))

    async def receive_all(self) -> tuple[bytes, ...]:
        """Parts up to an empty one."""
        parts: list[bytes] = []
        while part := await self.receive():
            parts.append(part)
        return tuple(parts)


@asynccontextmanager
async def _reading() -> AsyncIterator[_Other]:
    """A process that reads one specification (`reading`); it is gone behind the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, who may be in the midst of it
    )
    try:
        yield _Other(cast("Any", process.stdin), cast("Any", process.stdout))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _whole(text: bytes) -> dict[str, Any]:
    """What was said. Raises: BadSpec, when that was what is wrong."""
    said: dict[str, Any] = orjson.loads(text)
    if "faults" in said:
        raise BadSpec([Fault(**fault) for fault in said["faults"]])
    return said
