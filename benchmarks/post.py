"""Requests over one connection, at so little cost to the client that the server is measured."""

import asyncio
from collections.abc import Mapping
from typing import Self
from urllib.parse import urlsplit


class Door:
    """A connection to an HTTP server that is kept open, for one request after the other."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def get(self, path: str) -> bytes:
        """What is answered. Raises: RuntimeError, for anything but 2xx."""
        return await self._ask("GET", path, b"", {})

    async def post(self, path: str, body: bytes, **headers: str) -> bytes:
        """What is answered. Raises: RuntimeError, for anything but 2xx."""
        return await self._ask("POST", path, body, headers)

    async def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
        named = {
            "Host": f"{self._host}:{self._port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **headers,
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in named.items())]
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        answer = await self._body(head)
        if not head.startswith("http/1.1 2"):
            raise RuntimeError(f"{head.splitlines()[0]}: {answer[:500].decode()}")
        return answer

    async def _body(self, head: str) -> bytes:
        """All of it, be its length known before or not."""
        _, known, rest = head.partition("content-length:")
        if known:
            return await self._reader.readexactly(int(rest.split("\r\n")[0]))
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readuntil(b"\r\n")
        return b"".join(parts)
