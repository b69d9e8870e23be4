"""The work that the benchmarks have done: none, so that what is measured is the way to it."""

from typing import Any

from dane_core import TaskContext, Worker


class Noop(Worker):
    """Answers at once."""

    key = "NOOP"

    async def work(self, task: TaskContext) -> dict[str, Any]:  # noqa: ARG002  the contract
        return {"state": 200, "message": "Success"}
