"""What a task shows outside."""

from dane_core.job import JobId, Retry, Task, TaskId
from dane_core.states import TaskState


def task(state: TaskState, message: str | None = None, outcome: int | None = None) -> Task:
    return Task(
        id=TaskId(1),
        job_id=JobId(1),
        seq=0,
        key="A",
        name=None,
        args={},
        priority=1,
        timeout=None,
        retry=Retry(),
        allow_failure=False,
        state=state,
        outcome=outcome,
        message=message,
        attempt=1,
        dispatch=1,
        worker=None,
        progress=None,
        pending=0,
        due_at=None,
        queued_at=None,
        started_at=None,
        finished_at=None,
    )


def test_a_running_task_says_queued_whatever_its_worker_says() -> None:
    """DANE 0.1 wrote "Queued" for 102; what a worker says on its way has a member of its own."""
    running = task(TaskState.RUNNING, "frame 50 of 100")

    assert (running.number, running.text) == (102, "Queued")


def test_a_failed_task_shows_the_number_and_message_of_its_worker() -> None:
    failed = task(TaskState.FAILED, "no such source", 404)

    assert (failed.number, failed.text) == (404, "no such source")


def test_a_task_that_says_nothing_has_the_message_of_its_state() -> None:
    assert task(TaskState.UNROUTABLE).text == "Unroutable task"
