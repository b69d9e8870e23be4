"""FILESIZE and CHECKSUM."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from dane_core import Done, Failed, Worker
from dane_core.testing import run_worker
from workers.checksum import Checksum
from workers.filesize import FileSize

CONTENT = bytes(range(256)) * 10_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(
    ("unit", "size"), [("B", 2_560_000), ("kB", 2560.0), ("MB", 2.56), ("KiB", 2500.0)]
)
async def test_the_size_is_told_in_the_unit_asked_for(source: Path, unit: str, size: float) -> None:
    outcome = await run_worker(FileSize, source=source, args={"unit": unit})

    assert outcome == Done({"size": size, "unit": unit})


async def test_an_empty_file_has_size_0(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    assert await run_worker(FileSize, source=tmp_path / "empty") == Done({"size": 0, "unit": "B"})


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "sha3_256", "blake2b", "sha1", "md5"])
async def test_a_checksum_is_that_of_hashlib(source: Path, algorithm: str) -> None:
    expected = hashlib.new(algorithm, CONTENT).hexdigest()

    outcome = await run_worker(Checksum, source=source, args={"algorithm": algorithm})

    assert outcome == Done({"algorithm": algorithm, "checksum": expected})


async def test_a_checksum_of_nothing_is_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()

    outcome = await run_worker(Checksum, source=tmp_path / "empty")

    assert isinstance(outcome, Done)
    assert outcome.response["checksum"] == hashlib.sha256().hexdigest()


async def test_a_checksum_says_how_far_it_is(source: Path) -> None:
    told: list[float] = []

    await run_worker(Checksum, source=source, on_progress=lambda fraction, _: told.append(fraction))

    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize("worker", [FileSize, Checksum])
@pytest.mark.parametrize(("source", "state"), [("/no/such.mp4", 404), ("https://x.org/a", 404)])
async def test_a_source_that_is_not_here_is_404(
    worker: type[Worker], source: str, state: int
) -> None:
    outcome = await run_worker(worker, source=source)

    assert isinstance(outcome, Failed)
    assert outcome.state == state


@pytest.mark.parametrize(
    ("worker", "args"),
    [
        (FileSize, {"unit": "miles"}),
        (Checksum, {"algorithm": "crc32"}),
        (Checksum, {"algoritm": "md5"}),
    ],
)
async def test_a_wrong_argument_is_400(
    worker: type[Worker], args: dict[str, Any], source: Path
) -> None:
    outcome = await run_worker(worker, source=source, args=args)

    assert isinstance(outcome, Failed)
    assert outcome.state == 400
    assert f"args.{next(iter(args))}" in outcome.message
