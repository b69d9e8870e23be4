"""Nesting becomes edges: what each task waits for, and no more edges than it takes."""

from typing import Any

from dane_core.spec import Node, TaskSpec, dump_task, read_job
from dane_server.graph import Graph, compile_graph, unfold


def node(tasks: Any) -> Node:
    return read_job({"source_url": "/x", "source_id": "x", "tasks": tasks}).tasks


def graph(tasks: Any) -> Graph:
    return compile_graph(node(tasks))


def steps(kind: str, *nodes: Any) -> dict[str, Any]:
    return {f"task{kind}": list(nodes)}


def test_a_task_alone_waits_for_nothing() -> None:
    assert graph("A") == Graph(
        tasks=(TaskSpec(key="A"),),
        joins=0,
        edges=(),
        pending=(0,),
        solo=frozenset({0}),
        tree=0,
    )


def test_a_step_waits_for_the_ends_of_the_step_before() -> None:
    compiled = graph(
        steps("Sequential", "A", steps("Parallel", "B", steps("Sequential", "C", "D")), "E")
    )

    assert [task.key for task in compiled.tasks] == ["A", "B", "C", "D", "E"]
    assert set(compiled.edges) == {(0, 1), (0, 2), (2, 3), (1, 4), (3, 4)}
    assert compiled.pending == (0, 1, 1, 1, 2)
    assert compiled.joins == 0


def test_two_parallel_blocks_meet_in_one_join() -> None:
    block = steps("Parallel", *["A"] * 100)

    compiled = graph(steps("Sequential", block, block))

    join = 200
    assert compiled.joins == 1
    assert set(compiled.edges) == {(n, join) for n in range(100)} | {
        (join, n) for n in range(100, 200)
    }
    assert compiled.pending == (0,) * 100 + (1,) * 100 + (100,)


def test_a_graph_waits_for_what_it_names_in_whatever_order_it_is_written() -> None:
    compiled = graph(
        {
            "taskGraph": {
                "last": {"task": "D", "after": ["left", "right"]},
                "right": {"task": "C", "after": ["first"]},
                "left": {"task": "B", "after": ["first"]},
                "first": "A",
            }
        }
    )

    assert [task.key for task in compiled.tasks] == ["D", "C", "B", "A"]
    assert set(compiled.edges) == {(2, 0), (1, 0), (3, 1), (3, 2)}


def test_a_graph_begins_and_ends_only_where_it_does() -> None:
    inner = {
        "taskGraph": {
            "b": {"task": "B", "after": ["a"]},
            "a": "A",
            "c": {"task": "C", "after": ["b"]},
        }
    }

    compiled = graph(steps("Sequential", "X", inner, "Y"))

    # X is 0, b 1, a 2, c 3 and Y 4.
    assert set(compiled.edges) == {(0, 2), (2, 1), (1, 3), (3, 4)}


def test_a_block_that_many_wait_for_is_joined_once() -> None:
    """A hundred ends and a hundred dependants are two hundred edges, not ten thousand."""
    many = {f"n{i}": {"task": "B", "after": ["block"]} for i in range(100)}

    compiled = graph({"taskGraph": {"block": steps("Parallel", *["A"] * 100), **many}})

    assert compiled.joins == 1
    assert len(compiled.edges) == 200


def test_a_block_that_waits_for_many_is_joined_once() -> None:
    many = {f"n{i}": "A" for i in range(100)}
    block = {"task": steps("Parallel", *["B"] * 100), "after": list(many)}

    compiled = graph({"taskGraph": {**many, "block": block}})

    assert compiled.joins == 1
    assert len(compiled.edges) == 200


def test_joins_may_follow_joins() -> None:
    block = steps("Parallel", "A", "A")

    compiled = graph(
        {
            "taskGraph": {
                "a": block,
                "b": "B",
                "c": {"task": block, "after": ["a", "b"]},
                "d": {"task": "D", "after": ["a"]},
            }
        }
    )

    # Tasks: a is 0 and 1, b is 2, c is 3 and 4, d is 5. The end of `a` is 6, the start of `c` 7.
    assert compiled.joins == 2
    assert set(compiled.edges) == {(0, 6), (1, 6), (6, 7), (2, 7), (7, 3), (7, 4), (6, 5)}


def test_a_task_is_solo_when_no_other_has_its_key() -> None:
    assert graph(steps("Sequential", "A", "B", "A", "C")).solo == {1, 3}


def test_the_tree_is_the_nesting_with_numbers_for_tasks() -> None:
    compiled = graph(
        {
            "taskGraph": {
                "b": {
                    "task": steps("Sequential", "A", steps("Parallel", "B", "C")),
                    "after": ["a"],
                },
                "a": "D",
            }
        }
    )

    assert compiled.tree == {
        "taskGraph": {
            "b": {"task": {"taskSequential": [0, {"taskParallel": [1, 2]}]}, "after": ["a"]},
            "a": 3,
        }
    }


def test_a_tree_unfolds_into_what_0_1_showed() -> None:
    compiled = graph(steps("Sequential", "A", {"taskGraph": {"after": "B", "task": "C"}}))

    def leaf(seq: int) -> dict[str, Any]:
        return {"Task": {"task_key": compiled.tasks[seq].key, "task_id": seq + 10}}

    assert unfold(compiled.tree, leaf) == {
        "taskSequential": [
            {"Task": {"task_key": "A", "task_id": 10}},
            {
                "taskGraph": {
                    "after": {"Task": {"task_key": "B", "task_id": 11}},
                    "task": {"Task": {"task_key": "C", "task_id": 12}},
                }
            },
        ]
    }


def test_a_tree_of_one_task_unfolds() -> None:
    assert unfold(0, lambda seq: f"task {seq}") == "task 0"


def test_the_deepest_tree_there_may_be_is_compiled_and_unfolded() -> None:
    deepest: Any = "A"
    for _ in range(64):
        deepest = {"taskGraph": {"n": {"task": deepest, "after": ["m"]}, "m": "B"}}

    compiled = graph(deepest)

    assert len(compiled.tasks) == 65
    assert unfold(compiled.tree, lambda seq: dump_task(compiled.tasks[seq])) == deepest
