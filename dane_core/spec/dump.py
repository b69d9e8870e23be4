"""Writes a specification the way DANE 0.1 serialised it, and `read_job` reads it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dane_core.spec.node import (
    GraphNode,
    GraphSpec,
    JobSpec,
    Node,
    Parallel,
    Sequential,
    TaskSpec,
    children,
    fold,
)


def dump_job(spec: JobSpec) -> dict[str, Any]:
    """A specification as JSON values, with the members of DANE 0.1's `Job` in its order."""
    return {
        "source_url": spec.source_url,
        "source_id": spec.source_id,
        "job_id": None,
        **({"type": spec.type} if spec.type else {}),
        "tasks": fold(spec.tasks, children, _dump_node),
        "metadata": dict(spec.metadata),
        "priority": spec.priority,
        "response": {},
    }


def dump_task(task: TaskSpec) -> str | dict[str, Any]:
    """A task as its key when that says it all, else as `{"Task": {…}}`."""
    members: dict[str, Any] = {
        "name": task.name,
        "args": dict(task.args) or None,
        "priority": task.priority,
        "timeout": task.timeout,
        "retry": asdict(task.retry) if task.retry else None,
        "allow_failure": task.allow_failure or None,
    }
    given = {name: value for name, value in members.items() if value is not None}
    return {"Task": {"task_key": task.key, **given}} if given else task.key


def nest(node: Node, parts: Sequence[Any]) -> Any:
    """Put what stands for the parts of a container where DANE 0.1 writes them."""
    match node:
        case Sequential():
            return {"taskSequential": list(parts)}
        case Parallel():
            return {"taskParallel": list(parts)}
        case GraphSpec(nodes=nodes):
            written = zip(nodes.items(), parts, strict=True)
            return {"taskGraph": {name: _entry(item, part) for (name, item), part in written}}
        case TaskSpec():
            raise TypeError("a task has no parts")


def _entry(item: GraphNode, part: Any) -> Any:
    return {"task": part, "after": list(item.after)} if item.after else part


def _dump_node(node: Node, parts: Sequence[Any]) -> Any:
    return dump_task(node) if isinstance(node, TaskSpec) else nest(node, parts)
