"""All that a server says of a job, without what no two runs have in common."""

import re
from pathlib import Path
from typing import Any, Final

from dane_core.client import Client

Json = dict[str, Any]

#: Ids, times, and who did it.
_PASSING: Final = frozenset(
    {
        "job_id",
        "task_id",
        "links",
        "worker",
        "runtime",
        "created_at",
        "queued_at",
        "started_at",
        "finished_at",
        "due_at",
    }
)
#: What a child process had used when it ended.
_MEMORY: Final = re.compile(r"\d[\d.]* [KMG]iB")
#: Of larger jobs the attempts are not asked for one by one.
_MANY: Final = 50


async def snapshot(client: Client, job_id: int, folder: Path) -> Json:
    """A job with its tasks and their attempts; paths below `folder` begin with a star."""
    job = await client.job(job_id)
    rows = await client.tasks(job_id)
    if len(rows) <= _MANY:
        rows = [await client.task(row["task_id"]) for row in rows]
    whole: Json = _lasting({**job, "task_list": rows}, str(folder))
    return whole


def _lasting(value: Any, folder: str) -> Any:
    if isinstance(value, dict):
        kept = {name: item for name, item in value.items() if name not in _PASSING}
        return {name: _lasting(item, folder) for name, item in kept.items()}
    if isinstance(value, list):
        return [_lasting(item, folder) for item in value]
    if isinstance(value, str):
        return _MEMORY.sub("some memory", value.replace(folder, "*"))
    return value
