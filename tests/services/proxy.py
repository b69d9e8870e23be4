"""A wire to a server that can be cut, or fall silent, at a test's word."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on to a server on this machine; `url` is the server's, by way of this."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._ended = asyncio.Event()
        self._ended.set()
        self._wires: set[asyncio.StreamWriter] = set()
        self.url = ""

    def cut(self) -> None:
        """Reset every connection; new ones are let through."""
        for wire in [*self._wires]:
            wire.transport.abort()

    def refuse(self) -> None:
        """Reset every connection, and new ones too, until `mend`."""
        self._refusing = True
        self.cut()

    def silence(self) -> None:
        """Pass nothing on, and say nothing about it, until `mend`."""
        self._flowing.clear()

    def mend(self) -> None:
        """Let everything through again, also what was held back by `silence`."""
        self._refusing = False
        self._flowing.set()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client's connection."""
        if self._refusing:
            writer.transport.abort()
            return
        port = self._server.port
        assert port is not None
        far_reader, far_writer = await asyncio.open_connection(self._server.hostname, port)
        self._wires |= {writer, far_writer}
        self._ended.clear()
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._wires -= {writer, far_writer}
            if not self._wires:
                self._ended.set()

    async def end(self) -> None:
        """Cut every connection, and wait until both sides have seen it."""
        self.mend()
        self.cut()
        await self._ended.wait()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):  # cut, from one side or the other
            while data := await source.read(65_536):
                await self._flowing.wait()
                target.write(data)
                await target.drain()
        await self._flowing.wait()  # silence tells no end either
        target.transport.abort()


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
