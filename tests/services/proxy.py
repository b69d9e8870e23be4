"""A wire to a server that can be cut, fall silent, or be slow, at a test's word."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto
from typing import Final
from urllib.parse import urlsplit

#: How MariaDB is asked to commit: by itself, or behind what goes with it.
_COMMIT: Final = b"COMMIT"
_PIECES: Final = 10  # in which a second's worth of bytes is passed on, where the rate is limited
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with a RST and drop what waits


class Way(Enum):
    """A direction on the wire."""

    UP = auto()  # to the server
    DOWN = auto()  # to the client


BOTH: Final = (Way.UP, Way.DOWN)


class Proxy:
    """Passes bytes on to a server on this machine; `url` is the server's, by way of this."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._flowing = {way: asyncio.Event() for way in Way}
        self._refusing = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._wires: set[_Wire] = set()
        self.url = ""
        self.delay = 0.0  # seconds that what is passed on is held back
        self.rate: float | None = None  # bytes a second, each way and each connection
        self.drops_after: bytes | None = None  # see `drop_after_commit`
        self.dropped = asyncio.Event()
        self.turned_away = 0  # connections, by `refuse`
        self.disturbed = False  # something of this was ever done to it
        self.mend()

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        self.disturbed = True
        for wire in [*self._wires]:
            wire.reset()

    def refuse(self) -> None:
        """Reset every connection, and new ones too, until `mend`."""
        self._refusing = True
        self.cut()

    def silence(self, *ways: Way) -> None:
        """Pass nothing on, both ways or one, and say nothing about it, until `mend`."""
        self.disturbed = True
        for way in ways or BOTH:
            self._flowing[way].clear()

    def half_close(self, way: Way) -> None:
        """Tell an end that the other will say no more; what it says itself still arrives."""
        self.disturbed = True
        for wire in [*self._wires]:
            wire.end_of(way)

    def drop_after_commit(self, having: bytes = b"") -> None:
        """Once: pass a COMMIT on to MariaDB, swallow what it answers, and cut.

        Of a transaction with these bytes in one of its statements. `dropped` is set then.
        """
        self.dropped.clear()
        self.drops_after = having

    def mend(self) -> None:
        """Let everything through again, at full speed, also what was held back by `silence`."""
        self._refusing = False
        self.delay, self.rate, self.drops_after = 0.0, None, None
        for flowing in self._flowing.values():
            flowing.set()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client's connection."""
        if self._refusing:
            self.turned_away += 1
            _reset(writer)
            return
        port = self._server.port
        assert port is not None
        try:
            far_reader, far_writer = await asyncio.open_connection(self._server.hostname, port)
        except OSError:  # the server is not there: no more are we
            _reset(writer)
            return
        wire = _Wire(self, writer, far_writer)
        self._wires.add(wire)
        self._ended.clear()
        try:
            await asyncio.gather(wire.send(reader, Way.UP), wire.send(far_reader, Way.DOWN))
        finally:
            self._wires.discard(wire)
            if not self._wires:
                self._ended.set()

    async def end(self) -> None:
        """Cut every connection, and wait until both sides have seen it."""
        self.mend()
        self.cut()
        await self._ended.wait()

    async def flow(self, way: Way) -> None:
        await self._flowing[way].wait()


class _Wire:
    """One client's connection."""

    def __init__(self, proxy: Proxy, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._ends = {Way.UP: far, Way.DOWN: near}
        self._having = False  # this transaction has a statement that `drop_after_commit` meant
        self._swallowing = False

    def reset(self) -> None:
        for end in self._ends.values():
            _reset(end)

    def end_of(self, way: Way) -> None:
        with suppress(OSError, RuntimeError):
            self._ends[way].write_eof()

    async def send(self, source: asyncio.StreamReader, way: Way) -> None:
        """Pass on what comes from one end, until it ends."""
        target = self._ends[way]
        with suppress(OSError, RuntimeError):  # cut, or half closed, from one side or the other
            while data := await source.read(65_536):
                await self._proxy.flow(way)
                if self._swallow(data, way):
                    self.reset()
                    return
                await self._pass(data, target)
        await self._proxy.flow(way)  # silence tells no end either
        target.transport.abort()

    async def _pass(self, data: bytes, target: asyncio.StreamWriter) -> None:
        if self._proxy.delay:
            await asyncio.sleep(self._proxy.delay)
        rate = self._proxy.rate
        size = len(data) if rate is None else max(1, int(rate / _PIECES))
        for start in range(0, len(data), size):
            target.write(data[start : start + size])
            await target.drain()
            if rate is not None:
                await asyncio.sleep(1 / _PIECES)

    def _swallow(self, data: bytes, way: Way) -> bool:
        """Whether this is the answer to the COMMIT that is to get lost."""
        if way is Way.DOWN:
            if self._swallowing:
                self._proxy.dropped.set()
            return self._swallowing
        wanted = self._proxy.drops_after
        if wanted is None:
            return False
        self._having = self._having or wanted in data
        if data.endswith(_COMMIT):
            if self._having:
                self._swallowing, self._proxy.drops_after = True, None
            self._having = False
        return False


def _reset(end: asyncio.StreamWriter) -> None:
    """Close with a RST, as a machine does that has forgotten the connection."""
    wire = end.get_extra_info("socket")
    if wire is not None and wire.fileno() >= 0:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.transport.abort()


@asynccontextmanager
async def proxy_to(url: str) -> AsyncIterator[Proxy]:
    """A proxy on a free port, for as long as the block runs."""
    proxy = Proxy(url)
    server = await asyncio.start_server(proxy.join, "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    proxy.url = parts._replace(netloc=f"{login}@{address}:{port}").geturl()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
