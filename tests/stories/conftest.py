"""What stories are told with: DANE in both its ways, and marks that workers leave."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dane_server.storage import migrate
from dane_server.storage.engine import open_store
from tests.services.mariadb import database_at
from tests.stories.both_ways import Real, Start, starting
from tests.stories.marks import Marks


@pytest.fixture(scope="session")
def services(amqp_url: str, mysql_url: str) -> Iterator[Real]:
    """The broker, and a database of the stories' own; `renew` them before use."""

    async def make_tables(url: str) -> None:
        async with open_store(url) as store:
            await migrate.upgrade(store)

    with database_at(mysql_url) as url:
        asyncio.run(make_tables(url))
        yield Real(amqp_url, url)


@pytest.fixture
async def real(services: Real) -> Real:
    """A broker and a database as new."""
    await services.renew()
    return services


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.services)])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Start:
    """Starts a DANE: once embedded, and once on the real services."""
    real = request.getfixturevalue("real") if request.param == "real" else None
    return starting(tmp_path / "dane", real)


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    """Where workers leave marks."""
    folder = tmp_path / "marks"
    folder.mkdir()
    return Marks(folder)
