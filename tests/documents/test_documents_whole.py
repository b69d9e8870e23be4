"""Nothing stands in the documents that nobody tries: blocks, commands, links, routes, names."""

import asyncio
import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from typer.testing import CliRunner

from dane_core import TaskContext
from dane_core.cli import build
from dane_core.client import DEFAULT_URL
from dane_core.spec import job_schema, read_job
from dane_core.states import MEANINGS, JobStatus
from dane_core.worker.discover import installed_worker
from dane_server.graph import compile_graph
from dane_server.testing import embedded_dane
from tests.documents.blocks import (
    CLIENT_AUTHORS,
    OPERATORS,
    PERFORMANCE,
    README,
    ROOT,
    TASK_DEVELOPERS,
    block,
    blocks,
    commands,
    dane_commands,
    inline,
    table,
    text_of,
)

EVERY_DOCUMENT = pytest.mark.parametrize(
    "document", [README, TASK_DEVELOPERS, CLIENT_AUTHORS, OPERATORS, PERFORMANCE]
)

#: Each block by how it begins, and the test that tries it. A new one needs a test first.
TRIED: Final = {
    README: {
        "make demo    # makes": "test_what_is_made_has_a_target",
        "from dane_core import Failed, TaskContext, Worker": "test_a_worker_works_as_its_page_says",
        "dane dev brightness.py": "test_a_worker_works_as_its_page_says",
        "{": "test_the_specification_of_the_readme_is_done",
        " client ──POST": "a picture",
        'pip install "dane-router': "test_what_is_installed_is_offered",
    },
    TASK_DEVELOPERS: {
        "python3 -m venv venv": "test_what_is_installed_is_offered",
        "import re": "test_a_worker_works_as_its_page_says",
        "venv/bin/dane dev words.py": "test_a_worker_works_as_its_page_says",
        "venv/bin/dane run WORDS": "test_a_worker_works_as_its_page_says",
        "import asyncio": "test_the_test_on_the_page_passes",
        "dane worker words.py": "test_a_worker_is_put_to_work_as_its_page_says",
        '[project.entry-points."dane.workers"]': "test_a_worker_is_put_to_work_as_its_page_says",
    },
    CLIENT_AUTHORS: {
        "curl -i": "test_the_request_on_the_page_is_accepted",
        '{"type": "…"': "test_a_problem_has_the_members_on_the_page",
        "import asyncio": "test_the_client_on_the_page_follows_its_job",
    },
}


@pytest.mark.parametrize("document", TRIED)
def test_every_block_of_code_is_tried(document: str) -> None:
    begins = [one.text.splitlines()[0] for one in blocks(document)]

    assert len(begins) == len(TRIED[document])
    for begin, known in zip(begins, TRIED[document], strict=True):
        assert begin.startswith(known)


@EVERY_DOCUMENT
def test_every_command_is_one(document: str) -> None:
    """Verbs and options are those of `dane`; with `--help` behind them nothing is run."""
    for words in dane_commands(document):
        spoken = [word for word in words if "…" not in word]

        said = CliRunner().invoke(build(), [*spoken, "--help"])

        assert said.exit_code == 0, f"dane {' '.join(words)}: {said.output}"


@EVERY_DOCUMENT
def test_every_link_leads_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#:]+)\)", text_of(document)):
        assert (folder / target).exists(), target


# --- what is made and installed ------------------------------------------------------------------


def test_what_is_made_has_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    made = [words[1] for words in commands(block(README, "make demo")) if words[0] == "make"]

    assert made == ["demo", "test"]
    for target in made:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", [README, TASK_DEVELOPERS, OPERATORS])
def test_what_is_installed_is_offered(document: str) -> None:
    """The distribution, and its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    shell = [
        words for one in blocks(document) if one.language == "sh" for words in commands(one.text)
    ]
    wanted = [re.fullmatch(r"(.*?)\[([a-z,]+)\].*", word) for words in shell for word in words]
    found = [match.groups() for match in wanted if match]

    assert found
    for name, extras in found:
        assert "/" in name or name == project["name"]
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


# --- routes and names ----------------------------------------------------------------------------


@pytest.fixture
async def routes(tmp_path: Path) -> set[str]:
    """What a server publishes, as `GET /DANE/job/1`: any number stands for any id."""
    async with embedded_dane(folder=tmp_path) as client:
        answer = await asyncio.to_thread(httpx.get, f"{client.url}/DANE/openapi.json")
    paths: dict[str, Any] = answer.json()["paths"]
    return {
        f"{method.upper()} {re.sub(r'{[^}]*}', '1', path)}"
        for path, methods in paths.items()
        for method in methods
    }


@pytest.mark.parametrize("document", [README, CLIENT_AUTHORS, OPERATORS])
def test_every_route_is_one(document: str, routes: set[str]) -> None:
    told = re.findall(r"(?:GET|POST|PUT|DELETE) /DANE/[\w/{}.-]*", text_of(document))

    assert told
    assert {as_published(route) for route in told} <= routes


def as_published(route: str) -> str:
    """With 1 for every id, be it a number, a source's, or a name in braces."""
    return re.sub(r"(?<=/)(?:\d+|{\w+}|[A-Z]+-\d+)(?=/|$)", "1", route)


def test_every_act_of_the_table_is_a_route(routes: set[str]) -> None:
    """`POST /DANE/job/1/cancel`, `/pause`: the second is the first with another end."""
    for row in table(CLIENT_AUTHORS, "## Change it"):
        first, *others = re.findall(r"`([^`]+)`", row[0])
        stem = first.rpartition("/")[0]
        for route in (first, *(stem + other for other in others)):
            assert as_published(route) in routes


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(?:task\.)?(\w+)", cell)


def test_a_task_context_has_every_member_on_the_page() -> None:
    rows = table(TASK_DEVELOPERS, "## What the task tells you")
    told = {name for row in rows for name in names_in(row[0])}
    members = {field.name for field in dataclasses.fields(TaskContext)} | set(dir(TaskContext))

    assert len(told) >= 12
    assert told <= members


def test_a_specification_has_the_members_on_the_page() -> None:
    told = {name for row in table(CLIENT_AUTHORS, "## Post a job") for name in names_in(row[0])}
    of_0_1 = {"source_set", "job_id", "response"}  # accepted, and empty

    assert told == set(job_schema()["properties"]) - of_0_1


def test_a_task_has_the_members_on_the_page() -> None:
    bullet = text_of(CLIENT_AUTHORS).split("### Tasks")[1].split("\n- ")[1]
    told = set(re.findall(r"`(\w+)`", bullet))
    (retry,) = re.findall(r"`retry` \(`([^`]*)`", bullet)
    members = set(job_schema()["$defs"]["TaskMembers"]["properties"])
    of_0_1 = {"task_key", "task_id", "task_state", "task_msg", "job_id"}

    assert told == members - of_0_1
    assert json.loads(retry).keys() == job_schema()["$defs"]["RetryMembers"]["properties"].keys()


def test_every_number_of_a_state_is_on_the_page() -> None:
    rows = table(CLIENT_AUTHORS, "The numbers of `task_state`:")
    told = {int(number) for row in rows for number in row[0].split()}

    assert told == set(MEANINGS) - {424}  # no task is skipped yet


def test_every_status_of_a_job_is_on_the_page() -> None:
    (row,) = [row for row in table(CLIENT_AUTHORS, "## Follow it") if row[0] == "`status`"]

    assert set(re.findall(r"`(\w+)`", row[1])) == {status.value for status in JobStatus}


def test_without_configuration_a_server_answers_where_the_page_says() -> None:
    assert DEFAULT_URL in inline(CLIENT_AUTHORS)


@pytest.mark.parametrize("example", job_schema()["examples"])
def test_the_examples_in_the_openapi_document_suit_the_ready_workers(example: Any) -> None:
    for task in compile_graph(read_job(example).tasks).tasks:
        worker = installed_worker(task.key)
        assert worker.Args or not task.args
        if worker.Args:
            worker.Args.model_validate(task.args, extra="forbid")
