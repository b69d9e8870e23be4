"""The specification as JSON Schema, for OpenAPI, forms and other people's validators."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from dane_core.routing import MEDIA_TYPE
from dane_core.spec.member import JobMembers, RetryMembers, TaskMembers
from dane_core.spec.node import Limits

_LIMITS: Final = Limits()

_EXAMPLE: Final[Mapping[str, Any]] = {
    "source_url": "https://example.org/clips/1.mp4",
    "source_id": "CLIP-1",
    "tasks": {
        "taskSequential": [
            "DOWNLOAD",
            {"taskParallel": ["FILESIZE", {"Task": {"task_key": "CHECKSUM", "timeout": 600}}]},
        ]
    },
}
_GRAPH_EXAMPLE: Final[Mapping[str, Any]] = {
    "source_url": "/data/my clip.mp4",
    "source_id": "CLIP-2",
    "type": "video",
    "priority": 5,
    "metadata": {"collection": "news"},
    "tasks": {
        "taskGraph": {
            "info": "MEDIAINFO",
            "picture": {
                "task": {"Task": {"task_key": "THUMBNAIL", "args": {"size": 320}}},
                "after": ["info"],
            },
            "sum": {"task": "CHECKSUM", "after": ["info"]},
        }
    },
}


def job_schema(limits: Limits = _LIMITS, *, refs: str = "#/$defs/{model}") -> dict[str, Any]:
    """What `read_job` takes, as JSON Schema 2020-12, with `$defs` for what is nested.

    `refs` is how a definition is referred to: OpenAPI wants `#/components/schemas/{model}`, with
    the contents of `$defs` moved there. What no schema can say stays with `read_job`: cycles,
    names that are not there or given twice, sizes, depth and the number of tasks.
    """
    node = {"$ref": refs.format(model="Node")}
    job = JobMembers.model_json_schema(ref_template=refs)
    task = TaskMembers.model_json_schema(ref_template=refs)
    task.pop("$defs", None)
    job["properties"]["tasks"] = {**node, "description": "The graph of tasks."}
    for members in (job, task):
        _bound(members["properties"], limits)
    definitions = {
        "Node": _node(node, refs, limits),
        "TaskMembers": {**task, "title": "Task"},
        "RetryMembers": {**RetryMembers.model_json_schema(), "title": "Retry"},
    }
    examples = deepcopy([_EXAMPLE, _GRAPH_EXAMPLE])
    return {**job, "title": "Job", "examples": examples, "$defs": definitions}


def _bound(properties: dict[str, Any], limits: Limits) -> None:
    """Write the settable limits of texts into the members that have them."""
    for name, bounds in _texts(limits).items():
        if name in properties:
            kinds = properties[name].get("anyOf", [properties[name]])
            kinds[0].update(bounds)


def _texts(limits: Limits) -> Mapping[str, Mapping[str, Any]]:
    return {
        "source_url": {"minLength": 1, "maxLength": limits.url},
        "source_id": {"minLength": 1, "maxLength": limits.source_id},
        "type": {"pattern": f"^{MEDIA_TYPE.pattern}$", "maxLength": limits.type},
        "task_key": _key(limits),
        "name": {"minLength": 1, "maxLength": limits.name},
    }


def _key(limits: Limits) -> dict[str, Any]:
    return {"pattern": "^[A-Za-z0-9_-]+$", "maxLength": limits.key}


def _node(node: Mapping[str, Any], refs: str, limits: Limits) -> dict[str, Any]:
    steps = {"type": "array", "minItems": 1, "items": node}
    names = {"type": ["array", "null"], "items": {"type": "string"}, "uniqueItems": True}
    entry = _object({"task": node, "after": names}, required=["task"])
    graph = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"minLength": 1, "maxLength": limits.name},
        "additionalProperties": {"anyOf": [node, entry]},
    }
    return {
        "title": "Node",
        "description": "A task or a container of nodes.",
        "anyOf": [
            {"title": "Task key", "type": "string", **_key(limits)},
            _one("Task", {"$ref": refs.format(model="TaskMembers")}, "One piece of work."),
            _one("taskSequential", steps, "Nodes done one after another."),
            _one("taskParallel", steps, "Nodes done side by side."),
            _one("taskGraph", graph, "Named nodes, each after the ones it names."),
        ],
    }


def _one(kind: str, inside: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"title": kind, "description": description, **_object({kind: inside}, required=[kind])}


def _object(properties: Mapping[str, Any], *, required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": dict(properties),
    }
