"""Why a task is not running now: one reason, in a sentence and as data."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dane_core.job import Counts, Job, JobId, Retry, Task, TaskId
from dane_core.message import Offer
from dane_core.states import JobStatus, TaskState
from dane_server.runner.explain import Explanation, explain
from dane_server.storage.view import (
    Holder,
    KeyLimits,
    KeyState,
    Situation,
    Standing,
    WorkerState,
)

READY = TaskState.READY
NOW = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1, seconds=30)


def task(state: TaskState = TaskState.READY, **members: Any) -> Task:
    plain: dict[str, Any] = {
        "id": TaskId(7),
        "job_id": JobId(1),
        "seq": 2,
        "key": "OCR",
        "name": None,
        "args": {},
        "priority": 1,
        "timeout": None,
        "retry": Retry(),
        "allow_failure": False,
        "outcome": None,
        "message": None,
        "attempt": 1,
        "dispatch": 0,
        "worker": None,
        "progress": None,
        "pending": 0,
        "due_at": None,
        "queued_at": None,
        "started_at": None,
        "finished_at": None,
    }
    return Task(state=state, **{**plain, **members})


def job(**members: Any) -> Job:
    counts = Counts(
        total=3,
        blocked=0,
        held=0,
        active=3,
        succeeded=0,
        failed=0,
        forgiven=0,
        cancelled=0,
        skipped=0,
    )
    plain: dict[str, Any] = {
        "id": JobId(1),
        "source_url": "x",
        "source_id": "S1",
        "type": None,
        "metadata": {},
        "priority": 1,
        "shared": {},
        "status": JobStatus.RUNNING,
        "state": 102,
        "counts": counts,
        "paused": False,
        "created_at": NOW,
        "started_at": NOW,
        "finished_at": None,
    }
    return Job(**{**plain, **members})


WORKER = WorkerState(
    id="w1",
    host="h",
    pid=1,
    slots=1,
    task_keys=("OCR",),
    running=(),
    seen_at=NOW,
    since=NOW,
)


def key(**members: Any) -> KeyState:
    plain: dict[str, Any] = {
        "key": "OCR",
        "paused": False,
        "offer": None,
        "workers": [WORKER],
        "waiting": 0,
        "ready": 1,
        "queued": 0,
        "running": 0,
        "oldest_wait": None,
        "rate": 0.0,
    }
    return KeyState(**{**plain, **members})


def explained(one: Task, **facts: Any) -> Explanation:
    plain: dict[str, Any] = {
        "job": job(),
        "key": key(),
        "open_predecessors": [],
        "ahead": 0,
        "now": NOW,
    }
    return explain(Situation(task=one, **{**plain, **facts}))


def test_it_waits_for_predecessors_and_names_them() -> None:
    before = [
        task(TaskState.RUNNING, id=TaskId(5), key="SHOTS"),
        task(TaskState.READY, id=TaskId(6), name="the second"),
    ]

    told = explained(task(TaskState.BLOCKED, pending=2), open_predecessors=before)

    assert told.reason == "predecessors"
    assert "SHOTS (task 5, running)" in told.sentence
    assert "the second (task 6, ready)" in told.sentence
    assert "others" not in told.sentence
    assert told.data == {"waits_for": [5, 6], "pending": 2}


def test_it_waits_for_one_that_failed_and_says_what_to_do() -> None:
    before = [task(TaskState.FAILED, id=TaskId(5), key="SHOTS")]

    told = explained(task(TaskState.BLOCKED, pending=1), open_predecessors=before)

    assert "SHOTS failed: retry it" in told.sentence


def test_it_waits_for_many_and_names_three() -> None:
    before = [task(TaskState.QUEUED, id=TaskId(n), key=f"K{n}") for n in range(10)]

    told = explained(task(TaskState.BLOCKED, pending=40), open_predecessors=before)

    assert "K2" in told.sentence
    assert "K3" not in told.sentence
    assert "and others" in told.sentence


def test_it_was_reset() -> None:
    told = explained(task(TaskState.HELD))

    assert told.reason == "reset"
    assert "retried" in told.sentence


def test_its_job_is_paused() -> None:
    told = explained(task(), job=job(paused=True), key=key(paused=True))

    assert (told.reason, told.data) == ("job_paused", {"job_id": 1})


def test_its_key_is_paused() -> None:
    told = explained(task(), key=key(paused=True))

    assert (told.reason, told.data) == ("key_paused", {"task_key": "OCR"})


def test_a_worker_refused_it_for_now() -> None:
    told = explained(task(due_at=LATER))

    assert told.reason == "refused"
    assert "2026-05-04 12:31:30 UTC" in told.sentence
    assert told.data == {"due_at": LATER.isoformat()}


def test_it_waits_for_a_place_in_the_window() -> None:
    told = explained(task(due_at=NOW), key=key(queued=1000), standing=Standing(above=12))

    assert told.reason == "window"
    assert "12 tasks of higher priority go before it" in told.sentence
    assert told.data == {"ahead": 0, "above": 12, "queued": 1000}


def test_the_limit_of_its_key_is_full_and_somebody_has_the_place() -> None:
    holder = Holder(
        task_id=TaskId(3), job_id=JobId(2), state=TaskState.RUNNING, worker="w1", since=NOW
    )
    full = Standing(limits=KeyLimits(concurrency=2), held=2, first=holder, above=1)

    told = explained(task(due_at=NOW), standing=full)

    assert told.reason == "limit"
    assert told.sentence == (
        "The limit of 2 for OCR is full: held by task 3 (job 2) on w1 since "
        "2026-05-04 12:30:00 UTC and 1 other task; 1 task of higher priority goes before it."
    )
    assert told.data["holder"]["task_id"] == 3


def test_the_rate_of_its_key_lets_it_go_in_a_moment() -> None:
    told = explained(
        task(due_at=NOW), standing=Standing(limits=KeyLimits(rate=10.0), rate_wait=0.3)
    )

    assert told.reason == "rate"
    assert "The rate of OCR (10 per second) lets the next task go in 0.3 s" in told.sentence
    assert told.data == {"rate": 10.0, "wait": 0.3, "above": 0}


def test_it_is_being_sent() -> None:
    told = explained(task(TaskState.DISPATCHING, due_at=LATER, dispatch=3))

    assert (told.reason, told.data) == ("dispatching", {"sending": 3})
    assert "12:31:30" in told.sentence


def test_it_is_queued_behind_others() -> None:
    told = explained(task(TaskState.QUEUED), ahead=4, key=key(running=2))

    assert told.reason == "queued"
    assert "dane.OCR with 4 before it" in told.sentence
    assert told.data == {"ahead": 4, "workers": 1, "running": 2}


def test_it_is_queued_and_no_worker_is_alive() -> None:
    told = explained(task(TaskState.QUEUED), key=key(workers=[]))

    assert told.reason == "no_live_worker"
    assert "dane.OCR" in told.sentence


def test_no_queue_is_bound_to_its_key() -> None:
    told = explained(task(TaskState.UNROUTABLE), key=key(workers=[]))

    assert told.reason == "no_worker"
    assert "No queue is bound to OCR" in told.sentence
    assert told.data == {"task_key": "OCR", "type": "unknown"}


def test_workers_take_other_types_than_its_source_has() -> None:
    offer = Offer(key="OCR", types=("image", "text"))

    told = explained(task(TaskState.UNROUTABLE), key=key(offer=offer), job=job(type="video"))

    assert told.reason == "no_worker"
    assert "only image, text" in told.sentence
    assert "video.OCR" in told.sentence


def test_it_failed_for_now() -> None:
    told = explained(task(TaskState.BACKOFF, outcome=503, message="busy", due_at=LATER, attempt=3))

    assert told.reason == "backoff"
    assert "(503 busy)" in told.sentence
    assert "attempt 3 begins at 2026-05-04 12:31:30 UTC" in told.sentence
    assert told.data == {"due_at": LATER.isoformat(), "attempt": 3}


def test_it_is_running() -> None:
    told = explained(task(TaskState.RUNNING, worker="w1", started_at=NOW, progress=0.25))

    assert told.reason == "running"
    assert "on w1 since 2026-05-04 12:30:00 UTC, 25% done" in told.sentence
    assert told.data == {"worker": "w1", "progress": 0.25, "due_at": None}


def test_it_runs_on_a_lease_and_says_when_somebody_looks_again() -> None:
    one = task(TaskState.RUNNING, worker="w1", started_at=NOW, due_at=LATER)

    told = explained(one, leased=True)
    unheard = explained(one, leased=True, key=key(workers=[]))

    assert "on w1 since 2026-05-04 12:30:00 UTC" in told.sentence
    assert "last heard of at 2026-05-04 12:30:00 UTC" in told.sentence
    assert "begins anew after 2026-05-04 12:31:30 UTC" in told.sentence
    assert told.data["lease_ends"] == LATER.isoformat()
    assert told.data["heard_at"] == NOW.isoformat()
    assert unheard.data["heard_at"] is None
    assert "last heard of" not in unheard.sentence


def test_it_runs_on_its_message_and_the_broker_looks_after_it() -> None:
    told = explained(task(TaskState.RUNNING, worker="w1", started_at=NOW, due_at=LATER))

    assert "the broker gives it to another" in told.sentence


def test_it_is_queued_and_says_when_somebody_looks_again() -> None:
    told = explained(task(TaskState.QUEUED, due_at=LATER))

    assert "looked at again at 2026-05-04 12:31:30 UTC" in told.sentence


@pytest.mark.parametrize("state", [READY, TaskState.DISPATCHING, TaskState.UNROUTABLE])
def test_nothing_is_sent_while_the_broker_is_in_trouble(state: TaskState) -> None:
    """An alarm, or a broker that is away: no worker and no window would help."""
    situation = Situation(
        task=task(state), job=job(), key=key(), open_predecessors=[], ahead=0, now=NOW
    )

    told = explain(situation, obstacle="the broker takes no messages (memory)")
    paused = explain(replace(situation, job=job(paused=True)), obstacle="it is away")

    assert told.reason == "exchange"
    assert "takes no messages (memory)" in told.sentence
    assert paused.reason == ("job_paused" if state is READY else "exchange")


@pytest.mark.parametrize(
    ("state", "outcome", "word"),
    [
        (TaskState.FAILED, 404, "failed"),
        (TaskState.CANCELLED, 499, "was cancelled"),
        (TaskState.SKIPPED, None, "was skipped"),
    ],
)
def test_it_has_ended_and_runs_again_when_retried(
    state: TaskState, outcome: int | None, word: str
) -> None:
    told = explained(task(state, outcome=outcome, message="so it is", finished_at=NOW))

    assert told.reason == state.value
    assert f"It {word} at 2026-05-04 12:30:00 UTC" in told.sentence
    assert "so it is" in told.sentence
    assert "retried" in told.sentence


def test_it_has_succeeded_and_needs_nothing() -> None:
    told = explained(task(TaskState.SUCCEEDED, outcome=200, finished_at=NOW))

    assert told.reason == "succeeded"
    assert "200 Success" in told.sentence
    assert "retried" not in told.sentence


@pytest.mark.parametrize("state", TaskState)
def test_every_state_can_be_explained_with_the_least_that_is_known(state: TaskState) -> None:
    worker = "w1" if state is TaskState.RUNNING else None

    bare = explained(task(state, worker=worker), key=key(workers=[]))
    paused = explained(task(state, worker=worker), job=replace(job(), paused=True))

    for told in (bare, paused):
        assert told.reason
        assert told.sentence.endswith(".")
        assert "None" not in told.sentence
