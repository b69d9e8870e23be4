"""Compares the `args` of tasks with the JSON Schemas that their workers have announced."""

import logging
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

from dane_core.errors import BadSpec, Fault
from dane_server.graph import Graph

logger = logging.getLogger(__name__)

_FAULTS: Final = 100


class Schemas:
    """Remembers the schemas it has seen, made ready for use."""

    def __init__(self) -> None:
        self._validators: dict[bytes, Draft202012Validator | None] = {}

    def objection(self, graph: Graph, schemas: Mapping[str, Mapping[str, Any]]) -> BadSpec | None:
        """What is wrong with the tasks of a job, by the schemas of their keys: all faults."""
        wrong = {
            seq: faults
            for seq, task in enumerate(graph.tasks)
            if task.key in schemas and (faults := self._faults(schemas[task.key], task.args))
        }
        return BadSpec(list(islice(_placed(wrong, graph.tree), _FAULTS))) if wrong else None

    def _faults(self, schema: Mapping[str, Any], args: Mapping[str, Any]) -> list[Fault]:
        validator = self._validator(schema)
        if validator is None:
            return []
        try:
            return [
                Fault("".join(_step(step) for step in error.absolute_path), error.message[:500])
                for error in validator.iter_errors(dict(args))
            ]
        except (Unresolvable, re.error, RecursionError) as fault:
            logger.warning("a worker's schema of args cannot be used: %s", fault)
            return []

    def _validator(self, schema: Mapping[str, Any]) -> Draft202012Validator | None:
        written = orjson.dumps(schema)
        if written not in self._validators:
            if len(self._validators) > 1000:
                self._validators.clear()
            self._validators[written] = _usable(schema)
        return self._validators[written]


def _usable(schema: Mapping[str, Any]) -> Draft202012Validator | None:
    """A worker that announces nonsense does not stop others from submitting."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError:
        return None
    # Without a registry of its own it would fetch whatever a `$ref` names.
    return Draft202012Validator(schema, registry=Registry())


def _step(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"


def _placed(wrong: Mapping[int, list[Fault]], tree: Any) -> Iterator[Fault]:
    for seq, path in _task_paths(tree):
        for fault in wrong.get(seq, ()):
            yield Fault(f"{path}.Task.args{fault.path}", fault.message)


def _task_paths(tree: Any) -> Iterator[tuple[int, str]]:
    """Where each task stands in the specification, in order."""
    stack: list[tuple[Any, str]] = [(tree, "tasks")]
    while stack:
        node, path = stack.pop()
        if isinstance(node, int):
            yield node, path
            continue
        [(kind, parts)] = node.items()
        if isinstance(parts, list):
            inside = [(part, f"{path}.{kind}[{place}]") for place, part in enumerate(parts)]
        else:
            inside = [_entry(part, f"{path}.{kind}.{name}") for name, part in parts.items()]
        stack.extend(reversed(inside))


def _entry(part: Any, path: str) -> tuple[Any, str]:
    waits = isinstance(part, dict) and "after" in part
    return (part["task"], f"{path}.task") if waits else (part, path)
