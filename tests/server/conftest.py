"""Stores for tests: what asks for `store` or `ledger` runs over both databases."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dane_server.storage.engine import Store
from tests.server.ledger import Ledger
from tests.server.stores import empty_store

_DATABASES = ["sqlite", pytest.param("mariadb", marks=pytest.mark.services)]


@pytest.fixture
async def mariadb_store(mysql_url: str) -> AsyncIterator[Store]:
    async with empty_store(mysql_url) as store:
        yield store


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    async with empty_store(f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite") as store:
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
