"""Stores for tests: what asks for `store` or `ledger` runs over both databases."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from dane_core.exchange.amqp import connect
from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from dane_server.storage.engine import Store, open_store
from tests.server.ledger import Ledger
from tests.server.stores import empty_store

_DATABASES = ["sqlite", pytest.param("mariadb", marks=pytest.mark.services)]
_WAYS = ["embedded", pytest.param("real", marks=pytest.mark.services)]


async def _prepare(url: str) -> None:
    async with empty_store(url):
        pass


@pytest.fixture(scope="session")
def mariadb_url(mysql_url: str) -> str:
    """A MariaDB database with DANE's tables."""
    asyncio.run(_prepare(mysql_url))
    return mysql_url


@pytest.fixture(scope="session")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with DANE's tables, to be copied: making them takes longer."""
    file = tmp_path_factory.mktemp("sqlite") / "dane.sqlite"
    asyncio.run(_prepare(f"sqlite+aiosqlite:///{file}"))
    return file


@pytest.fixture
async def mariadb_store(mariadb_url: str) -> AsyncIterator[Store]:
    async with empty_store(mariadb_url, tables=True) as store:
        yield store


@pytest.fixture
async def sqlite_store(sqlite_file: Path, tmp_path: Path) -> AsyncIterator[Store]:
    file = shutil.copy(sqlite_file, tmp_path / "dane.sqlite")
    async with open_store(f"sqlite+aiosqlite:///{file}") as store:
        yield store


@pytest.fixture(params=_DATABASES)
def store(request: pytest.FixtureRequest) -> Store:
    """A store with empty tables, once on SQLite and once on MariaDB."""
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found


@pytest.fixture
def ledger(store: Store) -> Ledger:
    """A store with its writer, reader and acts, once on SQLite and once on MariaDB."""
    return Ledger.of(store)


@pytest.fixture(params=_WAYS)
def placed_ledger(request: pytest.FixtureRequest) -> Ledger:
    """A ledger that goes with `placed_exchange`: on SQLite, or on MariaDB."""
    name = "sqlite_store" if request.param == "embedded" else "mariadb_store"
    return Ledger.of(request.getfixturevalue(name))


@pytest.fixture
async def placed_exchange(
    request: pytest.FixtureRequest, placed_ledger: Ledger
) -> AsyncIterator[Exchange]:
    """An exchange that goes with `placed_ledger`: in memory, or on RabbitMQ."""
    if placed_ledger.store.engine.dialect.name == "sqlite":
        yield MemoryExchange()
        return
    url, own = request.getfixturevalue("amqp_url"), uuid4().hex
    async with connect(url, task_exchange=f"t.{own}", control_exchange=f"c.{own}") as exchange:
        yield exchange
