"""Specifications of single stories; `workload` makes random ones."""

from typing import Any

Json = dict[str, Any]


def job(name: str, tasks: Any = "TOIL", **members: Any) -> Json:
    return {"source_url": f"/{name}", "source_id": name, "tasks": tasks, **members}


def toil(key: str = "TOIL", **args: Any) -> Json:
    """One task; see `labor.LaborArgs`."""
    return {"Task": {"task_key": key, "args": args}}
