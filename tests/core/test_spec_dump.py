"""Specifications go out as DANE 0.1 serialised them, and everything it wrote comes in."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dane_core.errors import BadSpec
from dane_core.spec import JobSpec, Parallel, Sequential, TaskSpec, dump_job, parse_job, read_job

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# What `to_json` of DANE 0.1.1 printed for jobs made with its own classes.
SERIALISED_BY_0_1 = """\
{ "source_url" : "http://127.0.0.1/example", "source_id" : "TEST123", "job_id" : null, \
"tasks" : { "taskSequential" : [ "DOWNLOAD", { "taskParallel" : [ "FILESIZE", "CHECKSUM", \
"SHOTS" ]} ]}, "metadata" : {}, "priority" : 1, "response" : {} }
{ "source_url" : "/data/my clip.mp4", "source_id" : "T1", "job_id" : null, "tasks" : "TEST", \
"metadata" : {"a": [1, "\\u00e4"]}, "priority" : 2, "response" : {} }
{ "source_url" : "/x", "source_id" : "T1", "job_id" : null, \
"tasks" : { "taskParallel" : [ "A", "B", "C" ]}, "metadata" : {}, "priority" : 1, "response" : {} }
""".splitlines()


@pytest.mark.parametrize("serialised", SERIALISED_BY_0_1)
def test_what_0_1_wrote_is_read_and_written_again_alike(serialised: str) -> None:
    dumped = dump_job(parse_job(serialised.encode()))

    assert list(dumped) == list(json.loads(serialised))
    assert dumped == json.loads(serialised)


@pytest.mark.parametrize(
    "tasks",
    [
        "a",
        '"a"',
        {"Task": {"task_key": "a"}},
        '{"Task": {"task_key": "a"}}',
        ' {"Task": {"task_key": "a", "task_id": null, "job_id": null, "task_msg": null}}',
    ],
)
def test_every_way_in_which_0_1_took_a_task_is_taken(tasks: Any) -> None:
    """`DANE.utils.parse` decodes strings, wherever a task or a container is expected."""
    alone = read_job({"source_url": "/x", "source_id": "T1", "tasks": tasks})
    inside = read_job(
        {"source_url": "/x", "source_id": "T1", "tasks": {"taskSequential": [tasks, "b"]}}
    )
    encoded = read_job(
        {
            "source_url": "/x",
            "source_id": "T1",
            "tasks": json.dumps({"taskParallel": [tasks, json.dumps({"taskParallel": ["b"]})]}),
        }
    )

    assert alone.tasks == TaskSpec(key="A")
    assert inside.tasks == Sequential((TaskSpec(key="A"), TaskSpec(key="B")))
    assert encoded.tasks == Parallel((TaskSpec(key="A"), Parallel((TaskSpec(key="B"),))))


def test_the_head_is_taken_as_0_1_sent_it() -> None:
    spec = read_job(
        {
            "source_url": " http://h/x ",
            "source_id": "\tT1\n",
            "source_set": "S",
            "tasks": "A",
            "job_id": None,
            "metadata": {},
            "priority": "7",
            "response": None,
        }
    )

    assert (spec.source_url, spec.source_id, spec.priority) == ("http://h/x", "T1", 7)


def test_a_fault_in_a_node_within_a_string_has_the_path_it_would_have_without() -> None:
    node = json.dumps({"taskParallel": ["A", '{"Task": {"task_key": ""}}', "{"]})

    with pytest.raises(BadSpec) as refused:
        read_job({"source_url": "/x", "source_id": "T1", "tasks": {"taskSequential": [node]}})

    assert [fault.path for fault in refused.value.faults] == [
        "tasks.taskSequential[0].taskParallel[1].Task.task_key",
        "tasks.taskSequential[0].taskParallel[2]",
    ]


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=9)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(names, inside, max_size=3),
    max_leaves=5,
)
keys = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
retries = st.fixed_dictionaries(
    {},
    optional={"limit": st.integers(0, 100), "delay": st.floats(0, 9), "factor": st.floats(1, 10)},
)
tasks = keys | st.fixed_dictionaries(
    {"task_key": keys},
    optional={
        "args": st.dictionaries(names, values, max_size=3),
        "priority": st.integers(0, 10) | st.integers(0, 10).map(str),
        "timeout": st.floats(0.001, 1e6),
        "retry": retries,
        "allow_failure": st.booleans(),
    },
).map(lambda members: {"Task": members})


@st.composite
def graphs(draw: st.DrawFn, inside: st.SearchStrategy[Any]) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        earlier = sorted(nodes)
        after = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        node = draw(inside)
        bare = not after and draw(st.booleans())
        nodes[name] = node if bare else {"task": node, "after": after}
    shuffled = draw(st.permutations(list(nodes.items())))
    return {"taskGraph": dict(shuffled)}


trees = st.recursive(
    tasks,
    lambda inside: (
        st.lists(inside, min_size=1, max_size=4).map(lambda s: {"taskSequential": s})
        | st.lists(inside, min_size=1, max_size=4).map(lambda s: {"taskParallel": s})
        | graphs(inside)
        | inside.map(lambda node: node if isinstance(node, str) else json.dumps(node))
    ),
    max_leaves=12,
)
jobs = st.fixed_dictionaries(
    {"source_url": names.map(lambda name: f"/{name}/x"), "source_id": keys, "tasks": trees},
    optional={
        "type": st.sampled_from(["video", "image"]),
        "metadata": st.dictionaries(names, values, max_size=3),
        "priority": st.integers(0, 10) | st.integers(0, 10).map(str),
    },
)


@unhurried
@given(jobs)
def test_a_specification_read_written_and_read_is_the_same(job: dict[str, Any]) -> None:
    spec = parse_job(json.dumps(job).encode())
    dumped = dump_job(spec)

    assert isinstance(spec, JobSpec)
    assert read_job(dumped) == spec
    assert parse_job(json.dumps(dumped).encode()) == spec
    assert dump_job(read_job(dumped)) == dumped
