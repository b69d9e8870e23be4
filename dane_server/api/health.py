"""Whether the server is alive, and whether it reaches what it needs."""

import asyncio
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from dane_core.errors import Unreachable
from dane_server.api.answer import PREFIX, Answer, ReadyBody
from dane_server.api.deps import TheExchange, TheReader
from dane_server.api.problems import RETRY_AFTER
from dane_server.storage.reader import Reader

router = APIRouter(prefix=PREFIX, tags=["server"])

VERSION: Final = version("dane-router")
#: A store that takes longer is not ready, whatever it would say in the end.
PATIENCE_SECONDS: Final = 5.0


@router.get("/health", response_class=Response)
async def get_health() -> Response:
    """Whether the server answers at all: 200, and an empty body."""
    return Response()


@router.get("/ready", responses={200: {"model": ReadyBody}, 503: {"model": ReadyBody}})
async def get_ready(reader: TheReader, exchange: TheExchange) -> Response:
    """Whether the server reaches its store and its message broker: 200, or 503."""
    parts = [await _reaches_store(reader), exchange.connected]
    words = ["200 OK" if part else "502 Bad Gateway" for part in parts]
    body = ReadyBody(database=words[0], messagequeue=words[1], version=VERSION)
    if all(parts):
        return Answer(body)
    return Answer(body, status_code=503, headers={"Retry-After": RETRY_AFTER})


async def _reaches_store(reader: Reader) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.ping()
    except (Unreachable, TimeoutError):
        return False
    return True
