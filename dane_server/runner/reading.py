"""A process that reads one very large specification; `draft` starts it, and talks to it.

It is given the limits and the specification, says which keys its tasks have, is given the
schemas of their args, and says what is to be stored: the head of the job, then parts of its rows
up to an empty one, then its edges likewise. Instead of either it may say what is wrong.
"""

import gc
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, BinaryIO

import orjson

from dane_core.errors import BadSpec
from dane_core.spec import JobSpec, Limits, parse_job
from dane_server.graph import Graph, compile_graph
from dane_server.storage.nodes import packed_links, packed_nodes, written


def main() -> None:
    """Read one specification from standard input."""
    gc.disable()  # nothing here is garbage before it ends
    said, told = sys.stdin.buffer, sys.stdout.buffer
    try:
        limits = Limits(**orjson.loads(_receive(said)))
        spec = parse_job(_receive(said), limits)
        graph = compile_graph(spec.tasks)
        _send(told, orjson.dumps({"keys": sorted({task.key for task in graph.tasks})}))
        _check(graph, orjson.loads(_receive(said)))
    except BadSpec as bad:
        _send(told, orjson.dumps({"faults": [asdict(fault) for fault in bad.faults]}))
        return
    _send(told, orjson.dumps({"spec": _head(spec), "graph": _measures(graph)}))
    _send_all(told, packed_nodes(graph, spec.priority))
    _send_all(told, packed_links(graph))


def _check(graph: Graph, schemas: dict[str, Any]) -> None:
    if not schemas:
        return
    from dane_server.runner.schemas import Schemas  # noqa: PLC0415 - takes long, needed seldom

    if objection := Schemas().objection(graph, schemas):
        raise objection


def _head(spec: JobSpec) -> dict[str, Any]:
    return {
        "source_url": spec.source_url,
        "source_id": spec.source_id,
        "type": spec.type,
        "metadata": spec.metadata,
        "priority": spec.priority,
    }


def _measures(graph: Graph) -> dict[str, Any]:
    return {
        "tree": written(graph.tree),
        "total": graph.total,
        "active": graph.active,
        "nodes": graph.nodes,
        "links": graph.links,
    }


def _receive(said: BinaryIO) -> bytes:
    return said.read(int.from_bytes(said.read(8), "big"))


def _send(told: BinaryIO, text: bytes) -> None:
    told.write(len(text).to_bytes(8, "big") + text)
    told.flush()


def _send_all(told: BinaryIO, parts: Iterable[bytes]) -> None:
    for part in parts:
        _send(told, part)
    _send(told, b"")
