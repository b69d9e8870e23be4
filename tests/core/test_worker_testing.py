"""`dane_core.testing`, as a task developer uses it."""

from pathlib import Path
from typing import Any

import pytest

from dane_core import Done, Failed, Refused, TaskContext, Worker
from dane_core.errors import BadWorker
from dane_core.testing import run_worker
from tests.core import zoo


class Writes(Worker):
    """Writes a file, and says where."""

    key = "WRITES"

    def work(self, task: TaskContext) -> dict[str, Any]:
        file = task.out_folder / "out.txt"
        file.write_text(task.response.get("WORDS", {}).get("text", ""))
        task.progress(1.0, "written")
        return {"file": str(file), "url": task.source_url, "metadata": dict(task.metadata)}


async def test_a_worker_made_in_a_test_can_be_run(tmp_path: Path) -> None:
    """In this process: a child would not find the class."""
    seen: list[TaskContext] = []

    class Local(Worker):
        key = "LOCAL"

        def setup(self) -> None:
            self.model = "m"

        def work(self, task: TaskContext) -> dict[str, str]:
            seen.append(task)
            return {"model": self.model}

    outcome = await run_worker(Local, source=tmp_path)

    assert outcome == Done({"model": "m"})
    assert seen[0].source_url == str(tmp_path)


async def test_earlier_answers_and_metadata_are_given_and_files_kept(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []

    outcome = await run_worker(
        Writes,
        source="https://example.org/a",
        response={"WORDS": {"text": "hello"}},
        metadata={"year": 1930},
        folder=tmp_path,
        on_progress=lambda *what: told.append(what),
    )

    assert isinstance(outcome, Done)
    assert outcome.response["url"] == "https://example.org/a"
    assert outcome.response["metadata"] == {"year": 1930}
    assert (tmp_path / "OUT/so/ur/ce/source/out.txt").read_text() == "hello"
    assert told == [(1.0, "written")]


async def test_without_a_folder_files_are_gone_afterwards() -> None:
    outcome = await run_worker(Writes, source="/x")

    assert isinstance(outcome, Done)
    assert not is_there(outcome.response["file"])


def is_there(path: str) -> bool:
    return Path(path).exists()


@pytest.mark.parametrize("isolated", [False, True])
async def test_what_work_raises_is_returned(isolated: bool) -> None:  # noqa: FBT001
    async def ends(how: str) -> Done | Failed | Refused:
        return await run_worker(zoo.Wild, source="/x", args={"how": how}, isolated=isolated)

    failed, refused = await ends("fail"), await ends("refuse")

    assert isinstance(failed, Failed)
    assert failed.state == 400
    assert isinstance(refused, Refused)
    assert refused.delay == 7.0


async def test_isolated_work_may_crash() -> None:
    outcome = await run_worker(zoo.Wild, source="/x", args={"how": "segfault"}, isolated=True)

    assert isinstance(outcome, Failed)
    assert "SIGSEGV" in outcome.message


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("worker", [zoo.NoModel, Worker])
async def test_a_worker_that_cannot_be_used_is_an_error_of_the_test(
    worker: type[Worker],
    isolated: bool,  # noqa: FBT001
) -> None:
    with pytest.raises(BadWorker):
        await run_worker(worker, source="/x", isolated=isolated)
