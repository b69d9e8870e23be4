"""Whatever happens to jobs, in whatever order: the books add up, and nothing is stuck."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dane_server.storage import acts, release
from tests.server.ledger import Ledger
from tests.server.machine import AnyOrder
from tests.server.stores import empty_store

#: `DANE_TEST_EXAMPLES=500` looks longer than there is time for in every run.
_EXAMPLES = int(os.environ.get("DANE_TEST_EXAMPLES", "8"))


def test_after_any_sequence_of_events_the_books_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite, which is the faster one."""
    _walk_in_steps(monkeypatch)
    with _machine(f"sqlite+aiosqlite:///{tmp_path}/dane.sqlite") as machine:
        run_state_machine_as_test(machine, settings=_at_most(_EXAMPLES))


@pytest.mark.services
def test_after_any_sequence_of_events_the_books_add_up_on_mariadb(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _walk_in_steps(monkeypatch)
    with _machine(mysql_url) as machine:
        run_state_machine_as_test(machine, settings=_at_most(_EXAMPLES // 2))


def _walk_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks of several steps, also over small jobs."""
    monkeypatch.setattr(acts, "_SOME", 2)
    monkeypatch.setattr(release, "_AT_ONCE", 1)
    monkeypatch.setattr(release, "_STEP", 1)


def _at_most(examples: int) -> settings:
    return settings(
        deadline=None,
        max_examples=examples,
        stateful_step_count=25,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def _machine(url: str) -> Iterator[type[AnyOrder]]:
    with asyncio.Runner() as runner:
        opened = empty_store(url)
        store = runner.run(opened.__aenter__())
        try:
            yield type("Machine", (AnyOrder,), {"runner": runner, "ledger": Ledger.of(store)})
        finally:
            runner.run(opened.__aexit__(None, None, None))
