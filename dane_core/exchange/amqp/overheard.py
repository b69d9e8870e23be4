"""Hears what RabbitMQ says of a connection as a whole: that it is blocked or closed, and why.

The broker tells a connection that publishes during an alarm (memory, disk) that it is blocked,
and tells it again when that is over. aiormq heeds this but offers no way to ask for it, and
swallows why a new connection is turned away. So both are read off the wire, where the protocol
says how they look: method frames on channel 0.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, SupportsIndex

from aiormq import AMQPConnectionError, TransportFactory
from yarl import URL

from dane_core.exchange.amqp.gathering import GatheringWriter

#: Type, channel, size; then the payload, then one octet that ends the frame.
_HEAD: Final = 7
#: How a method frame on channel 0 begins.
_METHOD: Final = b"\x01\x00\x00"
#: Class and method: connection.close (a code, then a short string), connection.blocked (a short
#: string), connection.unblocked.
_CLOSE: Final = b"\x00\x0a\x00\x32"
_BLOCKED: Final = b"\x00\x0a\x00\x3c"
_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"


class Overheard:
    """What the broker has said of one connection.

    `blocked`: why it takes no messages over it; empty while it does. `closed`: why it closed it.
    """

    def __init__(self) -> None:
        self.blocked = ""
        self.closed = ""
        self._unread = b""

    def forget(self) -> None:
        """There is a new connection, of which nothing was heard yet."""
        self.blocked = ""
        self.closed = ""
        self._unread = b""

    def hear(self, data: bytes) -> None:
        """Read what the broker has sent, however it was cut into pieces."""
        unread = self._unread + data
        start = 0
        while len(unread) - start >= _HEAD:
            body = start + _HEAD
            end = body + int.from_bytes(unread[body - 4 : body], "big")
            if len(unread) <= end:
                break
            if unread.startswith(_METHOD, start):
                self._heed(unread[body:end])
            start = end + 1
        self._unread = unread[start:]

    def _heed(self, method: bytes) -> None:
        if method.startswith(_BLOCKED):
            self.blocked = _short_string(method, 4) or "it did not say why"
        elif method.startswith(_UNBLOCKED):
            self.blocked = ""
        elif method.startswith(_CLOSE):
            self.closed = _short_string(method, 6)


def _short_string(method: bytes, start: int) -> str:
    end = start + 1 + method[start] if start < len(method) else start
    return method[start + 1 : end].decode(errors="replace")


class OverheardTransport(TransportFactory):
    """Connects as aiormq does by itself, and has all that arrives overheard."""

    def __init__(self, overheard: Overheard) -> None:
        self._overheard = overheard

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        provider = kwargs.pop("ssl_context_provider")
        ssl = await provider.get_context() if url.scheme == "amqps" else None
        self._overheard.forget()
        reader = _Reader(self._overheard)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=ssl, **kwargs
            )
        except OSError as fault:
            raise AMQPConnectionError(*fault.args) from fault
        return reader, GatheringWriter(transport, protocol, reader, loop)


class _Reader(asyncio.StreamReader):
    def __init__(self, overheard: Overheard) -> None:
        super().__init__()
        self._overheard = overheard

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        heard = bytes(data)
        self._overheard.hear(heard)
        super().feed_data(heard)
