"""The crash points: all of them exist, and an ordinary run passes each."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.faults.process import ROOT
from tests.faults.rig import Rig
from tests.faults.seams import POINTS, SEAMS, find


@pytest.mark.parametrize("point", POINTS)
def test_the_method_of_a_crash_point_is_there(point: str) -> None:
    """A renamed method would leave a row that kills nobody, and is green."""
    [seam] = [seam for seam in SEAMS if seam.point == point]

    owner, name = find(seam)

    assert callable(getattr(owner, name))


def test_a_method_that_is_gone_is_told() -> None:
    gone = replace(SEAMS[0], target="dane_server.storage.writer:Writer.renamed")

    with pytest.raises(LookupError, match=r"Writer\.renamed, which is not there any more"):
        find(gone)


def test_a_point_that_nobody_knows_is_refused() -> None:
    """A misspelt point would crash nobody."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.server", "serve"],
        env={"DANE_CRASH_AT": "nowhere:1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "no point is called 'nowhere'" in done.stderr


@pytest.mark.services
async def test_an_ordinary_run_passes_every_crash_point(rig: Rig) -> None:
    """Also those of workers that leave, and of a server that drains."""
    server = await rig.server()
    unknown = await rig.load(1)  # whoever it is for
    worker = await rig.worker()
    rig.healed()
    await rig.recovered(60, *unknown, *await rig.load(4, seed=2))
    await worker.stop()
    await server.stop()

    assert set(POINTS) - rig.passed - {"attempt-closed"} == set()
