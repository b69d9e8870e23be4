"""Work that is none, and answers when it was called: for those who measure the way to it."""

import time
from typing import Any

from dane_core import TaskContext, Worker


class Clocked(Worker):
    """Answers at once, with the time in seconds since the epoch."""

    key = "NOOP"

    async def work(self, task: TaskContext) -> dict[str, Any]:  # noqa: ARG002  the contract
        return {"state": 200, "message": "Success", "called": time.time()}
