"""What servers have counted: shown by all of them, and never smaller than before."""

from collections.abc import Mapping

import pytest

from dane_core.errors import StoreUnreachable
from dane_core.exchange.base import Exchange
from dane_core.exchange.memory import MemoryExchange
from dane_server.metrics import Metrics, Totals
from dane_server.runner.totals import TotalsKeeper
from dane_server.storage.bulletin import Bulletin, Divergence
from dane_server.storage.engine import Store
from tests.server.ledger import Ledger
from tests.server.scripted import new_runner


class Server:
    """A server's counts, and the page that it shows."""

    def __init__(self, bulletin: Bulletin, exchange: Exchange | None = None) -> None:
        self.metrics = Metrics()
        self.keeper = TotalsKeeper(
            metrics=self.metrics, bulletin=bulletin, exchange=exchange or MemoryExchange()
        )

    def shown(self, name: str = 'dane_rejected_total{reason="stale"}') -> float:
        lines = self.metrics.page().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def test_what_one_server_counts_is_shown_by_all(store: Store) -> None:
    """A runner has no door: it is the processes of the API that are asked."""
    runner, api = Server(Bulletin(store)), Server(Bulletin(store))
    runner.metrics.rejected.labels("stale").inc(3)
    runner.metrics.rejected.labels("forged").inc()
    await runner.keeper.write_down()
    await api.keeper.look()

    assert (runner.shown(), api.shown()) == (3, 3)
    assert api.shown("dane_rejected_total") == 4


async def test_counts_of_several_servers_and_lives_add_up(store: Store) -> None:
    bulletin = Bulletin(store)
    shown = []
    for _ in range(3):
        server = Server(bulletin)
        server.metrics.rejected.labels("stale").inc(2)
        await server.keeper.look()
        server.metrics.rejected.labels("stale").inc(5)
        shown.append(server.shown())
        await server.keeper.write_down()
        await server.keeper.write_down()  # nothing more

    assert shown == [7, 14, 21]
    assert await bulletin.totals() == {("rejected", "stale"): 21}


class Refusing(Bulletin):
    """A store that is away for whoever writes, at first."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.away = True

    async def count(self, more: Mapping[tuple[str, str], int]) -> None:
        if self.away:
            raise StoreUnreachable("away")
        await super().count(more)


async def test_what_could_not_be_written_down_is_shown_and_written_later(
    sqlite_store: Store,
) -> None:
    bulletin = Refusing(sqlite_store)
    server = Server(bulletin)
    server.metrics.rejected.labels("stale").inc()

    with pytest.raises(StoreUnreachable):
        await server.keeper.write_down()
    meanwhile = server.shown()
    bulletin.away = False
    await server.keeper.look()

    assert (meanwhile, server.shown()) == (1, 1)
    assert await bulletin.totals() == {("rejected", "stale"): 1}


def test_a_total_never_goes_back() -> None:
    """What was read may be older than what was written meanwhile."""
    totals = Totals()
    totals.add("rejected", "Answers", "reason").labels("stale").inc(5)
    totals.stored(totals.pending)

    totals.learn({("rejected", "stale"): 3})

    [family] = totals.collect()
    assert [sample.value for sample in family.samples] == [5]


class Cured(MemoryExchange):
    """An exchange whose consumers can go deaf, as those on RabbitMQ can."""

    cures = 2


async def test_consumers_that_were_made_anew_are_counted_once(sqlite_store: Store) -> None:
    bulletin = Bulletin(sqlite_store)
    server = Server(bulletin, Cured())
    for _ in range(2):
        await server.keeper.write_down()

    assert server.shown("dane_consumer_rebuilds_total") == 2
    assert await bulletin.totals() == {("consumer_rebuilds", ""): 2}


async def test_the_last_round_is_told_by_servers_that_make_none(store: Store) -> None:
    found = Divergence(
        check="counters",
        subject="job 1",
        ids=[1],
        sentence="ü",
        advice="count the job anew",
        repaired=True,
    )
    api = new_runner(Ledger.of(store), MemoryExchange(), remote=True)
    before = await api.last_round()

    await Bulletin(store).tell_round([])
    await Bulletin(store).tell_round([found])
    last = await api.last_round()

    assert before is None
    assert last is not None
    assert last.divergences == [found]
    assert last.at.tzinfo is not None
