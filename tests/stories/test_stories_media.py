"""The five ready workers on real files, embedded and on RabbitMQ + MariaDB."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from PIL import Image

from dane_core.client import Client
from dane_core.worker.discover import installed_worker
from tests.stories.both_ways import BRISK, READY_MADE, Real, as_environment, ended, starting
from tests.stories.programs import running
from tests.stories.snapshot import Json, snapshot
from tests.stories.sources import CLIP, CLIP_SECONDS, PICTURE, make_sources, served

SPEC: Final = {
    "taskSequential": [
        "DOWNLOAD",
        {
            "taskParallel": [
                "FILESIZE",
                "CHECKSUM",
                "MEDIAINFO",
                {"Task": {"task_key": "THUMBNAIL"}},
            ]
        },
    ]
}
ALL_DONE: Final = [200] * 5

#: What becomes of each source: the states of its tasks, and what some of them say.
ENDS: Final[dict[str, tuple[list[int], str]]] = {
    "clip.mp4": (ALL_DONE, "Success"),
    "picture.png": (ALL_DONE, "Success"),
    "tone.wav": (ALL_DONE, "Success"),
    "words.txt": ([200, 200, 200, 400, 400], "no video, sound or picture"),
    "broken.mp4": ([200, 200, 200, 400, 400], "no video, sound or picture"),
    "empty.mp4": ([400, 201, 201, 201, 201], "is empty"),
    "missing.mp4": ([404, 201, 201, 201, 201], "is not there"),
    "web/clip.mp4": (ALL_DONE, "Success"),
    "web/missing.mp4": ([404, 201, 201, 201, 201], "answered 404"),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "files"
    make_sources(folder)
    return folder


@pytest.fixture(scope="module")
def web(sources: Path) -> Iterator[str]:
    with served(sources) as url:
        yield url


@pytest.fixture(scope="module")
def embedded_ends(
    sources: Path, web: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Json]:
    folder = tmp_path_factory.mktemp("embedded")

    async def tell() -> dict[str, Json]:
        workers = [installed_worker(key) for key in READY_MADE]
        async with starting(folder, None)(*workers, slots=2) as client:
            return await ends(client, sources, web, folder)

    return asyncio.run(tell())


@pytest.fixture(scope="module")
def real_ends(
    services: Real, sources: Path, web: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Json]:
    """With a worker process that is told the keys only."""
    folder = tmp_path_factory.mktemp("real")

    async def tell() -> dict[str, Json]:
        await services.renew()
        settings = as_environment(BRISK | services.sections)
        async with (
            starting(folder, services)() as client,
            running("worker", *READY_MADE, "--slots", "2", folder=folder, **settings),
        ):
            return await ends(client, sources, web, folder)

    return asyncio.run(tell())


async def ends(client: Client, sources: Path, web: str, folder: Path) -> dict[str, Json]:
    jobs = {}
    for name in ENDS:
        url = f"{web}/{name[4:]}" if name.startswith("web/") else str(sources / name)
        spec = {"source_url": url, "source_id": name, "tasks": SPEC}
        jobs[name] = (await client.submit(spec))["job_id"]
    for job_id in jobs.values():
        await ended(client, job_id)
    found = {name: await snapshot(client, job_id, folder) for name, job_id in jobs.items()}
    return {name: {**job, "picture": thumbnail_of(job, folder)} for name, job in found.items()}


def thumbnail_of(job: Json, folder: Path) -> tuple[str | None, tuple[int, int]] | None:
    """Format and size of the thumbnail that a job says it has made."""
    answer = job["response"].get("THUMBNAIL") or {}
    if not answer.get("thumbnail"):
        return None
    with Image.open(answer["thumbnail"].replace("*", str(folder), 1)) as image:
        return image.format, image.size


def test_each_file_gets_its_answers_or_a_clear_failure(
    embedded_ends: dict[str, Json], subtests: pytest.Subtests
) -> None:
    for name in ENDS:
        with subtests.test(name):
            assert_as_expected(embedded_ends[name], *ENDS[name])


@pytest.mark.services
def test_each_file_gets_the_same_answers_on_rabbitmq_and_mariadb(
    real_ends: dict[str, Json], embedded_ends: dict[str, Json], subtests: pytest.Subtests
) -> None:
    for name in ENDS:
        with subtests.test(name):
            assert_as_expected(real_ends[name], *ENDS[name])
            assert real_ends[name] == embedded_ends[name]


def assert_as_expected(job: Json, states: Sequence[int], words: str) -> None:
    tasks = job["task_list"]
    assert [task["task_state"] for task in tasks] == states
    complaints = [task["task_msg"] for task in tasks if task["task_state"] >= 400]
    assert words in (complaints or ["Success"])[0]
    assert job["status"] == ("succeeded" if states == ALL_DONE else "failed")


@pytest.mark.parametrize("name", ["clip.mp4", "web/clip.mp4"])
def test_a_video_is_known_for_what_it_is(
    name: str, embedded_ends: dict[str, Json], sources: Path
) -> None:
    content = (sources / "clip.mp4").read_bytes()

    job = embedded_ends[name]

    answer = job["response"]
    assert (job["type"], answer["DOWNLOAD"]["file_type"]) == ("video", "video")
    assert answer["FILESIZE"] == {"size": len(content), "unit": "B"}
    assert answer["CHECKSUM"]["checksum"] == hashlib.sha256(content).hexdigest()
    assert (answer["MEDIAINFO"]["width"], answer["MEDIAINFO"]["height"]) == CLIP
    assert answer["MEDIAINFO"]["duration"] == pytest.approx(CLIP_SECONDS, abs=0.2)
    assert [stream["codec"] for stream in answer["MEDIAINFO"]["streams"]] == ["mpeg4"]
    assert job["picture"] == ("JPEG", CLIP)


def test_a_picture_and_a_sound_are_known_for_what_they_are(embedded_ends: dict[str, Any]) -> None:
    picture, sound = embedded_ends["picture.png"], embedded_ends["tone.wav"]

    assert (picture["type"], sound["type"]) == ("image", "sound")
    assert picture["response"]["MEDIAINFO"]["streams"][0]["codec"] == "png"
    assert picture["picture"] == ("JPEG", (320, PICTURE[1] * 320 // PICTURE[0]))
    assert sound["response"]["MEDIAINFO"]["streams"][0]["sample_rate"] == 8_000
    assert sound["response"]["THUMBNAIL"]["thumbnail"] is None
