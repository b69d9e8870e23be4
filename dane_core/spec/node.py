"""A job specification once read: its tasks, how they are nested, and the limits on both."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from dane_core.job import Retry

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How large a specification may be.

    `body`, `args` and `metadata` are bytes of JSON, the last two without white space. `tasks`
    are counted in the whole job, `depth` is how many containers may lie around a task, and the
    others are characters. All may be set lower at will, and the counts of bytes and tasks higher;
    the rest not, because columns, routing keys and JSON writers are made for these.
    """

    tasks: int = 100_000
    depth: int = 64
    body: int = 32 * 1024 * 1024
    args: int = 65_536
    metadata: int = 65_536
    url: int = 4096
    source_id: int = 255
    key: int = 100
    name: int = 100
    type: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One piece of work, for the workers of `key`. `timeout` is seconds of run time."""

    key: str
    name: str | None = None  # unique in the job
    args: Mapping[str, Any] = field(default_factory=dict)
    priority: int | None = None  # that of the job
    timeout: float | None = None  # for ever
    retry: Retry | None = None  # as the server does
    allow_failure: bool = False  # what comes after it runs even if it failed


@dataclass(frozen=True, slots=True)
class Sequential:
    """Nodes done one after another."""

    steps: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Parallel:
    """Nodes done side by side."""

    steps: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of a graph, and the names of the nodes that must be done before it."""

    node: "Node"
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Named nodes in any order that has no cycle."""

    nodes: Mapping[str, GraphNode]


Node: TypeAlias = TaskSpec | Sequential | Parallel | GraphSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What a client asks for: one source, and what to do with it."""

    source_url: str  # requoted: see `requote`
    source_id: str
    tasks: Node
    type: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 1


def children(node: Node) -> Sequence[Node]:
    """The nodes directly inside a node, in the order they were written."""
    match node:
        case Sequential(steps=steps) | Parallel(steps=steps):
            return steps
        case GraphSpec(nodes=nodes):
            return [item.node for item in nodes.values()]
        case TaskSpec():
            return ()


def fold(root: S, parts_of: Callable[[S], Sequence[S]], make: Callable[[S, Sequence[T]], T]) -> T:
    """Make something of a tree, each node from what was made of its parts.

    Nodes are opened by `parts_of` from the top and made from the bottom, both in the order they
    were written. The stack is a list, so no depth is too deep.
    """
    opened: list[tuple[S, Iterator[S], list[T]]] = [(root, iter(parts_of(root)), [])]
    while True:
        node, rest, made = opened[-1]
        for part in rest:
            if inside := parts_of(part):
                opened.append((part, iter(inside), []))
                break
            made.append(make(part, ()))
        else:
            opened.pop()
            whole = make(node, made)
            if not opened:
                return whole
            opened[-1][2].append(whole)
