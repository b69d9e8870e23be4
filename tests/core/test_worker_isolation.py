"""Child processes: real ones, which crash, hang and are killed."""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dane_core import Done, Failed, Refused, TaskContext, Worker
from dane_core.errors import BadWorker
from dane_core.job import JobId, TaskId
from dane_core.message import TEXT_LIMIT
from dane_core.outcome import Outcome
from dane_core.worker.discover import find_workers
from dane_core.worker.ending import OomKills, how_it_ended
from dane_core.worker.isolation import LOADING, place_for
from dane_core.worker.place import Place
from tests.core import zoo


def task_of(worker: type[Worker], **more: Any) -> TaskContext:
    args = more.pop("args", {})
    more |= {"task_id": TaskId(1), "job_id": JobId(1), "attempt": 1, "args": args}
    return TaskContext(key=worker.key, source_url="/x", source_id="x", **more)


async def run_once(place: Place, task: TaskContext) -> Outcome:
    async with place.seat() as run:
        return await run(task)


async def answer_of(worker: type[Worker], **args: Any) -> Outcome:
    async with place_for(worker, 1) as place:
        return await run_once(place, task_of(worker, args=args))


async def test_a_plain_work_is_done_in_another_process() -> None:
    outcome = await answer_of(zoo.Tame, say="hi")

    assert isinstance(outcome, Done)
    assert outcome.response["said"] == "hi"
    assert outcome.response["pid"] != os.getpid()


async def test_a_child_is_set_up_once_and_used_again_and_torn_down(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with place_for(zoo.SetUpOnce, 2) as place:
        outcomes = [
            await run_once(place, task_of(zoo.SetUpOnce, args={"trace": str(trace)}))
            for _ in range(3)
        ]

    responses = [dict(outcome.response) for outcome in outcomes if isinstance(outcome, Done)]
    assert len(responses) == 3
    assert responses[0]["times"] == 1
    assert responses[0] == responses[1] == responses[2]
    assert trace.read_text() == "torn down"


async def test_tasks_at_once_have_a_child_each() -> None:
    async with place_for(zoo.Tame, 3) as place, place.seat() as one, place.seat() as other:
        outcomes = await asyncio.gather(*(run(task_of(zoo.Tame)) for run in (one, other)))

    assert len({dict(done.response)["pid"] for done in outcomes if isinstance(done, Done)}) == 2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("segfault", "SIGSEGV (exit code 139): a crash in a native library"),
        ("kill", "SIGKILL (exit code 137): out of memory, or killed by somebody"),
        ("abort", "SIGABRT (exit code 134)"),
        ("exit", "exit code 7"),
    ],
)
async def test_a_child_that_dies_fails_its_task_in_words_and_a_fresh_one_follows(
    how: str, words: str
) -> None:
    async with place_for(zoo.Wild, 1) as place:
        first = await run_once(place, task_of(zoo.Wild, args={"how": "live"}))
        death = await run_once(place, task_of(zoo.Wild, args={"how": how}))
        after = await run_once(place, task_of(zoo.Wild, args={"how": "live"}))

    assert isinstance(death, Failed)
    assert death.state == 500
    assert words in death.message
    assert "WILD" in death.message
    assert how == "exit" or re.search(r"; it had used (less than )?\d+ MiB", death.message)
    assert isinstance(first, Done)
    assert isinstance(after, Done)
    assert first.response["pid"] != after.response["pid"]


async def test_what_work_raises_is_an_outcome_and_the_child_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place_for(zoo.Wild, 1) as place:
        ends = [
            await run_once(place, task_of(zoo.Wild, args={"how": how}))
            for how in ("raise", "fail", "refuse", "sys.exit", "live")
        ]

    raised, failed, refused, left, lived = ends
    assert isinstance(raised, Failed)
    assert raised.message.startswith("ValueError: no such thing ")
    assert len(raised.message) == 8 * 1024
    assert isinstance(failed, Failed)
    assert (failed.message, failed.state) == ("no audio track", 400)
    assert isinstance(refused, Refused)
    assert (refused.delay, refused.message) == (7.0, "too hot")
    assert isinstance(left, Failed)
    assert left.message == "SystemExit: 3"
    assert isinstance(lived, Done)
    traceback = caplog.records[0].getMessage()
    assert "Traceback" in traceback
    assert "zoo.py" in traceback


async def test_log_lines_and_progress_come_across(caplog: pytest.LogCaptureFixture) -> None:
    """However often a worker says how far it is, a few messages cross, and the last is among
    them.
    """
    told: list[tuple[float, str]] = []

    def note(fraction: float, message: str) -> None:
        told.append((fraction, message))
        if fraction == 1.0:
            task.cancelled.set()

    task = task_of(zoo.Chatty, on_progress=note)
    async with place_for(zoo.Chatty, 1) as place:
        outcome = await run_once(place, task)

    assert isinstance(outcome, Done)
    assert told[-1] == (1.0, "step 10000")
    assert len(told) < 100
    (line,) = caplog.records
    assert line.getMessage() == "task 1: half of it"
    assert line.levelno == logging.WARNING
    assert line.__dict__["task_id"] == 1
    assert line.name == "dane_core.worker.CHATTY"


@asynccontextmanager
async def started(worker: type[Worker], **args: Any) -> AsyncIterator[tuple[Any, int, Any]]:
    """A child in the midst of a task: the running task, the child's process id, its context."""
    said: asyncio.Queue[int] = asyncio.Queue()

    def note(fraction: float, message: str) -> None:
        if fraction == 0.5:
            said.put_nowait(int(message))

    task = task_of(worker, args=args, on_progress=note)
    async with place_for(worker, 1) as place, place.seat() as run:
        running = asyncio.ensure_future(run(task))
        yield running, await said.get(), task
        running.cancel()
        await asyncio.wait({running})


async def gone(pid: int) -> None:
    """Wait until a process does nothing any more."""
    async with asyncio.timeout(10):
        while is_active(pid):  # noqa: ASYNC110  there is no event for another's child
            await asyncio.sleep(0.01)


def is_active(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_cancelled_task_hears_of_it_across_the_pipe() -> None:
    async with started(zoo.Stubborn, how="listening") as (running, _, task):
        task.cancelled.set()

        assert isinstance(await running, Done)


async def test_a_run_that_is_cancelled_unwinds_its_work_and_ends_the_child(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    async with started(zoo.Stubborn, trace=str(trace)) as (running, pid, _):
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert trace.read_text() == "unwound"
        await gone(pid)


async def test_a_child_that_does_not_want_to_end_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dane_core.worker.isolation.PATIENCE", 0.1)
    async with started(zoo.Stubborn, how="ignoring everything") as (running, pid, _):
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

        await gone(pid)


async def test_what_a_killed_child_had_started_ends_with_it() -> None:
    """An ffmpeg that a worker runs must not go on for hours without it."""
    pids: list[int] = []

    def note(_: float, message: str) -> None:
        pids.extend(map(int, message.split()))
        os.kill(pids[0], signal.SIGKILL)

    task = task_of(zoo.Stubborn, args={"how": "with a child of its own"}, on_progress=note)
    async with place_for(zoo.Stubborn, 1) as place:
        outcome = await run_once(place, task)

    assert isinstance(outcome, Failed)
    await gone(pids[1])


PARENT = """
import asyncio, sys
from tests.core import zoo, test_worker_isolation as here
from dane_core.worker.isolation import place_for

async def main(name, trace):
    worker = getattr(zoo, name)
    args = {"how": "ignoring everything", "trace": trace}
    show = lambda fraction, message: print(message, flush=True)
    async with place_for(worker, 1) as place, place.seat() as run:
        await run(here.task_of(worker, args=args, on_progress=show))

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def parent_of(worker: type[Worker], trace: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a child that works."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, worker.__name__, str(trace)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path.cwd(),
    )
    yield parent
    if parent.returncode is None:
        parent.kill()
    await parent.communicate()


async def test_children_die_with_their_parent(tmp_path: Path) -> None:
    """kill -9 of a worker must not leave processes that hold a GPU."""
    async with parent_of(zoo.Stubborn, tmp_path / "trace") as parent:
        assert parent.stdout is not None
        child = int(await parent.stdout.readline())

        parent.kill()

        await gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
async def test_even_a_child_that_holds_the_interpreter_dies_with_its_parent(tmp_path: Path) -> None:
    """A C library may never let the thread run that would notice."""
    trace = tmp_path / "trace"
    async with parent_of(zoo.HoldsTheInterpreter, trace) as parent:
        child = await written(trace)

        parent.kill()

        await gone(child)


async def written(trace: Path) -> int:
    """Wait for the process id in a file."""
    async with asyncio.timeout(10):
        while not (pid := read(trace)):  # noqa: ASYNC110  a file has no event
            await asyncio.sleep(0.01)
        return int(pid)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("worker", "words"),
    [(zoo.NoModel, "FileNotFoundError: model.bin"), (zoo.DiesInSetup, "SIGKILL")],
)
async def test_a_worker_that_cannot_be_set_up_is_refused_before_any_task(
    worker: type[Worker], words: str
) -> None:
    with pytest.raises(BadWorker, match=words) as refused:
        async with place_for(worker, 1):
            pass

    assert worker.key in str(refused.value)


async def test_an_async_work_can_be_done_in_a_child() -> None:
    outcome = await answer_of(zoo.AsyncInChild)

    assert isinstance(outcome, Done)
    assert outcome.response["ready"] is True
    assert outcome.response["pid"] != os.getpid()


async def test_a_worker_from_a_file_runs_in_a_child(tmp_path: Path) -> None:
    file = tmp_path / "file_worker.py"
    file.write_text(
        "from dane_core import Worker\n"
        "class FromFile(Worker):\n"
        "    key = 'FROMFILE'\n"
        "    def work(self, task): return {'file': __file__}\n"
    )
    (worker,) = find_workers(str(file))

    outcome = await answer_of(worker)

    assert outcome == Done({"file": str(file)})


SCRIPT = """
import asyncio
from dane_core import Worker
from dane_core.testing import run_worker

class Mine(Worker):
    key = "MINE"
    def work(self, task):
        return {"module": __name__}

async def main():
    print(await run_worker(Mine, source="/x", isolated=True))

GUARD asyncio.run(main())
"""


def run_script(folder: Path, guard: str) -> "subprocess.CompletedProcess[str]":
    script = folder / "script.py"
    script.write_text(SCRIPT.replace("GUARD", guard))
    return subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_worker_in_a_script_runs_in_a_child(tmp_path: Path) -> None:
    ran = run_script(tmp_path, 'if __name__ == "__main__":')

    assert "Done(response={'module': 'dane_worker_script_" in ran.stdout


def test_a_script_without_a_guard_is_told_so_and_makes_no_children_without_end(
    tmp_path: Path,
) -> None:
    """The child imports the script to find the class, and would start it all over again."""
    ran = run_script(tmp_path, "if True:")

    assert ran.returncode == 1
    assert '__name__ == "__main__"' in ran.stderr.splitlines()[-1]


async def test_the_mark_of_a_loading_child_is_gone_when_it_works() -> None:
    """A work that starts workers of its own is odd, but nothing endless."""
    outcome = await answer_of(zoo.Tame)

    assert isinstance(outcome, Done)
    assert LOADING not in outcome.response["environment"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-11, "SIGSEGV (exit code 139)"),
        (137, "SIGKILL (exit code 137)"),
        (-15, "SIGTERM (exit code 143)"),
        (1, "exit code 1"),
        (0, "exit code 0"),
        (200, "exit code 200"),
    ],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert words in how_it_ended(code)


@pytest.mark.parametrize(
    ("peak", "words"),
    [(3_650_722_202, "; it had used 3.4 GiB at its peak"), (1024, "; it had used less than ")],
)
def test_what_a_killed_process_had_used_is_said(peak: int, words: str) -> None:
    """Linux counts what a process was before its exec, too: so little cannot be told from that."""
    assert words in how_it_ended(-9, peak)


def test_what_its_own_parent_had_used_is_not_taken_for_a_worker_s(tmp_path: Path) -> None:
    """Linux says of a process that was started by a large one that it was as large itself."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "from dane_core.worker.ending import how_it_ended; print(how_it_ended(-9, 200 << 20))"
    )
    parent = "import subprocess, sys; large = b'1' * (300 << 20); subprocess.run(sys.argv[1:])"

    told = subprocess.run(
        [sys.executable, "-c", parent, sys.executable, str(worker)],
        check=True,
        capture_output=True,
        text=True,
    )

    assert "it had used 200 MiB at its peak" in told.stdout


def test_a_kill_by_the_kernel_for_want_of_memory_is_said_for_certain(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n")
    kills = OomKills(events)

    assert not kills.noticed()
    events.write_text("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\n")
    assert kills.noticed()
    assert not kills.noticed()
    assert "137): out of memory: the kernel has killed it" in how_it_ended(-9, oom=True)


@pytest.mark.parametrize("events", [None, Path("/nowhere"), Path("/dev/null")])
def test_where_nobody_counts_kills_none_is_noticed(events: Path | None) -> None:
    assert not OomKills(events).noticed()


async def test_a_child_that_writes_and_says_too_much_fills_no_memory_here() -> None:
    """What it prints goes where our own stderr goes; what it says at the end is cut."""
    before = _memory()
    outcome = await answer_of(zoo.Loud)

    assert isinstance(outcome, Failed)
    assert len(outcome.message) <= TEXT_LIMIT
    assert outcome.message.startswith("RuntimeError: too much too much")
    assert _memory() - before < 32 * 1024 * 1024


def _memory() -> int:
    """What this process uses, in bytes; 0 where nobody tells."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
