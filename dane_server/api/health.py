"""Whether the server is alive, and whether it reaches what it needs."""

import asyncio
from importlib.metadata import version
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from dane_core.errors import Unreachable
from dane_core.exchange.base import Exchange
from dane_server.api.answer import PREFIX, Answer, ReadyBody
from dane_server.api.deps import TheExchange, TheReader, TheRunner
from dane_server.api.problems import RETRY_AFTER
from dane_server.storage.reader import Reader

router = APIRouter(prefix=PREFIX, tags=["server"])

VERSION: Final = version("dane-router")
#: A store that takes longer is not ready, whatever it would say in the end.
PATIENCE_SECONDS: Final = 5.0
_OK: Final = "200 OK"
_BAD: Final = "502 Bad Gateway"


@router.get("/health", response_class=Response)
async def get_health() -> Response:
    """Whether the server answers at all: 200, and an empty body."""
    return Response()


@router.get("/ready", responses={200: {"model": ReadyBody}, 503: {"model": ReadyBody}})
async def get_ready(reader: TheReader, exchange: TheExchange, runner: TheRunner) -> Response:
    """Whether the server reaches its store and its message broker: 200, or 503.

    A broker that takes no messages for an alarm of its own is `blocked: ` and its reason. A
    server that was told to stop is not ready any more: `server` is `stopping` then.
    """
    store = _OK if await _reaches_store(reader) else _BAD
    broker = _word_for(exchange)
    body = ReadyBody(database=store, messagequeue=broker, version=VERSION)
    if runner.stopping.told:
        body["server"] = "stopping"
    elif (store, broker) == (_OK, _OK):
        return Answer(body)
    return Answer(body, status_code=503, headers={"Retry-After": RETRY_AFTER})


def _word_for(exchange: Exchange) -> str:
    if not exchange.connected:
        return _BAD
    return f"blocked: {exchange.blocked}" if exchange.blocked else _OK


async def _reaches_store(reader: Reader) -> bool:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await reader.ping()
    except (Unreachable, TimeoutError):
        return False
    return True
