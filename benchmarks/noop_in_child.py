"""Work that is none, in a child process: what a crash that costs one attempt only costs."""

from typing import Any

from dane_core import TaskContext, Worker


class NoopInChild(Worker):
    """Answers at once."""

    key = "NOOP"
    run_in = "process"

    def work(self, task: TaskContext) -> dict[str, Any]:  # noqa: ARG002  the contract
        return {"state": 200, "message": "Success"}
