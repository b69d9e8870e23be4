"""The rows of a job's graph as they go into the tables, without the ids that a store gives them.

Pure, and quick to load: what reads a very large specification needs this and no database.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from dane_core.routing import MAX_PRIORITY
from dane_core.spec import TaskSpec
from dane_core.states import TaskState
from dane_server.graph import Graph
from dane_server.storage.chunk import chunks, fitting

Row = dict[str, Any]
#: The edge between two nodes, by their places in the graph: (before, after).
Link = tuple[int, int]

#: Edges that go together in one statement.
LINKS: Final = 5000
_COLUMNS: Final = (
    "seq",
    "task_key",
    "name",
    "args",
    "rank",
    "timeout",
    "retry",
    "allow_failure",
    "solo",
    "state",
    "pending",
    "fanin",
    "fanout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGraph:
    """A graph as the rows it becomes, in JSON: of a job too large to be held as objects."""

    tree: str
    total: int
    active: int
    nodes: int
    links: int
    node_parts: tuple[bytes, ...]
    link_parts: tuple[bytes, ...]


def tree_of(graph: Graph | PackedGraph) -> str:
    return graph.tree if isinstance(graph, PackedGraph) else written(graph.tree)


def rows_of(graph: Graph | PackedGraph, priority: int) -> Iterator[Row]:
    """The nodes of a graph in order, one after the other; `priority` is that of the job."""
    if isinstance(graph, PackedGraph):
        for part in graph.node_parts:
            for values in orjson.loads(part):
                yield dict(zip(_COLUMNS, values, strict=True))
    else:
        yield from _rows(graph, priority)


def links_of(graph: Graph | PackedGraph) -> Iterable[Link]:
    """The edges of a graph."""
    if isinstance(graph, PackedGraph):
        return (link for part in graph.link_parts for link in orjson.loads(part))
    return graph.edges


def packed_nodes(graph: Graph, priority: int) -> Iterator[bytes]:
    """The `node_parts` of a graph, each for one statement."""
    for some in fitting(_rows(graph, priority)):
        yield orjson.dumps([tuple(row.values()) for row in some])


def packed_links(graph: Graph) -> Iterator[bytes]:
    """The `link_parts` of a graph."""
    return map(orjson.dumps, chunks(graph.edges, LINKS))


def _rows(graph: Graph, priority: int) -> Iterator[Row]:
    fanout = [0] * graph.nodes
    for src, _ in graph.edges:
        fanout[src] += 1
    for seq, pending in enumerate(graph.pending):
        task = graph.tasks[seq] if seq < graph.total else None
        values = (
            seq,
            *_written(task),
            MAX_PRIORITY - priority_of(task, priority),
            task.timeout if task else None,
            written(task.retry) if task and task.retry else None,
            bool(task and task.allow_failure),
            seq in graph.solo,
            (TaskState.BLOCKED if pending else TaskState.READY).value,
            pending,
            pending,
            fanout[seq],
        )
        yield dict(zip(_COLUMNS, values, strict=True))


def _written(task: TaskSpec | None) -> tuple[str | None, str | None, str | None]:
    """Its key, its name and its args."""
    if task is None:
        return None, None, None
    return task.key, task.name, written(task.args) if task.args else None


def priority_of(task: TaskSpec | None, of_job: int) -> int:
    """The priority of a task: its own, or else that of its job."""
    return of_job if task is None or task.priority is None else task.priority


def written(value: object) -> str:
    """A document as it stands in its column."""
    return orjson.dumps(value).decode()
