"""Very large specifications: read in a process of their own, and stored like any other."""

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from dane_core.errors import BadSpec, Unreachable
from dane_core.job import JobId
from dane_core.message import Offer
from dane_core.spec import Limits
from dane_server.graph import Graph
from dane_server.runner import draft
from dane_server.runner.arguments import Arguments
from dane_server.runner.bell import LocalBell
from dane_server.runner.draft import Draft
from dane_server.runner.submit import Submissions
from dane_server.storage.engine import Store
from dane_server.storage.tables import edges, jobs, tasks
from tests.server.ledger import Ledger, graph, hello, parallel, sequence, task
from tests.server.test_runner_submit import FOLDERS

TREE = sequence(
    task("A", name="ä 1", args={"n": [1, {"b": None}]}, priority=7, timeout=1.5),
    parallel("B", task("B", retry={"limit": 3}, allow_failure=True), "C"),
    graph(x="A", y=("D", "x"), z=("E", "x", "y")),
    parallel("F", "G"),
)
#: Of a node, what is not a matter of when it was stored.
SAME = [one for one in tasks.c if one.name not in ("id", "job_id", "due_at")]


@pytest.fixture
def ledger(sqlite_store: Store) -> Ledger:
    """What is told apart here is no matter of the database."""
    return Ledger.of(sqlite_store)


@pytest.fixture
def any_is_very_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draft, "_VALUES", 0)


def raw(tree: Any, **members: Any) -> bytes:
    return orjson.dumps(
        {"source_url": "http://127.0.0.1/S1", "source_id": "S1", "tasks": tree, **members}
    )


def submissions(ledger: Ledger) -> Submissions:
    return Submissions(ledger.writer, Arguments(ledger.reader), LocalBell(), FOLDERS)


async def rows_of(store: Store, job: JobId) -> tuple[Any, Sequence[Any], set[tuple[int, int]]]:
    """A job with its nodes and edges, without what tells it from a copy."""
    one, other = tasks.alias(), tasks.alias()
    head = [one for one in jobs.c if one.name not in ("id", "created_at")]
    ends = (
        sa.select(one.c.seq, other.c.seq)
        .join_from(edges, one, one.c.id == edges.c.src)
        .join(other, other.c.id == edges.c.dst)
        .where(one.c.job_id == job)
    )
    nodes = sa.select(*SAME).where(tasks.c.job_id == job).order_by(tasks.c.seq)
    async with store.engine.connect() as connection:
        return (
            (await connection.execute(sa.select(*head).where(jobs.c.id == job))).one(),
            (await connection.execute(nodes)).all(),
            {(src, dst) for src, dst in await connection.execute(ends)},
        )


async def test_what_is_read_elsewhere_is_stored_as_what_is_read_here(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrance, text = submissions(ledger), raw(TREE, type="video", metadata={"ö": 1}, priority=3)
    here = await entrance.submit(await entrance.read(text, Limits()))
    monkeypatch.setattr(draft, "_VALUES", 0)
    packed = await entrance.read(text, Limits())
    elsewhere = await entrance.submit(packed)

    assert not isinstance(packed.graph, Graph)
    expected = await rows_of(ledger.store, here.job_id)
    assert await rows_of(ledger.store, elsewhere.job_id) == expected


@pytest.mark.usefixtures("any_is_very_large")
async def test_every_fault_of_a_very_large_specification_is_told(ledger: Ledger) -> None:
    """Those of its form, and those of its args."""
    schema = {"type": "object", "required": ["x"]}
    await ledger.writer.see_workers([hello(Offer(key="STRICT", args_schema=schema))])
    entrance = submissions(ledger)

    async def faults(text: bytes, limits: Limits) -> list[str]:
        with pytest.raises(BadSpec) as refused:
            await entrance.read(text, limits)
        return [fault.path for fault in refused.value.faults]

    wrong = raw(parallel("a b", task("B", nmae="n")), priority=11)
    unfit = raw(parallel("A", "STRICT", sequence("STRICT", task("STRICT", args={"x": 1}))))
    assert await faults(wrong, Limits()) == [
        "priority",
        "tasks.taskParallel[0]",
        "tasks.taskParallel[1].Task.nmae",
    ]
    assert await faults(unfit, Limits()) == [
        "tasks.taskParallel[1].Task.args",
        "tasks.taskParallel[2].taskSequential[0].Task.args",
    ]
    assert await faults(raw(parallel("A", "B")), Limits(tasks=1)) == ["tasks"]


@pytest.mark.usefixtures("any_is_very_large")
async def test_only_so_many_are_read_elsewhere_at_a_time(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take much memory; and one that ends early is no reason to refuse the next."""
    monkeypatch.setattr(draft, "_PROCESSES", 1)
    monkeypatch.setattr(draft, "_BOOT", "import sys; sys.stdin.buffer.read(8)")
    entrance = submissions(ledger)

    ends = await asyncio.gather(
        *(entrance.read(raw("A"), Limits()) for _ in range(2)), return_exceptions=True
    )

    assert [type(end) for end in ends] == [Unreachable] * 2
    monkeypatch.undo()
    assert isinstance(await entrance.read(raw("A"), Limits()), Draft)


def test_what_is_very_large_is_told_by_its_bytes_and_values() -> None:
    """A hundred thousand keys are few bytes, and a few large texts are few values."""
    keys = raw(parallel(*["A"] * 100_000))
    text = raw(task("A", args={"text": "a" * 2_000_000}))

    assert draft.is_very_large(keys)
    assert draft.is_very_large(text)
    assert not draft.is_very_large(raw(parallel(*["A"] * 10_000)))
