"""Ten workers, ten tasks of equal length: nobody hoards, so all begin at once."""

import asyncio
from typing import Final

import pytest

from tests.faults.labor import Toil
from tests.faults.plugin import long
from tests.faults.rig import Rig
from tests.faults.specs import job, toil

pytestmark = pytest.mark.services

TEN: Final = 10
#: To start ten processes on two cores.
STARTED: Final = 60.0


@long
async def test_ten_workers_begin_ten_tasks_at_once(rig: Rig) -> None:
    """Ten `dane worker` processes of one slot each, and ten tasks that hold.

    Each worker begins one, and none waits behind another.
    """
    await rig.server()
    async with asyncio.timeout(STARTED):
        crew = await asyncio.gather(*(rig.worker(Toil, slots=1) for _ in range(TEN)))
    job_id = await rig.post(job("equal", {"taskParallel": [toil(hold="go")] * TEN}))

    await rig.begun(TEN)  # none has ended yet: all are under way at the same time

    begun = rig.history.began()
    assert sorted(begin.pid for begin in begun) == sorted(worker.pid for worker in crew)
    assert not rig.history.ended()
    span = max(begin.at for begin in begun) - min(begin.at for begin in begun)
    rig.healed()
    rig.history.say("go")
    await rig.recovered(STARTED, job_id)
    assert len(rig.history.began()) == TEN
    rig.outcome = f"ten begun by ten workers within {span:.1f} s"
