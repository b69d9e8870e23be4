"""Turns snapshots into answers: DANE 0.1's shape, which its clients parse, and ours around it."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from dane_core.job import Attempt, Cancel, Counts, Job, Retry, Task
from dane_core.states import TaskState
from dane_server.api.answer import (
    PREFIX,
    AttemptBody,
    CancelBody,
    CountsBody,
    JobAnswer,
    JobHead,
    RejectedBody,
    RetryBody,
    TaskAnswer,
    TaskDetail,
    TaskMembers,
    TaskRow,
    TaskRowMembers,
)
from dane_server.graph import unfold
from dane_server.storage.view import JobView, RejectedState, TaskView

_USUAL_RETRY: Final = Retry()


def job_head(job: Job, *, exact: bool = False) -> JobHead:
    """A job without its tasks."""
    head = JobHead(
        job_id=job.id,
        source_url=job.source_url,
        source_id=job.source_id,
        metadata=job.metadata,
        priority=job.priority,
    )
    if exact:
        return head
    links = {"self": f"{PREFIX}/job/{job.id}", "tasks": f"{PREFIX}/job/{job.id}/tasks"}
    if job.cancel is not None:
        head["cancel"] = _cancel(job.cancel)
    if job.cancelling:
        head["cancelling"] = True
    if job.owner:
        head["owner"] = job.owner
    return JobHead(
        **head,
        type=job.type,
        status=job.status,
        state=job.state,
        paused=job.paused,
        counts=_counts(job.counts),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        links=links,
    )


def job_answer(view: JobView, *, exact: bool = False) -> JobAnswer:
    """A job with its tasks and their answers; `exact` has the members of DANE 0.1 and no more."""

    def leaf(seq: int) -> dict[str, Any]:
        return {"Task": task_members(view.tasks[seq], view.job, exact=exact)}

    return JobAnswer(
        **job_head(view.job, exact=exact),
        tasks=unfold(view.tree, leaf),
        response=responses(view),
    )


def responses(view: JobView) -> dict[str, Any]:
    """The answers by task key, `SHARED` first.

    Where several tasks share a key: a list in graph order as long as they are many, with None
    for those that have not answered, so that the place in it tells whose answer it is. A key
    is there as soon as one of its tasks has answered.
    """
    by_key: dict[str, list[Mapping[str, Any] | None]] = {}
    for task in view.tasks:
        by_key.setdefault(task.key, []).append(view.answers.get(task.id))
    merged: dict[str, Any] = {"SHARED": view.job.shared}
    for key, answers in by_key.items():
        if any(answer is not None for answer in answers):
            merged[key] = answers[0] if len(answers) == 1 else answers
    return merged


def task_members(task: Task, job: Job | None = None, *, exact: bool = False) -> TaskMembers:
    """A task as DANE 0.1 shows it, with what its specification said beyond its key.

    A priority that is the job's own is not repeated.
    """
    members = TaskMembers(
        task_key=task.key,
        task_id=task.id,
        task_state=task.number,
        task_msg=task.text,
        job_id=task.job_id,
    )
    if exact:
        return members
    if task.name is not None:
        members["name"] = task.name
    if task.args:
        members["args"] = task.args
    if job is None or task.priority != job.priority:
        members["priority"] = task.priority
    if task.timeout is not None:
        members["timeout"] = task.timeout
    if task.retry != _USUAL_RETRY:
        members["retry"] = _retry(task.retry)
    if task.allow_failure:
        members["allow_failure"] = True
    return members


def task_row(task: Task) -> TaskRow:
    """A task in the list of its job's tasks."""
    return TaskRow(
        Task=TaskRowMembers(
            **task_members(task),
            seq=task.seq,
            status=task.state,
            attempt=task.attempt,
            worker=task.worker,
            progress=task.progress,
            progress_message=task.message if task.state is TaskState.RUNNING else None,
            due_at=task.due_at,
            queued_at=task.queued_at,
            started_at=task.started_at,
            finished_at=task.finished_at,
        )
    )


def task_answer(view: TaskView, *, exact: bool = False) -> TaskAnswer:
    """A task by itself, with its attempts and its answer."""
    task = view.task
    if exact:
        return TaskAnswer(Task=task_members(task, exact=True))
    links = {
        "self": f"{PREFIX}/task/{task.id}",
        "job": f"{PREFIX}/job/{task.job_id}",
        "explain": f"{PREFIX}/task/{task.id}/explain",
    }
    return TaskAnswer(
        Task=TaskDetail(
            **task_row(task)["Task"],
            attempts=_attempts(view.attempts),
            rejected=_rejected(view.rejected),
            cancel=_cancel(view.cancel) if view.cancel else None,
            response=view.answer,
            links=links,
        )
    )


def _cancel(cancel: Cancel) -> CancelBody:
    return CancelBody(requested_at=cancel.requested_at, ended_by=cancel.ended_by)


def _attempts(attempts: Iterable[Attempt]) -> list[AttemptBody]:
    return [
        AttemptBody(
            number=attempt.number,
            worker=attempt.worker,
            state=attempt.outcome,
            message=attempt.message,
            queued_at=attempt.queued_at,
            started_at=attempt.started_at,
            finished_at=attempt.finished_at,
            runtime=attempt.runtime,
        )
        for attempt in attempts
    ]


def _rejected(rejected: Iterable[RejectedState]) -> list[RejectedBody]:
    return [
        RejectedBody(
            attempt=one.attempt,
            reason=one.reason,
            times=one.times,
            worker=one.worker,
            last_at=one.last_at,
        )
        for one in rejected
    ]


def _retry(retry: Retry) -> RetryBody:
    return RetryBody(
        limit=retry.limit, delay=retry.delay, factor=retry.factor, max_delay=retry.max_delay
    )


def _counts(counts: Counts) -> CountsBody:
    return CountsBody(
        total=counts.total,
        blocked=counts.blocked,
        held=counts.held,
        active=counts.active,
        succeeded=counts.succeeded,
        failed=counts.failed,
        forgiven=counts.forgiven,
        cancelled=counts.cancelled,
        skipped=counts.skipped,
    )
