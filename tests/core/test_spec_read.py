"""What a specification may say, and what is said about one that may not."""

import json
from typing import Any

import pytest

from dane_core.errors import BadSpec
from dane_core.job import Retry
from dane_core.spec import (
    GraphNode,
    GraphSpec,
    JobSpec,
    Limits,
    Parallel,
    Sequential,
    TaskSpec,
    parse_job,
    read_job,
)


def job(tasks: Any = "NOOP", **members: Any) -> dict[str, Any]:
    return {"source_url": "/data/clip.mp4", "source_id": "CLIP-1", "tasks": tasks, **members}


def faults_of(data: object, **limits: int) -> dict[str, str]:
    with pytest.raises(BadSpec) as refused:
        read_job(data, Limits(**limits))
    return {fault.path: fault.message for fault in refused.value.faults}


def test_the_smallest_specification_is_a_source_and_a_key() -> None:
    spec = parse_job(b'{"source_url": "/data/clip.mp4", "source_id": "CLIP-1", "tasks": "noop"}')

    assert spec == JobSpec(
        source_url="/data/clip.mp4", source_id="CLIP-1", tasks=TaskSpec(key="NOOP"), priority=1
    )


def test_a_task_may_say_all_of_this() -> None:
    task = {
        "task_key": "Shots",
        "name": "first shots",
        "args": {"threshold": 0.5},
        "priority": 10,
        "timeout": 60,
        "retry": {"limit": 5},
        "allow_failure": True,
    }

    spec = read_job(job({"Task": task}, type="video", metadata={"a": [1]}, priority=0))

    assert spec.tasks == TaskSpec(
        key="SHOTS",
        name="first shots",
        args={"threshold": 0.5},
        priority=10,
        timeout=60.0,
        retry=Retry(limit=5),
        allow_failure=True,
    )
    assert (spec.type, spec.metadata, spec.priority) == ("video", {"a": [1]}, 0)


def test_nodes_nest() -> None:
    spec = read_job(
        job(
            {
                "taskSequential": [
                    "A",
                    {"taskParallel": ["B", {"Task": {"task_key": "C"}}]},
                    {"taskGraph": {"d": "D", "e": {"task": "E", "after": ["d"]}}},
                ]
            }
        )
    )

    assert spec.tasks == Sequential(
        (
            TaskSpec(key="A"),
            Parallel((TaskSpec(key="B"), TaskSpec(key="C"))),
            GraphSpec(
                {
                    "d": GraphNode(TaskSpec(key="D")),
                    "e": GraphNode(TaskSpec(key="E"), after=("d",)),
                }
            ),
        )
    )


def test_null_is_like_leaving_out_what_may_be_left_out() -> None:
    task = dict.fromkeys(["name", "args", "priority", "timeout", "retry", "allow_failure"])

    spec = read_job(
        job({"Task": {"task_key": "A", **task}}, type=None, metadata=None, priority=None)
    )

    assert spec == read_job(job("A"))


def test_every_fault_is_told_at_once_with_its_path() -> None:
    """A submitter corrects a file once, not once for each fault in it."""
    data = {
        "source_id": 7,
        "source_ulr": "/data/clip.mp4",
        "type": "Video",
        "priority": 11,
        "metadata": {"when": float("nan")},
        "tasks": {
            "taskSequential": [
                "A",
                {"Task": {"task_key": "B*", "args": [], "timeout": 0, "retry": {"limit": -1}}},
                {"taskParallel": []},
                {"taskGraph": {"c d": {"task": "C", "after": ["x"]}}},
            ]
        },
    }

    assert faults_of(data) == {
        "source_ulr": "unknown; did you mean 'source_url'?",
        "source_url": "missing",
        "source_id": "expected a valid string",
        "type": "'Video' is not a type: expected 1 to 32 letters a-z, digits, '_' or '-'",
        "priority": "expected less than or equal to 10",
        "tasks.taskSequential[1].Task.task_key": (
            "'B*' is not a task key: expected 1 to 100 letters A-Z, digits, '_' or '-'"
        ),
        "tasks.taskSequential[1].Task.args": "expected an object",
        "tasks.taskSequential[1].Task.timeout": "expected greater than 0",
        "tasks.taskSequential[1].Task.retry.limit": "expected greater than or equal to 0",
        "tasks.taskSequential[2].taskParallel": "expected at least one task",
        "tasks.taskSequential[3].taskGraph['c d'].after[0]": "there is no 'x' in this graph",
        "metadata.when": "not a finite number",
    }


@pytest.mark.parametrize(
    ("node", "path", "part"),
    [
        (None, "tasks", "expected a task key"),
        (7, "tasks", "expected a task key"),
        (["A", "B"], "tasks", 'expected a task key, {"Task"'),
        ({}, "tasks", "expected a task key"),
        ("", "tasks", "'' is not a task key"),
        ("K" * 101, "tasks", "is not a task key"),
        ("ﬁlesize", "tasks", "is not a task key"),
        ("A\n", "tasks", "is not a task key"),
        ("video.A", "tasks", "is not a task key"),
        ("#", "tasks", "is not a task key"),
        ({"task_key": "A"}, "tasks", 'a task is written {"Task"'),
        ({"taskSequental": ["A"]}, "tasks.taskSequental", "did you mean 'taskSequential'"),
        ({"taskSequential": ["A"], "taskParallel": ["B"]}, "tasks", "expected only one of"),
        ({"taskSequential": "A"}, "tasks.taskSequential", "expected an array"),
        ({"taskSequential": {"0": "A"}}, "tasks.taskSequential", "expected an array"),
        ({"taskParallel": ["A", None]}, "tasks.taskParallel[1]", "expected a task key"),
        ({"Task": "A"}, "tasks.Task", "expected an object"),
        ({"Task": {}}, "tasks.Task.task_key", "missing"),
        ({"Task": {"task_key": None}}, "tasks.Task.task_key", "expected a valid string"),
        ({"Task": {"task_key": "A", "arg": {}}}, "tasks.Task.arg", "did you mean 'args'?"),
        ({"Task": {"task_key": "A", "task_id": 3}}, "tasks.Task.task_id", "DANE gives this"),
        ({"Task": {"task_key": "A", "task_state": 200}}, "tasks.Task.task_state", "leave it out"),
        ({"Task": {"task_key": "A", "name": ""}}, "tasks.Task.name", "expected 1 to 100"),
        ({"Task": {"task_key": "A", "name": "a\nb"}}, "tasks.Task.name", "control character"),
        ({"Task": {"task_key": "A", "priority": True}}, "tasks.Task.priority", "valid integer"),
        ({"Task": {"task_key": "A", "priority": 1.0}}, "tasks.Task.priority", "valid integer"),
        ({"Task": {"task_key": "A", "timeout": "60"}}, "tasks.Task.timeout", "valid number"),
        ({"Task": {"task_key": "A", "timeout": True}}, "tasks.Task.timeout", "valid number"),
        ({"Task": {"task_key": "A", "timeout": 1e300}}, "tasks.Task.timeout", "less than"),
        ({"Task": {"task_key": "A", "allow_failure": 1}}, "tasks.Task.allow_failure", "boolean"),
        ({"Task": {"task_key": "A", "retry": 3}}, "tasks.Task.retry", "expected an object"),
        ({"Task": {"task_key": "A", "retry": {"max": 3}}}, "tasks.Task.retry.max", "unknown"),
        (
            {"Task": {"task_key": "A", "retry": {"factor": float("inf")}}},
            "tasks.Task.retry.factor",
            "finite number",
        ),
        ({"taskGraph": ["A"]}, "tasks.taskGraph", "expected an object"),
        ({"taskGraph": {}}, "tasks.taskGraph", "expected at least one task"),
        ({"taskGraph": {"": "A"}}, "tasks.taskGraph['']", "its name: expected 1 to 100"),
        ({"taskGraph": {"a": {"after": []}}}, "tasks.taskGraph.a.task", "missing"),
        (
            {"taskGraph": {"a": {"task": "A", "afer": []}}},
            "tasks.taskGraph.a.afer",
            "unknown; did you mean 'after'?",
        ),
        ({"taskGraph": {"a": {"task": "A", "after": "b"}}}, "tasks.taskGraph.a.after", "array"),
        (
            {"taskGraph": {"a": {"task": "A", "after": [1]}}},
            "tasks.taskGraph.a.after[0]",
            "expected a name",
        ),
        (
            {"taskGraph": {"shots": "A", "b": {"task": "B", "after": ["shot"]}}},
            "tasks.taskGraph.b.after[0]",
            "there is no 'shot' in this graph; did you mean 'shots'?",
        ),
        (
            {"taskGraph": {"a": "A", "b": {"task": "B", "after": ["a", "a"]}}},
            "tasks.taskGraph.b.after[1]",
            "'a' is given twice",
        ),
    ],
)
def test_a_node_that_is_not_one_is_told_where_and_why(node: Any, path: str, part: str) -> None:
    faults = faults_of(job(node))

    assert list(faults) == [path]
    assert part in faults[path]


@pytest.mark.parametrize(
    ("members", "path", "part"),
    [
        ({"source_url": ""}, "source_url", "expected 1 to 4,096 characters, not 0"),
        ({"source_url": "  "}, "source_url", "expected 1 to"),
        ({"source_url": "x" * 4097}, "source_url", "not 4,097"),
        ({"source_url": "http://h/" + "ä" * 1000}, "source_url", "not 6,009"),
        ({"source_url": "http://h/a\r\nHost: x"}, "source_url", "control character"),
        ({"source_url": None}, "source_url", "valid string"),
        ({"source_id": "x" * 256}, "source_id", "expected 1 to 255"),
        ({"source_id": "../../etc/passwd"}, "source_id", "a step '.' or '..'"),
        ({"source_id": "a\\..\\b"}, "source_id", "a step '.' or '..'"),
        ({"source_id": "%2e%2E%2fb"}, "source_id", "a step '.' or '..'"),
        ({"source_set": 5}, "source_set", "valid string"),
        ({"type": ""}, "type", "is not a type"),
        ({"type": "video.*"}, "type", "is not a type"),
        ({"type": "v" * 33}, "type", "is not a type"),
        ({"metadata": []}, "metadata", "expected an object"),
        ({"metadata": "{}"}, "metadata", "expected an object"),
        ({"priority": -1}, "priority", "greater than or equal to 0"),
        ({"priority": "11"}, "priority", "valid integer"),
        ({"priority": " 1"}, "priority", "valid integer"),
        ({"priority": "\u0661"}, "priority", "valid integer"),
        ({"priority": True}, "priority", "valid integer"),
        ({"job_id": 1}, "job_id", "DANE gives this"),
        ({"response": {"SHARED": {}}}, "response", "written by workers"),
        ({"response": []}, "response", "expected an object"),
        ({"api": "x"}, "api", "unknown"),
    ],
)
def test_a_head_that_is_wrong_is_told_where_and_why(
    members: dict[str, Any], path: str, part: str
) -> None:
    faults = faults_of(job(**members))

    assert list(faults) == [path]
    assert part in faults[path]


@pytest.mark.parametrize("data", [None, 1, "NOOP", [], [job()]])
def test_a_specification_is_an_object(data: object) -> None:
    assert faults_of(data) == {"": "expected an object"}


def test_honest_ids_with_slashes_and_dots_are_taken() -> None:
    """Archives use handles and URLs as ids; only a step out of a folder is refused."""
    for source_id in ("http://hdl.handle.net/10744/mi_1", "a..b/c.d", "...", "Jürgen 🎬"):
        assert read_job(job(source_id=source_id)).source_id == source_id


def test_a_name_used_twice_names_both_places() -> None:
    task = {"Task": {"task_key": "A", "name": "shots"}}

    faults = faults_of(job({"taskSequential": [task, {"taskParallel": ["B", task]}]}))

    assert faults == {
        "tasks.taskSequential[1].taskParallel[1].Task.name": (
            "'shots' is already the name of tasks.taskSequential[0].Task"
        )
    }


def test_a_cycle_is_named_the_way_round() -> None:
    graph = {
        "A": {"task": "X", "after": ["C"]},
        "B": {"task": "X", "after": ["A"]},
        "C": {"task": "X", "after": ["B"]},
        "D": {"task": "X", "after": ["C"]},
        "me": {"task": "X", "after": ["me"]},
    }

    with pytest.raises(BadSpec) as refused:
        read_job(job({"taskGraph": graph}))

    assert [(fault.path, fault.message) for fault in refused.value.faults] == [
        ("tasks.taskGraph", "a cycle, each after the next: A → C → B → A"),
        ("tasks.taskGraph", "a cycle, each after the next: me → me"),
    ]


def test_a_long_cycle_is_cut() -> None:
    graph = {f"n{i}": {"task": "X", "after": [f"n{(i + 1) % 500}"]} for i in range(500)}

    message = faults_of(job({"taskGraph": graph}))["tasks.taskGraph"]

    assert message.endswith("n8 → n9 → 490 more → n0")


def test_the_number_of_tasks_is_limited() -> None:
    pairs = [{"taskSequential": ["A", "B"]}] * 3

    read_job(job({"taskParallel": pairs}), Limits(tasks=6))

    assert faults_of(job({"taskParallel": pairs}), tasks=5) == {"tasks": "more than 5 tasks"}


def test_depth_is_limited() -> None:
    node: Any = "A"
    for _ in range(64):
        node = {"taskGraph": {"n": {"task": node, "after": []}}}
    deeper = {"taskSequential": [node]}
    read_job(job(node))

    [(path, message)] = faults_of(job(deeper)).items()
    assert path.startswith("tasks.taskSequential[0].taskGraph.n.task.taskGraph")
    assert message == "nested deeper than 64"


def test_free_objects_are_measured_in_bytes_of_json() -> None:
    """A column holds bytes, and an emoji is four of them."""
    fits = {"a": "🎬" * 2}  # {"a":"…"} is 8 bytes around them
    read_job(job(metadata=fits), Limits(metadata=16))

    assert faults_of(job(metadata=fits), metadata=15) == {"metadata": "larger than 15 bytes"}
    assert faults_of(job({"Task": {"task_key": "A", "args": fits}}), args=15) == {
        "tasks.Task.args": "larger than 15 bytes"
    }


def test_free_objects_are_limited_in_depth() -> None:
    value: Any = {}
    for _ in range(30):
        value = {"a": value}

    read_job(job(metadata=value))

    assert faults_of(job(metadata={"a": value})) == {
        "metadata" + ".a" * 31: "nested deeper than 31"
    }


def test_a_body_is_limited() -> None:
    raw = json.dumps(job()).encode()

    with pytest.raises(BadSpec, match="larger than 10 bytes"):
        parse_job(raw, Limits(body=10))


def test_no_more_than_a_hundred_faults_are_told() -> None:
    with pytest.raises(BadSpec) as refused:
        read_job(job({"taskParallel": ["*"] * 5000}))

    assert len(refused.value.faults) == 101
    assert refused.value.faults[0].path == "tasks.taskParallel[0]"
    assert refused.value.faults[-1].message == "there are more faults than these 100"
