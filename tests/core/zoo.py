"""Workers for tests, where a child process finds them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from dane_core import Failed, Refused, TaskContext, Worker


class Tame(Worker):
    """Answers what it is asked for, in a child process."""

    key = "TAME"

    class Args(BaseModel):
        say: str = "hello"

    def work(self, _task: TaskContext, args: Args) -> dict[str, Any]:
        return {"said": args.say, "pid": os.getpid(), "environment": dict(os.environ)}


class Wild(Worker):
    """Ends its process, in as many ways as `args` can name."""

    key = "WILD"

    def work(self, task: TaskContext) -> dict[str, Any]:
        match task.args["how"]:
            case "segfault":
                ctypes.string_at(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "abort":
                os.abort()
            case "sys.exit":
                sys.exit(3)
            case "raise":
                raise ValueError("no such thing \ud800 \0 as " + "x" * 20_000)
            case "fail":
                raise Failed("no audio track", 400)
            case "refuse":
                raise Refused(7.0, "too hot")
        return {"pid": os.getpid()}


class Loud(Worker):
    """Prints more than anybody reads, and fails with a message as long."""

    key = "LOUD"

    def work(self, _task: TaskContext) -> None:
        for _ in range(16):
            sys.stderr.write("too much " * 131_072)
        raise RuntimeError("too much " * 4_000_000)


class Stubborn(Worker):
    """Writes its process id, then does not end by itself."""

    key = "STUBBORN"

    def work(self, task: TaskContext) -> dict[str, Any]:
        pids = [os.getpid()]
        match task.args.get("how"):
            case "ignoring everything":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case "with a child of its own":
                pids.append(subprocess.Popen(["sleep", "600"]).pid)
        task.progress(0.5, " ".join(map(str, pids)))
        try:
            if task.args.get("how") == "listening":
                task.cancelled.wait()
                return {"stopped": "by itself"}
            while True:
                time.sleep(600)
        finally:
            if "trace" in task.args:
                Path(task.args["trace"]).write_text("unwound")


class HoldsTheInterpreter(Worker):
    """Writes its process id to a file, then lets no other thread of its process run."""

    key = "HOLDS"

    def work(self, task: TaskContext) -> None:
        Path(task.args["trace"]).write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(600)


class Chatty(Worker):
    """Logs, prints and says how far it is."""

    key = "CHATTY"

    def work(self, task: TaskContext) -> None:
        print("this must not disturb anybody")
        task.log.warning("half of %s", "it", extra={"colour": "red"})
        for step in range(10_001):
            task.progress(step / 10_000, f"step {step}")
        task.cancelled.wait()


class SetUpOnce(Worker):
    """Counts how often it was set up, and leaves a file when it is torn down."""

    key = "SETUPONCE"

    def setup(self) -> None:
        self.times = getattr(self, "times", 0) + 1
        self.trace: Path | None = None

    def teardown(self) -> None:
        if self.trace is not None:
            self.trace.write_text("torn down")

    def work(self, task: TaskContext) -> dict[str, Any]:
        self.trace = Path(task.args["trace"])
        return {"times": self.times, "pid": os.getpid()}


class NoModel(Worker):
    """Cannot be set up."""

    key = "NOMODEL"

    def setup(self) -> None:
        raise FileNotFoundError("model.bin")

    def work(self, task: TaskContext) -> None: ...


class DiesInSetup(NoModel):
    """Does not live to its first task."""

    key = "DIESINSETUP"

    def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class AsyncInChild(Worker):
    """An `async def work` in a child, for code that awaits and may crash."""

    key = "ASYNCINCHILD"
    run_in = "process"

    async def setup(self) -> None:
        self.ready = True

    async def work(self, _task: TaskContext) -> dict[str, Any]:
        return {"ready": self.ready, "pid": os.getpid()}


class LosesItsModel(Worker):
    """Can be set up once, since that takes its model away; its first task ends its process."""

    key = "LOSESITSMODEL"

    def setup(self) -> None:
        Path(os.environ["DANE_TEST_MODEL"]).unlink()

    def work(self, _task: TaskContext) -> None:
        os._exit(1)
