"""One server at a time has its turn, and whoever loses the database loses it quietly."""

import logging

import pytest
import sqlalchemy as sa

from dane_server.storage.engine import Store
from dane_server.storage.turns import Turns


@pytest.mark.services
async def test_only_one_has_the_turn_until_it_is_over(mariadb_store: Store) -> None:
    turns = Turns(mariadb_store)
    async with turns.take("sweep") as ours, turns.take("sweep") as theirs:
        assert (ours, theirs) == (True, False)

    async with turns.take("sweep") as again:
        assert again


@pytest.mark.services
async def test_a_turn_whose_connection_is_lost_ends_without_alarm(
    mariadb_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that went away is told of by who asked it for something."""
    locks = "SELECT IS_USED_LOCK(CONCAT('dane.', MD5(DATABASE()), '.sweep'))"
    with caplog.at_level(logging.WARNING):
        async with Turns(mariadb_store).take("sweep") as ours:
            async with mariadb_store.engine.begin() as other:
                holder = await other.scalar(sa.text(locks))
                await other.exec_driver_sql(f"KILL {int(holder or 0)}")
            assert ours

    assert [record.name for record in caplog.records] == []
