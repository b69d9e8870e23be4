"""Work that is none, in a thread: what a plain `def work` costs at the least."""

from typing import Any

from dane_core import TaskContext, Worker


class NoopInThread(Worker):
    """Answers at once."""

    key = "NOOP"
    run_in = "thread"

    def work(self, task: TaskContext) -> dict[str, Any]:  # noqa: ARG002  the contract
        return {"state": 200, "message": "Success"}
