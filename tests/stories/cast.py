"""The workers of the stories: small, and together all that a worker can do and suffer."""

import asyncio
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dane_core import Done, Failed, Outcome, Refused, TaskContext, Worker
from tests.stories.marks import Marks


def _told(task: TaskContext) -> dict[str, Any]:
    return {
        "args": dict(task.args),
        "name": task.name,
        "source": [task.source_url, task.source_id, task.type],
        "metadata": dict(task.metadata),
    }


class Echo(Worker):
    """Answers with what it was told, on the event loop."""

    key = "ECHO"

    async def work(self, task: TaskContext) -> dict[str, Any]:
        return _told(task)


class Threaded(Worker):
    """Answers with what it was told, in a thread."""

    key = "THREADED"
    run_in = "thread"

    def work(self, task: TaskContext) -> dict[str, Any]:
        return _told(task)


class Isolated(Worker):
    """Answers with what it was told, in a child process, after saying how far it is."""

    key = "ISOLATED"

    def work(self, task: TaskContext) -> dict[str, Any]:
        task.progress(0.5, "half of it")
        return _told(task)


class Gather(Worker):
    """Answers with what earlier tasks answered."""

    key = "GATHER"

    async def work(self, task: TaskContext) -> dict[str, Any]:
        echoes = await task.upstream("ECHO")
        return {
            "keys": sorted(task.response),
            "echoes": len(echoes),
            "sum": sum(echo["args"].get("n", 0) for echo in echoes),
        }


class Fail(Worker):
    """Fails as it is told."""

    key = "FAIL"

    class Args(BaseModel):
        """How."""

        state: int = 500
        message: str = "as it was told"

    async def work(self, task: TaskContext, args: Args) -> Outcome:
        return Failed(args.message, args.state, {"attempt": task.attempt})


class Raise(Worker):
    """Raises what it did not mean to."""

    key = "RAISE"
    run_in = "thread"

    def work(self, task: TaskContext) -> None:
        raise LookupError(f"nothing known of {task.source_id}")


class Crash(Worker):
    """Takes its process along, as a C library does."""

    key = "CRASH"

    def work(self, _task: TaskContext) -> None:
        os.abort()


class Flaky(Worker):
    """Fails for now, until the attempt that is good."""

    key = "FLAKY"

    class Args(BaseModel):
        """Which one."""

        good: int = 3

    async def work(self, task: TaskContext, args: Args) -> dict[str, Any]:
        if task.attempt < args.good:
            raise Failed(f"attempt {task.attempt} came too early", 503)
        return {"attempt": task.attempt}


class Coy(Worker):
    """Refuses twice, and then does it after all."""

    key = "COY"
    run_in = "thread"

    def work(self, task: TaskContext) -> dict[str, Any]:
        refusals = task.temp_folder / f"refusals-{task.task_id}"
        count = len(refusals.read_text()) if refusals.exists() else 0
        if count < 2:
            refusals.write_text("x" * (count + 1))
            raise Refused(0.05, "not in the mood")
        return {"attempt": task.attempt, "refusals": count}


class Dawdle(Worker):
    """Takes longer than anybody waits, in a child process."""

    key = "DAWDLE"

    def work(self, _task: TaskContext) -> None:
        time.sleep(600)


class Linger(Worker):
    """Takes longer than anybody waits, on the event loop."""

    key = "LINGER"

    async def work(self, _task: TaskContext) -> None:
        await asyncio.sleep(600)


class Old(Worker):
    """Answers as a worker of DANE 0.1: a JSON string with a state and a message."""

    key = "OLD"

    def work(self, task: TaskContext) -> str:
        return json.dumps({"state": 200, "message": "as ever", "source": task.source_id})


class Filed(Worker):
    """Puts a result where results go, and answers in its own words."""

    key = "FILED"

    def work(self, task: TaskContext) -> Done:
        path = task.out_folder / "result.txt"
        path.write_text(task.source_id)
        return Done({"path": str(path), "text": path.read_text()}, "filed")


class Narrow(Worker):
    """Takes videos only."""

    key = "NARROW"
    types = ("video",)

    async def work(self, task: TaskContext) -> dict[str, Any]:
        return {"type": task.type}


class Tidy(Worker):
    """Has arguments that are checked, and an answer that is checked."""

    key = "TIDY"

    class Args(BaseModel):
        """With a default."""

        word: str
        times: int = 2

    class Result(BaseModel):
        """As promised."""

        text: str
        length: int

    async def work(self, _task: TaskContext, args: Args) -> Result:
        text = args.word * args.times
        return Tidy.Result(text=text, length=len(text))


class GateArgs(BaseModel):
    """Where marks are left, and the word that lets it go on."""

    marks: str
    word: str = "go"  # for every attempt; `go-2` is for the second alone
    heed: bool = True  # whether a cancellation ends it too


class Gate(Worker):
    """Leaves a mark when it starts, waits for its word, and leaves another at the end."""

    key = "GATE"
    Args = GateArgs

    async def work(self, task: TaskContext, args: GateArgs) -> Mapping[str, Any]:
        marks = _begun(task, args)
        while not _may_go_on(task, args):
            if task.cancelled and args.heed:
                marks.leave("cancelled", task.task_id, task.attempt)
                raise Failed("stopped when told to")
            await asyncio.sleep(0.01)
        marks.leave("finished", task.task_id, task.attempt)
        return {"attempt": task.attempt}


class HeavyGate(Worker):
    """The same in a child process."""

    key = "HEAVYGATE"
    Args = GateArgs

    def work(self, task: TaskContext, args: GateArgs) -> Mapping[str, Any]:
        marks = _begun(task, args)
        while not _may_go_on(task, args):
            if args.heed and task.cancelled:
                marks.leave("cancelled", task.task_id, task.attempt)
                raise Failed("stopped when told to")
            time.sleep(0.01)
        marks.leave("finished", task.task_id, task.attempt)
        return {"attempt": task.attempt}


class Mended(Worker):
    """Fails for good until somebody has said the word."""

    key = "MENDED"
    Args = GateArgs

    async def work(self, task: TaskContext, args: GateArgs) -> dict[str, Any]:
        _begun(task, args)
        if not _may_go_on(task, args):
            raise Failed("somebody has to mend it first", 404)
        return {"attempt": task.attempt}


def _begun(task: TaskContext, args: GateArgs) -> Marks:
    marks = Marks(Path(args.marks))
    marks.leave("started", task.task_id, task.attempt)
    return marks


def _may_go_on(task: TaskContext, args: GateArgs) -> bool:
    marks = Marks(Path(args.marks))
    return marks.has_word(args.word) or marks.has_word(f"{args.word}-{task.attempt}")


#: Everyone who is there from the beginning.
EVERYONE = (
    Echo,
    Threaded,
    Isolated,
    Gather,
    Fail,
    Raise,
    Crash,
    Flaky,
    Coy,
    Dawdle,
    Linger,
    Old,
    Filed,
    Narrow,
    Tidy,
    Gate,
    HeavyGate,
    Mended,
)
