"""Limits of a task key change while work goes on, and are in force without a restart."""

import pytest

from dane_core.exchange.memory import MemoryExchange
from dane_server.runner.operate import Operator
from dane_server.runner.runner import Runner
from tests.server.ledger import Ledger, parallel
from tests.server.scripted import at_work, until


async def holds(runner: Runner, number: int) -> bool:
    """Whether so many tasks have a place of their key."""
    return len(await runner.holders("A")) == number


async def test_a_limit_that_is_lifted_lets_go_at_once_what_it_held_up(ledger: Ledger) -> None:
    """Nobody looks by the clock here: the change itself wakes who sends."""
    async with at_work(ledger) as office:
        await office.runner.limit_key("A", {"concurrency": 2})
        await office.hire("A", script=lambda _: None)
        await office.submit(parallel(*["A"] * 5))
        await until(lambda: holds(office.runner, 2))

        await office.runner.limit_key("A", {"concurrency": None})

        await until(lambda: holds(office.runner, 5))


@pytest.mark.parametrize("act", ["cancel_job", "pause_job", "delete_job"])
async def test_who_takes_work_away_wakes_who_sends(ledger: Ledger, act: str) -> None:
    """It may have left a place of a limited key to the next."""
    rung = 0

    class Bell:
        async def ring(self) -> None:
            nonlocal rung
            rung += 1

    job = await ledger.submit("A")

    await getattr(Operator(ledger.acts, MemoryExchange(), Bell()), act)(job)

    assert rung == 1
