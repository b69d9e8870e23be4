"""How jobs, tasks and workers look in a terminal."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from dane_core.cli.render import (
    answers_table,
    job_page,
    job_tree,
    jobs_table,
    keys_table,
    plain,
    state_of,
    task_line,
    task_page,
)
from dane_core.states import JobStatus, TaskState


def drawn(picture: RenderableType, width: int = 100) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture)
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def task(key: str, state: str = "blocked", **members: Any) -> dict[str, Any]:
    base = {"task_key": key, "task_id": 1, "task_state": 201, "task_msg": "Created", "job_id": 7}
    return {"Task": {**base, "status": state, **members}}


def job(tasks: Any, **members: Any) -> dict[str, Any]:
    counts = {"total": 3, "blocked": 1, "held": 0, "active": 1, "succeeded": 1, "failed": 0}
    head = {"job_id": 7, "status": "running", "source_url": "http://a.test/x.mp4"}
    return {**head, "counts": counts, "tasks": tasks, **members}


def test_a_job_is_a_tree_as_its_specification_nests() -> None:
    tree = job(
        {
            "taskSequential": [
                task("DOWNLOAD", "succeeded"),
                {
                    "taskParallel": [
                        task("SHOTS", "running", progress=0.5, progress_message="frame 50"),
                        {"taskSequential": [task("ASR", "queued"), task("NER")]},
                    ]
                },
            ]
        }
    )

    assert drawn(job_tree(tree)).splitlines() == [
        "job 7  ● running  1/3  http://a.test/x.mp4",
        "├── ✔ DOWNLOAD  succeeded",
        "└── side by side",
        "    ├── ● SHOTS  ━━━━━━━━━━━━  50%  frame 50",
        "    └── one after another",
        "        ├── ◌ ASR  queued",
        "        └── · NER  blocked",
    ]


def test_a_graph_says_what_waits_for_what() -> None:
    graph = {"taskGraph": {"a": task("A"), "b": {"task": task("B"), "after": ["a"]}}}

    assert drawn(job_tree(job(graph))).splitlines()[1:] == [
        "└── graph",
        "    ├── a",
        "    │   └── · A  blocked",
        "    └── b after a",
        "        └── · B  blocked",
    ]


def test_of_many_tasks_those_that_need_a_look_are_shown() -> None:
    """A thousand frames, one of them broken: the broken one must not scroll away."""
    many = [task(f"T{n}", "succeeded") for n in range(500)]
    many[321] = task("BROKEN", "failed", task_msg="no such codec")

    picture = drawn(job_tree(job({"taskParallel": many})))

    assert "✘ BROKEN  no such codec" in picture
    assert "… and 488 succeeded" in picture
    assert len(picture.splitlines()) == 15


def test_a_job_too_large_to_follow_is_counts() -> None:
    counts = {"total": 100_000, "blocked": 0, "held": 0, "active": 50_000, "succeeded": 50_000}
    huge = {**job(None), "counts": counts}
    del huge["tasks"]

    assert "50,000 active, 50,000 succeeded" in drawn(job_tree(huge))


@pytest.mark.parametrize("state", TaskState)
def test_every_state_of_a_task_has_a_look(state: TaskState) -> None:
    """A state added to the table must not be drawn as a failure."""
    assert state_of(task("A", state)["Task"]) == state


@pytest.mark.parametrize("status", JobStatus)
def test_every_status_of_a_job_has_a_look(status: JobStatus) -> None:
    assert drawn(job_tree(job(task("A"), status=status))).startswith("job 7  ")


def test_a_state_is_read_from_its_number_where_there_is_no_name() -> None:
    assert state_of({"task_state": 102}) == "queued"
    assert state_of({"task_state": 404}) == "failed"


def test_a_task_without_a_worker_says_what_to_do() -> None:
    line = drawn(task_line(task("ASR", "unroutable")["Task"]))

    assert line == "? ASR  no worker is bound to ASR; start one, like `dane worker ASR`"


def test_nothing_that_a_worker_says_steers_the_terminal() -> None:
    """Messages and names come from anywhere: escape codes, markup, line breaks, bells."""
    evil = "\x1b[2J\x1b]0;title\x07[bold red]markup[/]\r\nnext\u202eline"
    shown = [
        task_line(task("A", "failed", task_msg=evil, name=evil)["Task"]),
        task_page({**task("A", worker=evil)["Task"], "response": {evil: evil}}),
        job_page(job(task("A"), source_url=evil, response={evil: {evil: evil}})),
    ]

    for picture in shown:
        text = drawn(picture, width=1000)
        assert not set(text) & {"\x1b", "\x07", "\r", "\u202e"}
        assert "[bold red]markup[/]" in text


def test_a_task_shows_what_was_not_recorded() -> None:
    late = {
        "attempt": 1,
        "reason": "stale",
        "times": 3,
        "worker": "w1",
        "last_at": "2026-11-22T10:00:00.000000Z",
    }

    [head, line] = drawn(task_page(task("A", rejected=[late])["Task"])).splitlines()[-2:]

    assert head.split() == ["NOT", "RECORDED", "ATTEMPT", "TIMES", "WORKER", "LAST"]
    assert line.split()[:4] == ["stale", "1", "3", "w1"]


def test_long_text_is_cut() -> None:
    assert len(plain("x" * 100_000)) < 500


def test_answers_are_one_line_each() -> None:
    table = drawn(answers_table({"FILESIZE": {"size": 5}, "ASR": [{"n": 1}, None]}))

    assert [line.split(maxsplit=1) for line in table.splitlines()] == [
        ["TASK", "ANSWER"],
        ["FILESIZE", '{"size":5}'],
        ["ASR", '[{"n":1},null]'],
    ]


def test_nothing_to_list_is_said_in_words() -> None:
    assert drawn(jobs_table([])) == "no jobs"
    assert drawn(keys_table([])) == "no worker has come yet"
