"""Limits of a task key change while work goes on, and are in force without a restart."""

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
