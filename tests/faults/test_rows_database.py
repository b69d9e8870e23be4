"""Rows 38 to 46: the database restarts, dies, falls silent, and forgets to answer."""

import asyncio
from collections.abc import Callable
from typing import Final

import pytest
import sqlalchemy as sa

from dane_server.storage.tables import tasks
from tests.faults.history import Sent
from tests.faults.labor import Toil
from tests.faults.plugin import row
from tests.faults.rig import Rig
from tests.faults.specs import job, toil
from tests.faults.workload import LIGHT, Workload
from tests.services.mariadb import Database

pytestmark = pytest.mark.services

SOON: Final = 45.0


def killed_and_started(database: Database) -> None:
    database.kill()
    database.start()


async def post_until_told(rig: Rig, over: asyncio.Event) -> list[Sent]:
    """Post one job after the other for as long as it lasts, each once, with a key."""
    supply, sent = Workload("meanwhile", LIGHT), []
    while not over.is_set():
        spec = supply.job()
        sent.append(await rig.try_post(spec, key=f"key-of-{spec['source_id']}"))
        await asyncio.sleep(0.05)
    return sent


@row(38)
@pytest.mark.parametrize(
    "befalls", [Database.restart, killed_and_started], ids=["restarted", "killed"]
)
async def test_a_database_that_was_away_has_lost_nothing(
    rig: Rig, befalls: Callable[[Database], None]
) -> None:
    """The database is restarted, or killed, under load.

    503 with Retry-After meanwhile, never a false 201; all goes on by itself.
    """
    await rig.server()
    await rig.worker()
    ids = await rig.load(10)
    over = asyncio.Event()
    posting = asyncio.create_task(post_until_told(rig, over))
    await rig.begun(5)
    await asyncio.to_thread(befalls, rig.database)
    rig.healed()
    await rig.until(lambda: rig.accepts(job("first after")))
    over.set()

    sent = await posting
    assert {one.status for one in sent} <= {201, 503}
    assert all(one.retry_after for one in sent if one.status == 503)
    await rig.recovered(SOON, *ids)
    await rig.recovered(SOON)
    refused = sum(one.status == 503 for one in sent)
    rig.outcome = f"{refused} requests told to come again, no false 201; all done"


@row(39)
async def test_connections_that_are_cut_in_their_transactions_lose_nothing(rig: Rig) -> None:
    """The wire to the database is cut again and again, under load.

    Rolled back and done again; one effect.
    """
    wire = await rig.proxy_to_store()
    await rig.server(store=wire)
    await rig.worker()
    loading = asyncio.create_task(rig.load(12))
    for number in range(1, 7):
        await rig.begun(2 * number)
        wire.cut()
    rig.healed()

    await rig.recovered(SOON, *await loading)
    rig.outcome = "cut six times; all done, every counter true"


@row(40)
@pytest.mark.parametrize(
    "having",
    [
        pytest.param(b"INSERT INTO job", id="of a job"),
        pytest.param(b"INSERT INTO attempt", id="of a result"),
    ],
)
async def test_a_commit_whose_answer_is_lost_has_one_effect(rig: Rig, having: bytes) -> None:
    """The database commits, and its answer is swallowed.

    The effect is there exactly once: what was done is read again, or compared and set.
    """
    wire = await rig.proxy_to_store()
    await rig.server(store=wire)
    await rig.worker(Toil)
    await rig.act_on_key("resume", "TOIL")  # so that it is known: claimed as it is stored
    wire.drop_after_commit(having)

    sent = await rig.try_post(job("swallowed"), key="again")
    job_id = await rig.post(job("swallowed"), key="again")
    await asyncio.wait_for(wire.dropped.wait(), SOON)
    rig.healed()

    assert sent.status in (201, 503)
    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) == 1
    rig.outcome = "one effect, executed once"


@row(40)
async def test_a_claim_whose_commit_is_not_answered_has_one_effect(rig: Rig) -> None:
    """The database commits a claim by itself, and its answer is swallowed.

    What was claimed is compared and set: it is sent once.
    """
    wire = await rig.proxy_to_store()
    await rig.server(store=wire)
    await rig.worker(Toil)
    await rig.act_on_key("pause", "TOIL")  # so that it is claimed later than stored
    job_id = await rig.post(job("swallowed"))
    wire.drop_after_commit(b"dispatch=(task.dispatch")

    await rig.act_on_key("resume", "TOIL")
    await asyncio.wait_for(wire.dropped.wait(), SOON)
    rig.healed()

    await rig.recovered(SOON, job_id)
    assert len(rig.history.began()) == 1
    rig.outcome = "one effect, executed once"


@row(41)
async def test_a_unit_that_waits_too_long_for_a_lock_is_done_again_whole(rig: Rig) -> None:
    """Rows are locked by somebody else for longer than is waited for them.

    The whole unit is tried again; nothing is done by halves.
    """
    await rig.server("api")
    for _ in range(2):
        await rig.server("runner")
    await rig.worker(Toil, slots=10)
    job_id = await rig.post(job("locked", {"taskParallel": [toil(hold="go")] * 10}))
    await rig.begun(10)
    ids = await rig.tasks_of(job_id)
    async with rig.engine.begin() as connection:
        await connection.execute(sa.select(tasks).where(tasks.c.id.in_(ids[:5])).with_for_update())
        rig.history.say("go")
        await rig.until(lambda: len(rig.history.ended()) == 10)
        await asyncio.sleep(8)  # more than twice the lock wait of a session
    rig.healed()

    await rig.recovered(SOON, job_id)
    rig.outcome = "all recorded once the lock was gone"


@row(42)
async def test_a_silent_database_hangs_nobody(rig: Rig) -> None:
    """The database falls silent: nothing comes through, and no connection ends.

    Requests fail within 30 s; all goes on once it speaks again.
    """
    wire = await rig.proxy_to_store()
    server = await rig.server(store=wire)
    await rig.worker()
    ids = await rig.load(5)
    wire.silence()
    sent = await asyncio.gather(
        *(
            rig.try_post(job(f"silent-{number}"), key=f"s-{number}", server=server)
            for number in range(20)
        )
    )
    wire.mend()
    rig.healed()

    assert {one.status for one in sent} == {503}
    assert max(one.took for one in sent) < 30
    await rig.recovered(SOON, *ids)
    await rig.post(job("after"))
    await rig.recovered(SOON)
    rig.outcome = f"503 after {max(one.took for one in sent):.0f} s at most; all done"
