"""Bytes that were made to hurt: each is refused, in words that can be sent back."""

import gc
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dane_core.errors import BadSpec
from dane_core.spec import dump_job, parse_job, read_job

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

HEAD = '"source_url": "/data/clip.mp4", "source_id": "CLIP-1"'


def body(tasks: str = '"NOOP"', more: str = "") -> bytes:
    return f'{{{HEAD}, "tasks": {tasks}{more}}}'.encode()


def refusal(raw: bytes) -> dict[str, str]:
    with pytest.raises(BadSpec) as refused:
        parse_job(raw)
    faults = {fault.path: fault.message for fault in refused.value.faults}
    orjson.dumps(faults)  # a surrogate or so in a message would make the refusal a 500
    return faults


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b"NOOP", "not JSON: Expecting value"),
        (b"{'a': 1}", "not JSON: Expecting property name"),
        (body() + b"x", "not JSON: Extra data"),
        (body() + body(), "not JSON: Extra data"),
        (body()[:-1], "not JSON: Expecting ',' delimiter"),
        (b'{"a": "\x00"}', "not JSON: Invalid control character"),
        (b'{"a": 01}', "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"\xef\xbb\xbf" + body(), "byte order mark"),
        (body().decode().encode("utf-16"), "byte order mark"),
        (body().decode().encode("utf-16-le"), "looks like UTF-16"),
        (body().decode().encode("utf-16-be"), "looks like UTF-16"),
        (body().decode().encode("utf-32-le"), "looks like UTF-16 or UTF-32"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 7"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
        (b"[" * 5_000_000, "too many values"),
        (body('["A"' + ',"A"' * 5_000_000 + "]"), "too many values"),
        (b" " * 40_000_000, "larger than 33,554,432 bytes"),
    ],
)
def test_what_is_not_plain_json_is_refused_as_a_whole(raw: bytes, message: str) -> None:
    [(path, said)] = refusal(raw).items()

    assert path == ""
    assert message in said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "not a finite number"),
        ("Infinity", "not a finite number"),
        ("-Infinity", "not a finite number"),
        ("1e400", "not a finite number"),
        ("9223372036854775808", "a whole number beyond 64 bits"),
        ("-9223372036854775809", "a whole number beyond 64 bits"),
        ("9" * 4_000, "a whole number beyond 64 bits"),
        ("9" * 1_000_000, "a whole number beyond 64 bits"),
        ('"\\u0000"', "contains a NUL character"),
        ('"\\ud800"', "contains half a surrogate pair"),
        ('"\\udc00\\ud800"', "contains half a surrogate pair"),
    ],
)
def test_values_that_could_not_be_kept_are_refused_where_they_stand(
    value: str, message: str
) -> None:
    args = f'{{"Task": {{"task_key": "A", "args": {{"a": [0, {value}]}}}}}}'

    assert refusal(body(args)) == {"tasks.Task.args.a[1]": message}
    assert refusal(body(more=f', "metadata": {{"b": {{"c": {value}}}}}')) == {
        "metadata.b.c": message
    }
    for member in ("source_url", "source_id", "source_set", "type", "priority", "job_id"):
        if member == "source_set" and value.startswith('"'):
            continue  # ignored, whatever it says
        members = {**json.loads(body()), member: json.loads(value[:100])}
        assert member in refusal(json.dumps(members).encode())


def test_the_ends_of_64_bits_and_any_unicode_come_through_whole() -> None:
    values = [2**63 - 1, -(2**63), 1.5e308, 5e-324, "🎬 ä \u202e \u2028", ""]

    spec = parse_job(body(more=f', "metadata": {json.dumps({"🎬": values})}'))

    assert spec.metadata == {"🎬": values}


def test_minus_zero_is_not_a_whole_number() -> None:
    """It would lose its sign; in JavaScript it is a float that has one."""
    assert refusal(body(more=', "priority": -0')) == {"priority": "expected a valid integer"}
    assert str(parse_job(body(more=', "metadata": {"a": -0}')).metadata["a"]) == "-0.0"


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (body(more=', "source_id": "CLIP-2"'), ""),
        (body(more=', "metadata": {"a": {"tasks": 1, "tasks": 1}}'), "metadata.a"),
        (body('{"Task": {"task_key": "A", "task_key": "B"}}'), "tasks.Task"),
        (body('{"Task": {"task_key": "A", "args": {"a": 1, "a": 2}}}'), "tasks.Task.args"),
        (
            body('{"Task": {"task_key": "A", "retry": {"limit": 1, "limit": 9}}}'),
            "tasks.Task.retry",
        ),
        (body('{"taskParallel": ["A"], "taskParallel": ["B"]}'), "tasks"),
        (body('{"taskGraph": {"a": "A", "a": "B"}}'), "tasks.taskGraph"),
        (body('{"taskGraph": {"a": {"task": "A", "task": "B"}}}'), "tasks.taskGraph.a"),
        (body(json.dumps('{"taskParallel": ["A"], "taskParallel": ["B"]}')), "tasks"),
    ],
)
def test_a_name_given_twice_is_refused_wherever_it_is(raw: bytes, path: str) -> None:
    """Readers disagree about which one counts, so a check here could be walked around."""
    faults = refusal(raw)

    assert list(faults) == [path]
    assert "is given twice" in faults[path]


@pytest.mark.parametrize("key", ["*", "#", "A.B", "A B", "A\\u0000", "\\ud800", "Ä", "K" * 10_000])
def test_a_key_that_would_break_routing_is_refused(key: str) -> None:
    [(path, message)] = refusal(body(f'"{key}"')).items()

    assert path == "tasks"
    assert "is not a task key" in message
    assert len(message) < 200


@pytest.mark.parametrize("name", ["a\\u0000", "\\ud800", "x" * 10_000, "a\\nb", "\\u001b[2J"])
def test_names_of_graph_nodes_are_safe_to_show(name: str) -> None:
    [(path, message)] = refusal(body(f'{{"taskGraph": {{"{name}": "A"}}}}')).items()

    assert message.startswith("its name: ")
    assert path.isprintable()
    assert len(path) < 200


def test_unknown_names_are_safe_to_show() -> None:
    for name in ("\\ud800", "\\u0000", "\\u202e", "x" * 1_000_000):
        [path] = refusal(body(more=f', "{name}": 1'))

        assert path.isprintable()
        assert len(path) < 200


MANY = 30_000


@pytest.mark.parametrize(
    "data",
    [
        {str(n): n for n in range(MANY)},
        {"metadata": {str(n): n for n in range(MANY)}},
        {"metadata": {"a": [[]] * MANY}},
        {"tasks": {"taskParallel": ["A"] * 10 * MANY}},
        {"tasks": {"taskParallel": ["*"] * MANY}},
        {"tasks": {"taskParallel": [{"taskParallel": ["A"] * 1000}] * 1000}},
        {"tasks": {"taskGraph": {str(n): {"task": "A", "after": ["x"]} for n in range(MANY)}}},
        {"tasks": {"Task": {str(n): n for n in range(MANY)}}},
        {"tasks": {"Task": {"retry": {str(n): n for n in range(MANY)}}}},
        {"tasks": {str(n): n for n in range(MANY)}},
    ],
    ids=[f"flood-{n}" for n in range(10)],
)
def test_a_flood_is_refused_with_little_memory(data: dict[str, Any]) -> None:
    """What reading adds to the body and the values in it stays small."""
    raw = json.dumps(data).encode()
    tracemalloc.start()
    json.loads(raw)
    _, values = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()

    faults = refusal(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 1 <= len(faults) <= 101
    assert peak < 2 * values + 15_000_000


def tasks_of(size: int) -> Any:
    task = {"task_key": "A", "args": {"a": [1, "b"]}, "priority": 3}
    return {"taskParallel": [{"Task": {**task, "name": f"n{n}"}} for n in range(size)]}


def graph_of(size: int) -> Any:
    after = [[f"n{n - 1}"] if n else [] for n in range(size)]
    return {"taskGraph": {f"n{n}": {"task": "A", "after": after[n]} for n in range(size)}}


@pytest.mark.parametrize("tasks", [tasks_of, graph_of])
def test_ten_times_the_tasks_are_read_in_about_ten_times_the_time(
    tasks: Callable[[int], Any],
) -> None:
    """Thirty times is let pass: machines and their caches are noisy. Quadratic is a hundred."""
    small, large = (body(json.dumps(tasks(size))) for size in (2_000, 20_000))

    costs = [(cost(small), cost(large)) for _ in range(2)]

    assert min(more for _, more in costs) < 30 * min(less for less, _ in costs)


def cost(raw: bytes) -> float:
    # The collector looks at all there is, the other tests' leavings too.
    gc.collect()
    gc.disable()
    began = time.process_time()
    parse_job(raw)
    spent = time.process_time() - began
    gc.enable()
    return spent


def test_a_list_inside_itself_is_refused() -> None:
    """It cannot come over the wire, but a caller in Python can make one."""
    metadata: dict[str, Any] = {}
    metadata["a"] = [metadata] * 10
    steps: list[Any] = []
    steps.append({"taskSequential": steps})

    with pytest.raises(BadSpec) as refused:
        read_job({"source_url": "/x", "source_id": "x", "metadata": metadata, "tasks": steps[0]})

    assert len(refused.value.faults) <= 101


def test_what_is_not_json_at_all_is_refused() -> None:
    """YAML has dates and sets, and whole numbers as names."""
    odd = {"a": {1, 2}, 3: "x", "c": b"y", "d": (1,), "\ud800": 1, "e": 10**5000}

    with pytest.raises(BadSpec) as refused:
        read_job({"source_url": "/x", "source_id": "x", "metadata": odd, "tasks": {1: "A"}, 2: 3})

    assert {fault.path for fault in refused.value.faults} == {
        "2",
        "tasks.1",
        "metadata.3",
        "metadata['\\ud800']",
        "metadata.a",
        "metadata.c",
        "metadata.d",
        "metadata.e",
    }


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(), inside, max_size=4),
    max_leaves=20,
)
some_names = st.sampled_from(
    [
        *("source_url", "source_id", "tasks", "metadata", "priority", "type", "response"),
        *("Task", "task_key", "args", "retry", "limit", "name", "timeout", "allow_failure"),
        *("taskSequential", "taskParallel", "taskGraph", "task", "after", "A"),
    ]
)
near_specs = st.recursive(
    any_json | some_names,
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.dictionaries(some_names, inside, max_size=5)
        | inside.map(json.dumps)
    ),
    max_leaves=30,
)


@unhurried
@given(near_specs, near_specs)
def test_anything_at_all_is_a_specification_or_refused(tasks: Any, more: Any) -> None:
    """No input gives anything but BadSpec, and what is accepted can be written and read again."""
    data = {"source_url": "/x", "source_id": "x", "tasks": tasks}
    if isinstance(more, dict):
        data = {**data, **more}

    try:
        spec = parse_job(json.dumps(data).encode())
    except BadSpec as bad:
        orjson.dumps([(fault.path, fault.message) for fault in bad.faults])
    else:
        assert parse_job(orjson.dumps(dump_job(spec))) == spec


@unhurried
@given(st.binary(max_size=200))
def test_any_bytes_are_a_specification_or_refused(raw: bytes) -> None:
    with pytest.raises(BadSpec):
        parse_job(raw)
