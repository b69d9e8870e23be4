"""Says why a task is not running now: one reason, in a sentence and as data. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from dane_core.routing import work_queue
from dane_core.states import TaskState
from dane_server.storage.view import MOST_ABOVE, Situation, Standing


@dataclass(frozen=True, slots=True)
class Explanation:
    """The binding reason. `reason` is a word for programs, `sentence` is for people."""

    reason: str
    sentence: str
    data: Mapping[str, Any] = field(default_factory=dict)


def explain(situation: Situation, *, obstacle: str = "") -> Explanation:
    """Find the one thing that has to change before the task runs or, if it runs, say so.

    And who looks at it again, should no more be heard of it. An `obstacle` keeps everything
    from being sent.
    """
    explanation = _EXPLAINED[situation.task.state](situation)
    if obstacle and explanation.reason in _IN_THE_WAY_OF:
        sentence = f"Nothing is sent now: {obstacle}. It goes as soon as that is over."
        return Explanation("exchange", sentence, {"obstacle": obstacle})
    return explanation


def _settled(situation: Situation) -> Explanation:
    task = situation.task
    when = f" at {_clock(task.finished_at)}" if task.finished_at else ""
    sentence = f"It {_ENDINGS[task.state]}{when}: {task.number} {task.text}."
    if task.state is not TaskState.SUCCEEDED:
        sentence += " It runs again when it, or its job, is retried."
    return Explanation(task.state.value, sentence, {"number": task.number})


def _running(situation: Situation) -> Explanation:
    task = situation.task
    since = f" since {_clock(task.started_at)}" if task.started_at else ""
    done = f", {task.progress:.0%} done" if task.progress is not None else ""
    sentence = f"It is running on {task.worker}{since}{done}."
    data: dict[str, Any] = {"worker": task.worker, "progress": task.progress}
    if not situation.leased:
        sentence += " Should that worker die, the broker gives it to another."
        sentence += _looked_at(task.due_at)
        data["due_at"] = _iso(task.due_at)
        return Explanation("running", sentence, data)
    heard = _heard_of(situation)
    last = f" The worker was last heard of at {_clock(heard)}." if heard else ""
    sentence += f"{last} Without another heartbeat it begins anew after {_clock(task.due_at)}."
    data |= {"heard_at": _iso(heard), "lease_ends": _iso(task.due_at)}
    return Explanation("running", sentence, data)


def _heard_of(situation: Situation) -> datetime | None:
    seen = (one.seen_at for one in situation.key.workers if one.id == situation.task.worker)
    return next(seen, None)


def _blocked(situation: Situation) -> Explanation:
    task, before = situation.task, situation.open_predecessors
    names = ", ".join(f"{one.name or one.key} (task {one.id}, {one.state})" for one in before[:3])
    more = task.pending > len(before[:3])
    sentence = f"It waits for {names or 'its predecessors'}{' and others' if more else ''}."
    failed = [one for one in before if one.state in (TaskState.FAILED, TaskState.CANCELLED)]
    if failed:
        sentence += f" {failed[0].name or failed[0].key} {failed[0].state}: retry it, or the job."
    data = {"waits_for": [one.id for one in before], "pending": task.pending}
    return Explanation("predecessors", sentence, data)


def _held(situation: Situation) -> Explanation:
    sentence = (
        "It was reset: it runs once its predecessors finish again, or when it or its job is "
        "retried."
    )
    return Explanation("reset", sentence, {"pending": situation.task.pending})


def _ready(situation: Situation) -> Explanation:
    task, job, key = situation.task, situation.job, situation.key
    if job.paused:
        return Explanation("job_paused", f"Job {job.id} is paused.", {"job_id": job.id})
    if key.paused:
        return Explanation("key_paused", f"Tasks of {key.key} are paused.", {"task_key": key.key})
    if task.due_at and task.due_at > situation.now:
        sentence = f"A worker refused it for now; it is sent again at {_clock(task.due_at)}."
        return Explanation("refused", sentence, {"due_at": task.due_at.isoformat()})
    standing = situation.standing
    if standing.limits.concurrency is not None and standing.held >= standing.limits.concurrency:
        return _limit_full(key.key, standing)
    if standing.rate_wait > 0:
        return _rate_spent(key.key, standing)
    sentence = (
        f"It is ready, and waits for a place among the {key.queued} tasks of {key.key} that are "
        f"in the queue; {_before(standing)}."
    )
    data = {"ahead": situation.ahead, "above": standing.above, "queued": key.queued}
    return Explanation("window", sentence, data)


def _limit_full(key: str, standing: Standing) -> Explanation:
    limit, first = standing.limits.concurrency, standing.first
    sentence = f"The limit of {limit} for {key} is full"
    data: dict[str, Any] = {"concurrency": limit, "held": standing.held, "above": standing.above}
    if first is not None:
        where = f"on {first.worker}" if first.worker else "in the queue"
        since = f" since {_clock(first.since)}" if first.since else ""
        others = f" and {_many(standing.held - 1, 'other task')}" if standing.held > 1 else ""
        sentence += f": held by task {first.task_id} (job {first.job_id}) {where}{since}{others}"
        data["holder"] = {
            "task_id": first.task_id,
            "job_id": first.job_id,
            "state": first.state,
            "worker": first.worker,
            "since": _iso(first.since),
        }
    return Explanation("limit", f"{sentence}; {_before(standing)}.", data)


def _rate_spent(key: str, standing: Standing) -> Explanation:
    rate, wait = standing.limits.rate, standing.rate_wait
    sentence = (
        f"The rate of {key} ({rate:g} per second) lets the next task go in {wait:.1f} s; "
        f"{_before(standing)}."
    )
    return Explanation("rate", sentence, {"rate": rate, "wait": wait, "above": standing.above})


def _before(standing: Standing) -> str:
    """Who goes first. Among those of the same priority owners and jobs take turns."""
    if standing.above == 0:
        return "none of higher priority goes before it"
    more = " or more" if standing.above >= MOST_ABOVE else ""
    goes = "goes" if standing.above == 1 else "go"
    return f"{_many(standing.above, 'task')}{more} of higher priority {goes} before it"


def _dispatching(situation: Situation) -> Explanation:
    until = situation.task.due_at
    sentence = "It is being sent to the exchange"
    sentence += f"; should that fail, it is sent again at {_clock(until)}." if until else "."
    return Explanation("dispatching", sentence, {"sending": situation.task.dispatch})


def _queued(situation: Situation) -> Explanation:
    key, ahead = situation.key, situation.ahead
    if not key.workers:
        sentence = f"It is in queue {work_queue(key.key)}, and no worker for it is alive."
        sentence += _looked_at(situation.task.due_at)
        return Explanation("no_live_worker", sentence, {"task_key": key.key})
    busy = f"{_many(len(key.workers), 'worker')}, {_many(key.running, 'task')} running"
    more = " or more" if ahead >= MOST_ABOVE else ""
    sentence = f"It is in queue {work_queue(key.key)} with {ahead}{more} before it ({busy})."
    sentence += _looked_at(situation.task.due_at)
    data = {"ahead": ahead, "workers": len(key.workers), "running": key.running}
    return Explanation("queued", sentence, data)


def _unroutable(situation: Situation) -> Explanation:
    key = situation.key.key
    types = situation.key.offer.types if situation.key.offer else ()
    media_type = situation.job.type or "unknown"
    if types and media_type not in types:
        sentence = (
            f"Workers for {key} take only {', '.join(types)}, and this source is of type "
            f"{media_type}. It goes as soon as a worker binds {media_type}.{key}."
        )
    else:
        sentence = f"No queue is bound to {key}. It goes as soon as a worker for {key} starts."
    if due := situation.task.due_at:
        sentence += f" It is tried again at {_clock(due)} in any case."
    return Explanation("no_worker", sentence, {"task_key": key, "type": media_type})


def _backoff(situation: Situation) -> Explanation:
    task = situation.task
    sentence = f"It failed for now ({task.number} {task.text})"
    sentence += f"; attempt {task.attempt} begins at {_clock(task.due_at)}." if task.due_at else "."
    due = task.due_at.isoformat() if task.due_at else None
    return Explanation("backoff", sentence, {"due_at": due, "attempt": task.attempt})


def _looked_at(due: datetime | None) -> str:
    """The broker, and its queue, bring it on; this is for what they do not show."""
    return f" Unheard of, it is looked at again at {_clock(due)}." if due else ""


def _iso(time: datetime | None) -> str | None:
    return time.isoformat() if time else None


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _clock(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else "an unknown time"


#: What a task waits for, that being sent would end.
_IN_THE_WAY_OF: Final = frozenset({"window", "limit", "rate", "dispatching", "no_worker"})
_ENDINGS: Final = {
    TaskState.SUCCEEDED: "succeeded",
    TaskState.FAILED: "failed",
    TaskState.CANCELLED: "was cancelled",
    TaskState.SKIPPED: "was skipped",
}
_EXPLAINED: Final[Mapping[TaskState, Callable[[Situation], Explanation]]] = {
    TaskState.BLOCKED: _blocked,
    TaskState.HELD: _held,
    TaskState.READY: _ready,
    TaskState.DISPATCHING: _dispatching,
    TaskState.QUEUED: _queued,
    TaskState.RUNNING: _running,
    TaskState.UNROUTABLE: _unroutable,
    TaskState.BACKOFF: _backoff,
    TaskState.SUCCEEDED: _settled,
    TaskState.FAILED: _settled,
    TaskState.CANCELLED: _settled,
    TaskState.SKIPPED: _settled,
}
