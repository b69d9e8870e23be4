"""Reads the tasks of a specification: the tree that they are nested in."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from dane_core.errors import BadSpec
from dane_core.job import Retry
from dane_core.spec.cycle import cycles
from dane_core.spec.fault import Path, meant, named, shown, written
from dane_core.spec.member import (
    Reading,
    TaskMembers,
    read_key,
    read_members,
    read_name,
    report_unknown,
)
from dane_core.spec.node import (
    GraphNode,
    GraphSpec,
    Node,
    Parallel,
    Sequential,
    TaskSpec,
    fold,
)
from dane_core.spec.strictjson import check, decode, report_repeated

_EXPECTED: Final = (
    'expected a task key, {"Task": {…}}, {"taskSequential": […]}, {"taskParallel": […]} '
    'or {"taskGraph": {…}}'
)
#: Stands in for a node whose fault is noted, so that reading can go on.
_ANY_TASK: Final = "X"
_CYCLE_SHOWN: Final = 10


def read_tree(value: object, reading: Reading) -> Node:
    """Read the tasks of a job. What is returned means nothing if faults were noted."""
    reader = _TreeReader(reading)
    root = _Place(value, (None, "tasks"), 0)
    return fold(root, reader.open, _build)


@dataclass(slots=True)
class _Place:
    """Where a node belongs: what is written there, and how to make the node of its parts."""

    value: Any
    path: Path
    depth: int  # containers around it
    build: Callable[[Sequence[Node]], Node] = lambda parts: Parallel(tuple(parts))


def _build(place: _Place, parts: Sequence[Node]) -> Node:
    return place.build(parts)


_Parts: TypeAlias = Sequence[_Place]


class _TreeReader:
    """Opens the places of one tree, in the order they are written."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._limits = reading.limits
        self._faults = reading.faults
        self._tasks = 1  # at least so many, by the containers opened so far
        self._names: dict[str, Path] = {}
        self._bare: dict[str, TaskSpec] = {}

    def open(self, place: _Place) -> _Parts:
        """Say how to build the node at a place, and return the places of its parts."""
        value = self._unwrapped(place)
        if isinstance(value, str):
            self._bare_task(value, place)
            return ()
        if not isinstance(value, dict) or not value:
            self._faults.add(place.path, _EXPECTED)
            return ()
        report_repeated(value, place.path, self._faults)
        known = _KINDS.keys() & value.keys()
        if len(value) > 1 or not known:
            self._not_one_kind(value, place.path)
            return ()
        [(kind, inside)] = value.items()
        return _KINDS[kind](self, inside, place)

    def _unwrapped(self, place: _Place) -> Any:
        # DANE 0.1 took nodes written as JSON in a string, wherever it took a node.
        value = place.value
        if not isinstance(value, str) or value.lstrip()[:1] not in ("{", '"'):
            return value
        try:
            return decode(value)
        except BadSpec as bad:
            for fault in bad.faults:
                self._faults.add(place.path, fault.message)
            return _ANY_TASK

    def _not_one_kind(self, value: Mapping[Any, Any], path: Path) -> None:
        if "task_key" in value:
            self._faults.add(path, 'a task is written {"Task": {"task_key": …}}')
            return
        report_unknown(value, _KINDS, path, self._faults)
        if len(value.keys() & _KINDS.keys()) > 1:
            self._faults.add(path, f"expected only one of {', '.join(_KINDS)}")

    # --- tasks ---

    def _bare_task(self, key: str, place: _Place) -> None:
        task = self._bare.get(key)
        if task is None:
            try:
                task = TaskSpec(key=read_key(key, self._limits))
            except ValueError as fault:
                self._faults.add(place.path, str(fault))
                return
            self._bare[key] = task
        place.build = _always(task)

    def _task(self, value: object, place: _Place) -> _Parts:
        path = (place.path, "Task")
        members = read_members(TaskMembers, value, path, self._reading)
        if isinstance(value, dict) and isinstance(value.get("args"), dict):
            check(value["args"], (path, "args"), self._limits.args, self._faults)
        if members is not None:
            self._report_same_name(members.name, path)
            place.build = _always(_task_spec(members))
        return ()

    def _report_same_name(self, name: str | None, path: Path) -> None:
        if name is None:
            return
        first = self._names.setdefault(name, path)
        if first is not path:
            said = f"{shown(name)} is already the name of {written(first)}"
            self._faults.add((path, "name"), said)

    # --- steps ---

    def _sequential(self, value: object, place: _Place) -> _Parts:
        place.build = lambda parts: Sequential(tuple(parts))
        return self._steps(value, (place.path, "taskSequential"), place.depth)

    def _parallel(self, value: object, place: _Place) -> _Parts:
        place.build = lambda parts: Parallel(tuple(parts))
        return self._steps(value, (place.path, "taskParallel"), place.depth)

    def _steps(self, value: object, path: Path, depth: int) -> _Parts:
        if not isinstance(value, list):
            self._faults.add(path, "expected an array")
            return ()
        if not self._may_open(value, path, depth):
            return ()
        return [_Place(step, (path, n), depth + 1) for n, step in enumerate(value)]

    def _may_open(self, parts: Collection[object], path: Path, depth: int) -> bool:
        if not parts:
            self._faults.add(path, "expected at least one task")
            return False
        if depth >= self._limits.depth:
            self._faults.add(path, f"nested deeper than {self._limits.depth}")
            return False
        self._tasks += len(parts) - 1
        if self._tasks > self._limits.tasks:
            self._faults.add((None, "tasks"), f"more than {self._limits.tasks:,} tasks")
            raise self._faults.refusal()  # there is no use in looking at them all
        return True

    # --- graphs ---

    def _graph(self, value: object, place: _Place) -> _Parts:
        path = (place.path, "taskGraph")
        if not isinstance(value, dict):
            self._faults.add(path, "expected an object")
            return ()
        report_repeated(value, path, self._faults)
        if not self._may_open(value, path, place.depth):
            return ()
        self._report_names(value, path)
        after = {
            name: self._after(item["after"], ((path, name), "after"), value)
            for name, item in value.items()
            if _is_entry(item) and "after" in item
        }
        self._report_cycles({name: after.get(name, ()) for name in value}, path)
        place.build = lambda nodes: GraphSpec(
            {
                name: GraphNode(node, after.get(name, ()))
                for name, node in zip(value, nodes, strict=True)
            }
        )
        return [
            self._graph_place(item, (path, name), place.depth + 1) for name, item in value.items()
        ]

    def _graph_place(self, item: Any, path: Path, depth: int) -> _Place:
        if not _is_entry(item):
            return _Place(item, path, depth)
        report_repeated(item, path, self._faults)
        report_unknown(item, _ENTRY, path, self._faults)
        if "task" not in item:
            self._faults.add((path, "task"), "missing")
        return _Place(item.get("task", _ANY_TASK), (path, "task"), depth)

    def _report_names(self, names: Mapping[Any, Any], path: Path) -> None:
        for name in names:
            try:
                read_name(str(name), self._limits)
            except ValueError as fault:
                self._faults.add((path, str(name)), f"its name: {fault}")

    def _after(self, value: object, path: Path, names: Mapping[str, Any]) -> tuple[str, ...]:
        """The names in an `after` that can be waited for; the others are noted."""
        if value is None:
            return ()
        if not isinstance(value, list):
            self._faults.add(path, "expected an array of names")
            return ()
        found: dict[str, None] = {}
        for n, name in enumerate(value):
            if not isinstance(name, str):
                self._faults.add((path, n), "expected a name")
            elif name not in names:
                said = f"there is no {shown(name)} in this graph{meant(name, names)}"
                self._faults.add((path, n), said)
            elif name in found:
                self._faults.add((path, n), f"{shown(name)} is given twice")
            else:
                found[name] = None
        return tuple(found)

    def _report_cycles(self, after: Mapping[str, Sequence[str]], path: Path) -> None:
        for cycle in cycles(after):
            left_out = [f"{len(cycle) - _CYCLE_SHOWN:,} more"] if len(cycle) > _CYCLE_SHOWN else []
            round_trip = [*map(named, cycle[:_CYCLE_SHOWN]), *left_out, named(cycle[0])]
            self._faults.add(path, f"a cycle, each after the next: {' → '.join(round_trip)}")


_ENTRY: Final = ("task", "after")

_KINDS: Final[Mapping[str, Callable[[_TreeReader, object, _Place], _Parts]]] = {
    "Task": _TreeReader._task,
    "taskSequential": _TreeReader._sequential,
    "taskParallel": _TreeReader._parallel,
    "taskGraph": _TreeReader._graph,
}


def _is_entry(item: object) -> bool:
    """Whether a member of a graph is `{"task": Node, "after": […]}` and not a node itself."""
    return isinstance(item, dict) and any(name in item for name in _ENTRY)


def _always(task: TaskSpec) -> Callable[[Sequence[Node]], Node]:
    return lambda _: task


def _task_spec(members: TaskMembers) -> TaskSpec:
    retry = members.retry
    return TaskSpec(
        key=members.task_key,
        name=members.name,
        args=members.args or {},
        priority=members.priority,
        timeout=members.timeout,
        retry=Retry(**retry.model_dump()) if retry else None,
        allow_failure=bool(members.allow_failure),
    )
