"""The rigs that rows are shown on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.plugin import FAILED, wants_every_row
from tests.faults.rig import Ground, Rig, make_tables, rigged, rigged_embedded
from tests.services import provider
from tests.services.mariadb import database_at


@pytest.fixture(scope="session")
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Services of our own where every row runs; those of the run where only quick ones do."""
    with ExitStack() as stack:
        if not wants_every_row(request.config):
            amqp_url = request.getfixturevalue("amqp_url")
            url = stack.enter_context(database_at(request.getfixturevalue("mysql_url")))
            asyncio.run(make_tables(url))
            yield Ground(amqp_url=amqp_url, mysql_url=url)
            return
        broker = stack.enter_context(provider.private_broker())
        database = stack.enter_context(provider.private_database())
        url = stack.enter_context(database_at(database.url))
        asyncio.run(make_tables(url))
        yield Ground(amqp_url=broker.url, mysql_url=url, broker=broker, database=database)


@pytest.fixture
async def rig(
    request: pytest.FixtureRequest,
    ground: Ground,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> AsyncIterator[Rig]:
    """A DANE on RabbitMQ and MariaDB, in processes; the oracle judges it after the test."""
    if ground.broker is not None and ground.database is not None:
        await asyncio.to_thread(ground.broker.start)
        await asyncio.to_thread(ground.database.start)
    async with rigged(ground, tmp_path) as rig:
        yield rig
        rig.given_up = request.node.stash.get(FAILED, False)
    _report(rig, record_property)


@pytest.fixture
async def small_rig(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> AsyncIterator[Rig]:
    """A DANE in one process, on SQLite."""
    async with rigged_embedded(tmp_path) as rig:
        yield rig
        rig.given_up = request.node.stash.get(FAILED, False)
    _report(rig, record_property)


def _report(rig: Rig, record_property: Callable[[str, object], None]) -> None:
    record_property("outcome", rig.outcome)
    if rig.seconds is not None:
        record_property("seconds", round(rig.seconds, 1))
