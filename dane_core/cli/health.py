"""A worker's answer to `GET /health`, for whatever watches over it on its machine."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import orjson

from dane_core.errors import BadSettings, Fault

#: Says how the worker is, and whether that is well.
Health = Callable[[], tuple[bool, Mapping[str, Any]]]

_PATIENCE: Final = 5.0  # seconds for the whole request


@asynccontextmanager
async def answer_health(port: int, health: Health) -> AsyncIterator[int]:
    """Answer on a port of the loopback address (0: a free one), which is yielded.

    200 while the worker is well, 503 when not. Raises: BadSettings, when the port is taken.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(request, health))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or was not asking
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(answer, "127.0.0.1", port)
    except OSError as error:
        fault = f"port {port} cannot be had ({error.strerror}); choose another with --health-port"
        raise BadSettings([Fault("WORKER.HEALTH_PORT", fault)]) from None
    async with server:
        yield server.sockets[0].getsockname()[1]


def _response(request: bytes, health: Health) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        return _http(HTTPStatus.METHOD_NOT_ALLOWED, {})
    if path != b"/health":
        return _http(HTTPStatus.NOT_FOUND, {})
    is_well, facts = health()
    return _http(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, facts)


def _http(status: HTTPStatus, body: Mapping[str, Any]) -> bytes:
    content = orjson.dumps(body)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content
