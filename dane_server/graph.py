"""Compiles the tree of a specification into nodes and edges: what waits for what."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from dane_core.spec import (
    GraphSpec,
    Node,
    Parallel,
    Sequential,
    TaskSpec,
    children,
    fold,
    nest,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The tasks of a job and what each waits for.

    Tasks are numbered from 0 in the order they were written. The numbers after them are joins:
    nodes without work, done as soon as what they wait for is. A join may wait for a join.
    """

    tasks: tuple[TaskSpec, ...]
    joins: int
    edges: tuple[tuple[int, int], ...]  # (before, after), by number
    pending: tuple[int, ...]  # how many nodes each waits for, tasks first
    solo: frozenset[int]  # tasks whose key no other task of the job has
    tree: Any  # the nesting as JSON, each task replaced by its number; see `unfold`

    @property
    def total(self) -> int:
        """How many tasks it has."""
        return len(self.tasks)

    @property
    def active(self) -> int:
        """How many of them wait for nothing."""
        return sum(pending == 0 for pending in self.pending[: self.total])

    @property
    def nodes(self) -> int:
        """How many nodes it has: tasks and joins."""
        return len(self.pending)

    @property
    def links(self) -> int:
        """How many edges it has."""
        return len(self.edges)


@dataclass(frozen=True, slots=True)
class _Part:
    """A compiled piece of the tree: the nodes it begins and ends with."""

    tree: Any
    starts: Sequence[int]
    ends: Sequence[int]


def compile_graph(root: Node) -> Graph:
    """Flatten the tasks of a job, turning nesting into edges.

    Only the ends of one step and the starts of the next are linked, through a join where both
    are several. There are at most twice as many edges as tasks, and one for every name in an
    `after`. The tree must be one that `read_job` has accepted: no cycles, nothing empty.
    """
    return _Compiler().compile(root)


class _Compiler:
    def __init__(self) -> None:
        self._tasks: list[TaskSpec] = []
        self._joins = 0
        self._edges: list[tuple[int, int]] = []

    def compile(self, root: Node) -> Graph:
        whole = fold(root, children, self._place)
        edges = tuple(self._edges)
        if self._joins:
            edges = tuple((self._number(one), self._number(other)) for one, other in edges)
        pending = [0] * (len(self._tasks) + self._joins)
        for _, after in edges:
            pending[after] += 1
        uses = Counter(task.key for task in self._tasks)
        return Graph(
            tasks=tuple(self._tasks),
            joins=self._joins,
            edges=edges,
            pending=tuple(pending),
            solo=frozenset(n for n, task in enumerate(self._tasks) if uses[task.key] == 1),
            tree=whole.tree,
        )

    def _place(self, node: Node, parts: Sequence[_Part]) -> _Part:
        match node:
            case TaskSpec():
                self._tasks.append(node)
                seq = len(self._tasks) - 1
                return _Part(seq, alone := (seq,), alone)
            case Sequential():
                starts, ends = self._sequential(parts)
            case Parallel():
                starts, ends = _all_starts(parts), _all_ends(parts)
            case GraphSpec():
                starts, ends = self._graph(node, parts)
        return _Part(nest(node, [part.tree for part in parts]), starts, ends)

    def _sequential(self, parts: Sequence[_Part]) -> tuple[Sequence[int], Sequence[int]]:
        for before, after in pairwise(parts):
            self._link(before.ends, after.starts)
        return parts[0].starts, parts[-1].ends

    def _graph(
        self, graph: GraphSpec, parts: Sequence[_Part]
    ) -> tuple[Sequence[int], Sequence[int]]:
        named = dict(zip(graph.nodes, parts, strict=True))
        awaited = Counter(name for item in graph.nodes.values() for name in item.after)
        # What many wait for gets one end, so that its ends are not repeated for each of them.
        ends = {
            name: self._joined(named[name].ends) if n > 1 else named[name].ends
            for name, n in awaited.items()
        }
        for name, item in graph.nodes.items():
            self._link([end for before in item.after for end in ends[before]], named[name].starts)
        first = [named[name] for name, item in graph.nodes.items() if not item.after]
        last = [part for name, part in named.items() if not awaited[name]]
        return _all_starts(first), _all_ends(last)

    def _link(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Let everything in `after` wait for everything in `before`."""
        if len(after) > 1:
            before = self._joined(before)
        self._edges.extend(product(before, after))

    def _joined(self, ends: Sequence[int]) -> Sequence[int]:
        if len(ends) < 2:
            return ends
        self._joins += 1
        join = -self._joins  # its number is known once all tasks are
        self._edges.extend(product(ends, [join]))
        return [join]

    def _number(self, node: int) -> int:
        return node if node >= 0 else len(self._tasks) - 1 - node


def _all_starts(parts: Iterable[_Part]) -> Sequence[int]:
    return [start for part in parts for start in part.starts]


def _all_ends(parts: Iterable[_Part]) -> Sequence[int]:
    return [end for part in parts for end in part.ends]


def unfold(tree: Any, leaf: Callable[[int], Any]) -> Any:
    """Rebuild the JSON of `tasks` from a graph's tree; `leaf` gives that of a task, by number."""

    def make(skeleton: Any, parts: Sequence[Any]) -> Any:
        if isinstance(skeleton, int):
            return leaf(skeleton)
        [(kind, inside)] = skeleton.items()
        if isinstance(inside, list):
            return {kind: list(parts)}
        items = zip(inside.items(), parts, strict=True)
        return {kind: {name: _entry(item, part) for (name, item), part in items}}

    return fold(tree, _parts_of, make)


def _parts_of(skeleton: Any) -> Sequence[Any]:
    if isinstance(skeleton, int):
        return ()
    [inside] = skeleton.values()
    if isinstance(inside, list):
        return inside
    return [item["task"] if _is_entry(item) else item for item in inside.values()]


def _entry(item: Any, part: Any) -> Any:
    return {**item, "task": part} if _is_entry(item) else part


def _is_entry(item: Any) -> bool:
    return isinstance(item, dict) and "after" in item
