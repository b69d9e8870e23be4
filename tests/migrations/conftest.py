"""Stores without tables, on SQLite and on MariaDB."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dane_server.storage.engine import Store, open_store
from tests.services.mariadb import database_at


@pytest.fixture(params=["sqlite", pytest.param("mariadb", marks=pytest.mark.services)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield _sqlite_url(tmp_path)
    else:
        with database_at(request.getfixturevalue("mysql_url")) as url:
            yield url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(_sqlite_url(tmp_path)) as store:
        yield store


@pytest.fixture
async def mariadb(mysql_url: str) -> AsyncIterator[Store]:
    with database_at(mysql_url) as url:
        async with open_store(url) as store:
            yield store


def _sqlite_url(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'dane.sqlite'}"
