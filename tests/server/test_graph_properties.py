"""Over random graphs: nothing starts too early, everything that can run runs, cost is linear.

The reference knows nothing of edges or joins. It reads off the tree what must be done before a
task: every task in the earlier steps of each sequence around it, and every task in the nodes
that come before, at whatever remove, in each graph around it.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dane_core.spec import (
    GraphNode,
    GraphSpec,
    Node,
    Parallel,
    Sequential,
    TaskSpec,
    dump_job,
    dump_task,
    read_job,
)
from dane_core.spec.node import JobSpec
from dane_server.graph import Graph, compile_graph, unfold

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def graph_specs(draw: st.DrawFn, inside: st.SearchStrategy[Node]) -> GraphSpec:
    names = [f"n{i}" for i in range(draw(st.integers(1, 5)))]
    nodes = {
        name: GraphNode(
            draw(inside),
            tuple(draw(st.lists(st.sampled_from(names[:n]), unique=True))) if n else (),
        )
        for n, name in enumerate(names)
    }
    return GraphSpec(dict(draw(st.permutations(list(nodes.items())))))


tasks = st.builds(TaskSpec, key=st.sampled_from("ABC"), allow_failure=st.booleans())
nodes: st.SearchStrategy[Node] = st.recursive(
    tasks,
    lambda inside: (
        st.builds(Sequential, st.lists(inside, min_size=1, max_size=4).map(tuple))
        | st.builds(Parallel, st.lists(inside, min_size=1, max_size=4).map(tuple))
        | graph_specs(inside)
    ),
    max_leaves=25,
)


class Reference:
    """What must be done before each task, by the words of the specification."""

    def __init__(self, root: Node) -> None:
        self.before: list[set[int]] = []
        self.after_names = 0
        self._visit(root, set())

    def _visit(self, node: Node, before: set[int]) -> set[int]:
        """Note what each task in a node waits for; return the tasks in it."""
        match node:
            case TaskSpec():
                self.before.append(before)
                return {len(self.before) - 1}
            case Parallel(steps=steps):
                return set().union(*[self._visit(step, before) for step in steps])
            case Sequential(steps=steps):
                inside: set[int] = set()
                for step in steps:
                    inside |= self._visit(step, before | inside)
                return inside
            case GraphSpec(nodes=named):
                return self._visit_graph(named, before)

    def _visit_graph(self, named: Mapping[str, GraphNode], before: set[int]) -> set[int]:
        inside: dict[str, set[int]] = {}
        for name, item in named.items():
            inside[name] = self._visit(item.node, set(before))
            self.after_names += len(item.after)
        for name in named:
            for earlier in self._all_before(name, named):
                for seq in inside[name]:
                    self.before[seq] |= inside[earlier]
        return set().union(*inside.values())

    def _all_before(self, name: str, named: Mapping[str, GraphNode]) -> set[str]:
        found: set[str] = set()
        for earlier in named[name].after:
            found |= {earlier} | self._all_before(earlier, named)
        return found


class Run:
    """A job that is run by nothing but `pending` and `edges`, as the store does."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._pending = list(graph.pending)
        self._after: list[list[int]] = [[] for _ in graph.pending]
        for before, after in graph.edges:
            self._after[before].append(after)
        self.ready = {n for n in range(len(graph.tasks)) if not self._pending[n]}

    def finish(self, seq: int, *, failed: bool) -> None:
        self.ready.remove(seq)
        if failed and not self._graph.tasks[seq].allow_failure:
            return
        done = [seq]
        while done:
            for after in self._after[done.pop()]:
                self._pending[after] -= 1
                if self._pending[after] == 0:
                    (self.ready.add if after < len(self._graph.tasks) else done.append)(after)


@unhurried
@given(nodes, st.data())
def test_exactly_what_may_run_is_ready_at_every_moment(root: Node, data: st.DataObject) -> None:
    """Whatever ends next, well or badly: no task starts before those it comes after are done,
    and none that could run is left waiting."""
    reference = Reference(root)
    graph = compile_graph(root)
    run = Run(graph)
    started: set[int] = set()
    done: set[int] = set()

    while True:
        may_run = {seq for seq, before in enumerate(reference.before) if before <= done}
        assert run.ready == may_run - started
        if not run.ready:
            break
        seq = data.draw(st.sampled_from(sorted(run.ready)), label="ends next")
        failed = data.draw(st.booleans(), label="fails")
        started.add(seq)
        if graph.tasks[seq].allow_failure or not failed:
            done.add(seq)
        run.finish(seq, failed=failed)


@unhurried
@given(nodes)
def test_a_job_without_failures_runs_to_its_end(root: Node) -> None:
    graph = compile_graph(root)
    run = Run(graph)
    ran = 0

    while run.ready:
        run.finish(min(run.ready), failed=False)
        ran += 1

    assert ran == len(graph.tasks)


@unhurried
@given(nodes)
def test_edges_are_linear_in_tasks_and_names(root: Node) -> None:
    reference = Reference(root)
    graph = compile_graph(root)

    assert len(graph.tasks) == len(reference.before)
    assert len(graph.edges) <= 2 * len(graph.tasks) + reference.after_names
    assert graph.joins <= len(graph.tasks)
    assert len(set(graph.edges)) == len(graph.edges)
    assert len(graph.pending) == len(graph.tasks) + graph.joins


@unhurried
@given(nodes)
def test_a_join_joins(root: Node) -> None:
    """Each has several before it and several after it; else it would only cost time."""
    graph = compile_graph(root)

    for join in range(len(graph.tasks), len(graph.pending)):
        assert sum(after == join for _, after in graph.edges) > 1
        assert sum(before == join for before, _ in graph.edges) > 1


@unhurried
@given(nodes)
def test_the_tree_gives_the_specification_back(root: Node) -> None:
    graph = compile_graph(root)
    spec = JobSpec(source_url="/x", source_id="x", tasks=root)

    unfolded = unfold(graph.tree, lambda seq: dump_task(graph.tasks[seq]))

    assert unfolded == dump_job(spec)["tasks"]
    assert read_job({**dump_job(spec), "tasks": unfolded}) == spec
    assert numbers_in(graph.tree) == list(range(len(graph.tasks)))


def numbers_in(tree: Any) -> list[int]:
    found: list[int] = []
    unfold(tree, found.append)
    return found


def flat(size: int) -> Node:
    return Parallel((TaskSpec(key="A"),) * size)


def blocks(size: int) -> Node:
    return Sequential((Parallel((TaskSpec(key="A"),) * (size // 10)),) * 10)


def chain(size: int) -> Node:
    return GraphSpec(
        {f"n{i}": GraphNode(TaskSpec(key="A"), (f"n{i - 1}",) if i else ()) for i in range(size)}
    )


def nested(size: int) -> Node:
    """Sixty-four deep, with most tasks at the bottom."""
    node = flat(size)
    for level in range(63):
        kind = Sequential if level % 2 else Parallel
        node = kind((node, TaskSpec(key="B")))
    return node


def layers(size: int) -> Node:
    """Ten layers of blocks in which everything waits for the whole layer before."""
    width = size // 1000
    return GraphSpec(
        {
            f"{layer}.{i}": GraphNode(
                Parallel((TaskSpec(key="A"),) * width),
                tuple(f"{layer - 1}.{j}" for j in range(100)) if layer else (),
            )
            for layer in range(10)
            for i in range(100)
        }
    )


@pytest.mark.parametrize("shape", [flat, blocks, chain, nested, layers])
def test_ten_times_the_tasks_cost_about_ten_times_as_much(shape: Callable[[int], Node]) -> None:
    """Thirty times is let pass: machines and their caches are noisy. Quadratic is a hundred."""
    small, large = shape(4_000), shape(40_000)

    costs = [(cost(small), cost(large)) for _ in range(2)]

    assert min(more for _, more in costs) < 30 * min(less for less, _ in costs)


def cost(root: Node) -> float:
    # The collector looks at all there is, the other tests' leavings too.
    gc.collect()
    gc.disable()
    began = time.process_time()
    compile_graph(root)
    spent = time.process_time() - began
    gc.enable()
    return spent
