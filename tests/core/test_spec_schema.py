"""The JSON Schema says what the reader does, as far as a schema can."""

import copy
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from dane_core.errors import BadSpec
from dane_core.spec import Limits, job_schema, read_job

SCHEMA = Draft202012Validator(job_schema())

TASK = {"Task": {"task_key": "A"}}


def job(tasks: Any = "A", **members: Any) -> dict[str, Any]:
    return {"source_url": "/x", "source_id": "x", "tasks": tasks, **members}


def task(**members: Any) -> dict[str, Any]:
    return job({"Task": {"task_key": "A", **members}})


GOOD = [
    job(),
    job(type=None, metadata=None, priority=None, job_id=None, response=None, source_set="S"),
    job(type="video", metadata={"a": [{}]}, priority="10", response={}),
    job({"taskSequential": ["a", TASK, {"taskParallel": [TASK]}]}),
    job({"taskGraph": {"a": TASK, "b": {"task": "B", "after": ["a"]}, "c": {"task": "C"}}}),
    task(name="n", args={}, priority=0, timeout=0.5, retry={"limit": 0}, allow_failure=True),
    task(name=None, args=None, priority="3", timeout=None, retry=None, task_id=None),
]
BAD = [
    None,
    "A",
    {},
    job(None),
    job([]),
    job({}),
    job(""),
    job("A.B"),
    job("A" * 101),
    job({"task_key": "A"}),
    job({"Task": {}}),
    job({"Task": "A"}),
    job({"taskSequential": []}),
    job({"taskSequential": "A"}),
    job({"taskSequential": ["A"], "taskParallel": ["A"]}),
    job({"taskGraph": {}}),
    job({"taskGraph": {"": "A"}}),
    job({"taskGraph": {"a": {"task": "A", "after": "b"}}}),
    job({"taskGraph": {"a": {"after": []}}}),
    job({"taskGraph": {"a": {"task": "A", "x": 1}}}),
    job(source_url=""),
    job(source_url="x" * 4097),
    job(source_id="x" * 256),
    job(source_id=1),
    job(type="Video"),
    job(metadata=[]),
    job(priority=11),
    job(priority="11"),
    job(priority=1.5),
    job(job_id=1),
    job(response={"a": 1}),
    job(more=1),
    task(name=""),
    task(args=[]),
    task(priority=-1),
    task(timeout=0),
    task(timeout="1"),
    task(retry={"limit": 101}),
    task(retry={"times": 1}),
    task(retry=1),
    task(allow_failure=0),
    task(task_id=1),
    task(more=1),
]


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(job_schema())


@pytest.mark.parametrize("data", GOOD)
def test_what_is_read_fits_the_schema(data: Any) -> None:
    read_job(data)

    assert SCHEMA.is_valid(data)


@pytest.mark.parametrize("data", BAD)
def test_what_is_refused_does_not_fit_the_schema(data: Any) -> None:
    with pytest.raises(BadSpec):
        read_job(data)

    assert not SCHEMA.is_valid(data)


def test_the_examples_are_read() -> None:
    examples = job_schema()["examples"]

    assert [read_job(copy.deepcopy(example)).source_id for example in examples] == [
        "CLIP-1",
        "CLIP-2",
    ]


def test_the_limits_of_a_server_are_in_its_schema() -> None:
    schema = Draft202012Validator(job_schema(Limits(source_id=3, key=4, name=2)))

    assert schema.is_valid(job("KEYS", source_id="abc"))
    assert not schema.is_valid(job(source_id="abcd"))
    assert not schema.is_valid(job("KEYS1"))
    assert not schema.is_valid(task(name="abc"))


def test_references_point_where_they_are_told() -> None:
    """In OpenAPI the definitions live among the components."""
    schema = job_schema(refs="#/components/schemas/{model}")
    components = {"components": {"schemas": schema.pop("$defs")}}

    whole = Draft202012Validator({**schema, **components})

    assert all(whole.is_valid(data) for data in GOOD)
    assert not any(whole.is_valid(data) for data in BAD)


def test_what_others_do_to_a_schema_stays_with_them() -> None:
    job_schema()["examples"][0]["tasks"]["taskSequential"].clear()

    assert job_schema()["examples"][0]["tasks"]["taskSequential"]
