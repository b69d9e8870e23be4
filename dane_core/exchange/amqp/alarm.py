"""Hears a RabbitMQ say that it takes no messages, and why.

The broker tells a connection that publishes during an alarm (memory, disk) that it is blocked,
and tells it again when that is over. aiormq heeds this but offers no way to ask for it, so it
is read off the wire, where the protocol says how it looks: a method frame on channel 0.
"""

import asyncio
from collections.abc import Iterable
from typing import Any, Final, SupportsIndex

from aiormq import AMQPConnectionError, TransportFactory
from yarl import URL

#: Type, channel, size; then the payload, then one octet that ends the frame.
_HEAD: Final = 7
#: How a method frame on channel 0 begins.
_METHOD: Final = b"\x01\x00\x00"
#: Class and method: connection.blocked (with a short string), connection.unblocked.
_BLOCKED: Final = b"\x00\x0a\x00\x3c"
_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"


class Alarm:
    """Why the broker takes no messages from one connection; empty while it does."""

    def __init__(self) -> None:
        self.reason = ""
        self._unread = b""

    def forget(self) -> None:
        """There is a new connection, of which nothing was heard yet."""
        self.reason = ""
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
            said = method[len(_BLOCKED) + 1 :].decode(errors="replace")
            self.reason = said or "it did not say why"
        elif method.startswith(_UNBLOCKED):
            self.reason = ""


class HeardTransport(TransportFactory):
    """Connects as aiormq does by itself, and lets an alarm hear all that arrives."""

    def __init__(self, alarm: Alarm) -> None:
        self._alarm = alarm

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        provider = kwargs.pop("ssl_context_provider")
        ssl = await provider.get_context() if url.scheme == "amqps" else None
        self._alarm.forget()
        reader = _Heard(self._alarm)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=ssl, **kwargs
            )
        except OSError as fault:
            raise AMQPConnectionError(*fault.args) from fault
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Heard(asyncio.StreamReader):
    def __init__(self, alarm: Alarm) -> None:
        super().__init__()
        self._alarm = alarm

    def feed_data(self, data: Iterable[SupportsIndex]) -> None:
        heard = bytes(data)
        self._alarm.hear(heard)
        super().feed_data(heard)
