"""A worker that is not there from the beginning."""

from typing import Any

from dane_core import TaskContext, Worker


class Late(Worker):
    """Nobody serves it, until somebody does."""

    key = "LATE"

    async def work(self, task: TaskContext) -> dict[str, Any]:
        return {"attempt": task.attempt}
