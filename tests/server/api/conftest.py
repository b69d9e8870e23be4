"""Servers for tests of the API; each has a store of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.served import Serve, Served, serving


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:
        numbers = count()

        async def start(**sections: Any) -> Served:
            folder = tmp_path / str(next(numbers))
            return await stack.enter_async_context(serving(folder, **sections))

        yield start


@pytest.fixture
async def dane(serve: Serve) -> Served:
    return await serve()


@pytest.fixture
def http(dane: Served) -> httpx.AsyncClient:
    return dane.http
