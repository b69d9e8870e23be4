"""Rows 1 to 12: the server is killed at the worst of moments."""

import asyncio

import pytest

from tests.faults.labor import Toil
from tests.faults.plugin import quick, row
from tests.faults.rig import Json, Rig

pytestmark = pytest.mark.services

#: Seconds within which everything is done again, on settings that look soon.
SOON = 30.0


def job(name: str, tasks: object = "TOIL") -> Json:
    return {"source_url": f"/{name}", "source_id": name, "tasks": tasks}


def toil(**args: object) -> Json:
    return {"Task": {"task_key": "TOIL", "args": args}}


async def after_the_crash(rig: Rig, armed: str, *posts: Json) -> list[int]:
    """Post to a server that dies at a point, and again to the next; the jobs, once they ended."""
    await rig.worker(Toil)
    doomed = await rig.server(crash=armed)
    await asyncio.gather(*(rig.try_post(spec, key=key_of(spec), server=doomed) for spec in posts))
    await doomed.crashed()
    rig.healed()
    await rig.server()
    ids = [await rig.post(spec, key=key_of(spec)) for spec in posts]
    await rig.recovered(SOON, *ids)
    return ids


def key_of(spec: Json) -> str:
    return f"key-{spec['source_id']}"


@quick
@row(3)
async def test_what_was_claimed_and_not_published_is_published_by_another(rig: Rig) -> None:
    """The server is killed when it has committed a claim, and published nothing of it.

    Sent again when the claim's lease is over, and executed once.
    """
    await after_the_crash(rig, "claimed:1", job("claimed"))

    assert len(rig.history.began()) == 1
    rig.outcome = "executed once"
