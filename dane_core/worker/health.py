"""`/health` of a worker process: a page for orchestrators, nothing else is served."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import orjson

logger = logging.getLogger(__name__)

_PATIENCE: Final = 5.0  # seconds for a whole request
_LONGEST_REQUEST: Final = 16 * 1024

_CLIENT_FAULTS: Final = (
    OSError,
    TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
)

#: Whether all is well, and what there is to know.
Health = tuple[bool, Mapping[str, Any]]


@asynccontextmanager
async def health_page(host: str, port: int, examine: Callable[[], Health]) -> AsyncIterator[int]:
    """Serve `GET /health` while inside: 200 when well, 503 when not. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_PATIENCE):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(head.split(b"\r\n", 1)[0], examine))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, host, port, limit=_LONGEST_REQUEST)
    try:
        bound: int = server.sockets[0].getsockname()[1]
        logger.info("health at http://%s:%d/health", host, bound)
        yield bound
    finally:
        server.close()
        await server.wait_closed()


def _response(request_line: bytes, examine: Callable[[], Health]) -> bytes:
    method, _, rest = request_line.partition(b" ")
    path = rest.split(b" ")[0].split(b"?")[0].rstrip(b"/")
    body: Mapping[str, Any] = {}
    if method not in (b"GET", b"HEAD"):
        status = HTTPStatus.METHOD_NOT_ALLOWED
    elif path != b"/health":
        status = HTTPStatus.NOT_FOUND
    else:
        is_well, body = examine()
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    text = orjson.dumps(body)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else text)
