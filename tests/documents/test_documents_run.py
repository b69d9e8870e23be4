"""What the documents tell their readers to type is typed here, in another directory."""

import asyncio
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from PIL import Image

from dane_core import Failed
from dane_core.client import Client
from dane_core.outcome import Done
from dane_core.spec import parse_job
from dane_core.testing import run_worker
from dane_core.worker.discover import find_workers, installed_worker
from dane_server.testing import embedded_dane
from tests.documents.blocks import (
    CLIENT_AUTHORS,
    README,
    TASK_DEVELOPERS,
    block,
    commands,
    dane_commands,
    inline,
    table,
    text_of,
)
from tests.services.process import free_port
from tests.stories.both_ways import READY_MADE, Real, as_environment, ended, starting
from tests.stories.marks import eventually
from tests.stories.programs import environment, finished, running

#: Fifteen lines, written from the page for task developers and from nothing else.
MY_OWN: Final = """\
from dane_core import Failed, TaskContext, Worker
from pydantic import BaseModel

class Lines(Worker):
    key = "LINES"

    class Args(BaseModel):
        blank: bool = True

    def work(self, task: TaskContext, args: Args) -> dict:
        lines = [line for line in task.source_path.read_text().splitlines()]
        if not lines:
            raise Failed("no lines in it", state=400)
        (task.out_folder / "lines.txt").write_text(str(len(lines)))
        return {"lines": len([line for line in lines if line or args.blank])}
"""

TEXT: Final = "to be or not to be\n\nthat is the question\n"


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page on a worker: its code, what to type, and what then is answered."""

    file: str
    code: str
    typed: Sequence[Sequence[str]]  # `dane …`, from the verb on
    answers: Sequence[dict[str, Any]]


PAGES: Final = {
    "README": Page(
        file="brightness.py",
        code=block(README, "class Brightness"),
        typed=dane_commands(README),
        answers=[{"brightness": 0.502}],
    ),
    "task-developers": Page(
        file="words.py",
        code=block(TASK_DEVELOPERS, "class Words"),
        typed=dane_commands(TASK_DEVELOPERS),
        answers=[
            {
                "words": 10,
                "top": {"to": 2, "be": 2, "or": 1, "not": 1, "that": 1, "is": 1}
                | {"the": 1, "question": 1},
            },
            {"words": 10, "top": {"to": 2, "be": 2, "or": 1}},
        ],
    ),
    "a new user": Page(
        file="lines.py",
        code=MY_OWN,
        typed=[
            ["dev", "lines.py"],
            ["run", "LINES", "/any.txt"],
            ["run", "LINES", "/any.txt", "--arg", "blank=false"],
        ],
        answers=[{"lines": 3}, {"lines": 2}],
    ),
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), (128, 128, 128)).save(path)
    return path


@pytest.mark.parametrize("name", PAGES)
async def test_a_worker_works_as_its_page_says(
    name: str, tmp_path: Path, text: Path, picture: Path
) -> None:
    """The file is saved, `dane dev` runs in one terminal, `dane run` in another."""
    page = PAGES[name]
    (tmp_path / page.file).write_text(page.code)
    dev = next(words for words in page.typed if words[0] == "dev" and len(words) > 1)
    source = picture if page.file == "brightness.py" else text
    runs = [[*words[:2], str(source), *words[3:]] for words in page.typed if words[0] == "run"]
    port = {"DANE_DANE__PORT": str(free_port())}  # somebody may work with the usual one

    async with running(*dev, folder=tmp_path, **port) as server:
        await server.says("DANE is ready at ")
        said = [await finished(*words, folder=tmp_path, **port) for words in runs]

    assert [code for code, _, _ in said] == [0] * len(page.answers)
    assert [json.loads(out) for _, out, _ in said] == page.answers


def test_the_worker_of_a_new_user_has_fifteen_lines() -> None:
    assert len([line for line in MY_OWN.splitlines() if line]) <= 15


async def test_what_can_go_wrong_goes_wrong_as_the_pages_say(tmp_path: Path, text: Path) -> None:
    """A wrong argument: 2. A failed job: 1. No server: 3."""
    (tmp_path / "words.py").write_text(PAGES["task-developers"].code)
    (wrong,) = [code.split() for code in inline(TASK_DEVELOPERS) if code.startswith("--arg ")]
    async with embedded_dane(*find_workers(str(tmp_path / "words.py")), folder=tmp_path) as client:
        await eventually(lambda: is_served(client, "WORDS"))
        dane = partial(finished, folder=tmp_path, DANE_API_URL=client.url)

        refused = await dane("run", "WORDS", text, *wrong)
        failed = await dane("run", "WORDS", tmp_path / "nowhere.txt")

    unreachable = await dane("run", "WORDS", text)
    assert (refused[0], failed[0], unreachable[0]) == (2, 1, 3)
    assert "tasks.Task.args.top" in refused[2]
    assert "is not there" in failed[2]
    codes = "0 done, 1 the job failed, 2 usage, 3 the server cannot be reached"
    assert codes in text_of(CLIENT_AUTHORS)


async def is_served(client: Client, key: str) -> bool:
    """Whether a worker for it has said hello."""
    return any(found["task_key"] == key and found["workers"] for found in await client.workers())


def test_the_test_on_the_page_passes(tmp_path: Path) -> None:
    """With pytest as it comes: no plugin, and no settings of ours."""
    (tmp_path / "words.py").write_text(PAGES["task-developers"].code)
    (tmp_path / "test_words.py").write_text(block(TASK_DEVELOPERS, "def test_words_are_counted"))

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_words.py"],
        cwd=tmp_path,
        env=environment(tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
        check=False,
    )

    assert "1 passed" in done.stdout, done.stdout


async def test_the_worker_of_the_readme_tells_a_picture_from_a_text(
    tmp_path: Path, text: Path, picture: Path
) -> None:
    (tmp_path / "brightness.py").write_text(PAGES["README"].code)
    (worker,) = find_workers(str(tmp_path / "brightness.py"))

    done = await run_worker(worker, source=picture)
    failed = await run_worker(worker, source=text)

    assert isinstance(done, Done)
    assert done.response == {"brightness": 0.502}
    assert isinstance(failed, Failed)
    assert failed.state == 400


@pytest.mark.services
@pytest.mark.parametrize("place", ["a file", "an installed package"])
async def test_a_worker_is_put_to_work_as_its_page_says(
    place: str, real: Real, tmp_path: Path, text: Path
) -> None:
    """With the broker's address in the environment; by its key once an entry point names it."""
    code = PAGES["task-developers"].code
    by_file, by_key = [words for words in dane_commands(TASK_DEVELOPERS) if words[0] == "worker"]
    if place == "a file":
        (tmp_path / "words.py").write_text(code)
    else:
        install(tmp_path / "site", code)
    settings = {**as_environment(real.sections), "PYTHONPATH": str(tmp_path / "site")}
    typed = by_file if place == "a file" else by_key

    async with (
        starting(tmp_path / "dane", real)() as client,
        running(*typed, folder=tmp_path, **settings) as worker,
    ):
        await worker.says("takes WORDS")
        job = await client.submit({"source_url": str(text), "source_id": "words", "tasks": "WORDS"})
        job = await ended(client, job["job_id"])

    assert job["response"]["WORDS"]["words"] == 10


def install(site: Path, code: str) -> None:
    """What pip leaves of a package whose project says what the page says."""
    project = tomllib.loads(block(TASK_DEVELOPERS, "[project.entry-points"))["project"]
    package, info = site / "my_package", site / "my_package-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "words.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


# --- specifications and requests -----------------------------------------------------------------


async def test_the_specification_of_the_readme_is_done(tmp_path: Path, picture: Path) -> None:
    """With a picture in place of its video, by the command beside it."""
    spec = block(README, '"source_url"')
    assert parse_job(spec.encode()).source_url == "https://example.org/news.mp4"
    (tmp_path / "spec.json").write_text(spec.replace("https://example.org/news.mp4", str(picture)))
    (typed,) = [words for words in dane_commands(README) if words[0] == "submit"]

    async with embedded_dane(*map(installed_worker, READY_MADE), folder=tmp_path) as client:
        code, out, _ = await finished(*typed, folder=tmp_path, DANE_API_URL=client.url)
        (job,) = await client.jobs()

    assert code == 0, out
    assert job["status"] == "succeeded"
    assert all(key in out for key in READY_MADE)


def test_every_specification_between_backticks_is_one() -> None:
    """Those that are not cut short by dots."""
    nodes = [
        json.loads(code)
        for code in inline(CLIENT_AUTHORS)
        if code.startswith('{"task') and "…" not in code
    ]

    assert nodes
    for tasks in nodes:
        parse_job(json.dumps({"source_url": "/x", "source_id": "x", "tasks": tasks}).encode())


async def test_the_request_on_the_page_is_accepted(tmp_path: Path) -> None:
    """What curl would send, word for word."""
    (curl,) = commands(block(CLIENT_AUTHORS, "curl -i"))
    assert curl[:3] == ["curl", "-i", "http://127.0.0.1:5500/DANE/job"]
    asked = dict(zip(curl[3::2], curl[4::2], strict=True))
    name, _, value = asked["-H"].partition(": ")

    async with plain_server(tmp_path) as http:
        answer = await http.post("/DANE/job", headers={name: value}, content=asked["-d"])
        job = await http.get(answer.headers["location"])

    assert answer.status_code == 201
    assert job.json()["job_id"] == answer.json()["job_id"]
    members = {row[0].strip("`") for row in table(CLIENT_AUTHORS, "## Follow it")}
    assert members <= job.json().keys()


async def test_a_problem_has_the_members_on_the_page(tmp_path: Path) -> None:
    page = json.loads(block(CLIENT_AUTHORS, '"errors"'))
    spec = {"source_url": "/x", "source_id": "x", "tasks": {"taskSequential": ["A", "no.key"]}}

    async with plain_server(tmp_path) as http:
        answer = await http.post("/DANE/job", json=spec)

    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["status"]) == (422, page["status"])
    assert answer.json().keys() == page.keys()
    assert [error["path"] for error in answer.json()["errors"]] == [page["errors"][0]["path"]]
    assert answer.json()["errors"][0].keys() == page["errors"][0].keys()


async def test_a_request_is_taken_once_only_as_the_page_says(tmp_path: Path) -> None:
    (header,) = [code for code in inline(CLIENT_AUTHORS) if code.startswith("Idempotency-Key: ")]
    (replayed,) = [code for code in inline(CLIENT_AUTHORS) if code.startswith("Idempotent-")]
    headers = dict([header.split(": ")])

    async with plain_server(tmp_path) as http:
        first = await http.post("/DANE/job", json=SPEC, headers=headers)
        again = await http.post("/DANE/job", json=SPEC, headers=headers)
        other = await http.post("/DANE/job", json={**SPEC, "priority": 2}, headers=headers)

    assert first.json()["job_id"] == again.json()["job_id"]
    name, _, value = replayed.partition(": ")
    assert again.headers[name] == value
    assert name not in first.headers
    assert other.status_code == 422


async def test_many_are_taken_at_once_as_the_page_says(tmp_path: Path) -> None:
    """As an array, or as lines; a bad one fails alone."""
    (content_type,) = [code for code in inline(CLIENT_AUTHORS) if "ndjson" in code]
    lines = "\n".join(map(json.dumps, [SPEC, {}, SPEC]))

    async with plain_server(tmp_path) as http:
        array = await http.post("/DANE/jobs", json=[SPEC, {}, SPEC])
        stream = await http.post(
            "/DANE/jobs", content=lines, headers=dict([content_type.split(": ")])
        )

    assert [one["status"] for one in array.json()] == [201, 422, 201]
    results = [json.loads(line) for line in stream.text.splitlines()]
    assert [one["status"] for one in results] == [201, 422, 201]


async def test_jobs_are_found_and_shown_as_the_page_says(tmp_path: Path) -> None:
    """Every filter, the pages, the head alone, and the tasks page by page."""
    (sentence,) = re.findall(r"`GET /DANE/jobs` lists.*?more\.", PAGE, re.DOTALL)
    filters = set(re.findall(r"`([\w.=]+)`", sentence)) - {"next"}
    values = {"status": "accepted", "state": "422", "task_key": "nobody", "source_id": "NEWS-1"}
    values |= {"owner": "", "since": "2020-01-01", "until": "2120-01-01", "limit": "1"}

    async with plain_server(tmp_path) as http:
        for _ in range(2):
            await http.post("/DANE/job", json={**SPEC, "metadata": {"NAME": "VALUE"}})
        await eventually(lambda: is_shown(http, "/DANE/jobs?state=422", 2))
        found = await http.get("/DANE/jobs", params={**values, "metadata.NAME": "VALUE"})
        following = await http.get(found.json()["next"])
        head = await http.get("/DANE/job/1?tasks=false")
        tasks = await http.get("/DANE/job/1/tasks")
        of_source = await http.get("/DANE/search/NEWS-1")
        unfinished = await http.get("/DANE/job/inprogress")

    assert filters == {*values, "metadata.NAME=VALUE"}
    assert [job["job_id"] for job in found.json()["jobs"]] == [2]
    assert [job["job_id"] for job in following.json()["jobs"]] == [1]
    assert not {"tasks", "response"} & head.json().keys()
    assert [one["Task"]["task_key"] for one in tasks.json()["tasks"]] == ["NOBODY"]
    assert of_source.json() == unfinished.json() == {"jobs": [1, 2]}


async def is_shown(http: httpx.AsyncClient, path: str, count: int) -> bool:
    return len((await http.get(path)).json()["jobs"]) == count


async def test_the_client_on_the_page_follows_its_job(tmp_path: Path, text: Path) -> None:
    """The script as it stands, with an address and a file that are there."""
    code = block(CLIENT_AUTHORS, "from dane_core import Client")

    async with embedded_dane(installed_worker("FILESIZE"), folder=tmp_path) as client:
        script = code.replace("http://127.0.0.1:5500", client.url)
        (tmp_path / "follow.py").write_text(script.replace("/srv/collection/news.mp4", str(text)))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "follow.py", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()

    assert process.returncode == 0
    assert out.decode().split()[-1] == "succeeded"


async def test_a_shell_shows_jobs_and_tasks_as_the_page_says(tmp_path: Path) -> None:
    """For people, and with --json for programs."""
    typed = [words for words in dane_commands(CLIENT_AUTHORS) if words[0] != "submit"]
    assert [words[:2] for words in typed] == [["job", "show"], ["task", "explain"]]

    async with plain_server(tmp_path) as http:
        for _ in range(7):
            await http.post("/DANE/job", json=SPEC)
        dane = partial(finished, folder=tmp_path, DANE_API_URL=str(http.base_url))
        shown = [await dane(*words) for words in typed]
        as_json = [await dane(*words, "--json") for words in typed]

    assert [code for code, _, _ in [*shown, *as_json]] == [0] * 4
    job, explanation = (json.loads(out) for _, out, _ in as_json)
    assert job["job_id"] == 1
    assert explanation["sentence"] in shown[1][1]


PAGE: Final = text_of(CLIENT_AUTHORS)
SPEC: Final = {"source_url": "/x", "source_id": "NEWS-1", "tasks": "NOBODY"}


@asynccontextmanager
async def plain_server(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A server without workers, and HTTP as anybody speaks it."""
    async with (
        embedded_dane(folder=folder) as client,
        httpx.AsyncClient(base_url=client.url, trust_env=False) as http,
    ):
        yield http
