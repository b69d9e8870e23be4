"""What must agree between store, broker and workers, check by check. Judgement only: no I/O.

docs/operators.md has the same list in the words of an operator; a test compares the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from dane_core.exchange.base import Depth
from dane_core.routing import DEAD_QUEUE, UNKNOWN_TYPE, work_queue
from dane_core.states import SETTLED, TaskState
from dane_server.runner.evidence import Look, Suspicions
from dane_server.storage.facts import JobFacts, KeyFacts, NodeFacts, StoreFacts, Stray
from dane_server.storage.fairness import common


class Check(StrEnum):
    """One thing that must hold."""

    COUNTERS = "counters"
    PENDING = "pending"
    BLOCKED = "blocked"
    FINISHED = "finished"
    ORPHANED = "orphaned"
    OVERDUE = "overdue"
    READY = "ready"
    QUEUED = "queued"
    QUEUE = "queue"
    UNROUTABLE = "unroutable"
    UNSERVED = "unserved"
    LEASE = "lease"
    NOWHERE = "nowhere"
    TICKETS = "tickets"
    EPOCH = "epoch"
    DEAD = "dead"
    RESPONSES = "responses"
    SCHEMA = "schema"


class Repair(StrEnum):
    """What can be done about a divergence; `Doctor.repair` does it."""

    RECOUNT = "count the job anew and let go what waits for nothing"
    BURY = "remove what is left of the job"
    SWEEP = "sweep: whatever is overdue goes on"
    RING = "wake the runner that sends"
    RECALL = "take them back and send them again; old copies are asked about before they run"
    ROUTE = "send them again"
    LEASE = "give them 60 s to be heard of; then they are sent again"
    STOP = "tell the worker to stop it"
    RENEW = "make a new mark and send again what was on the broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A divergence: what it is, in a sentence, and what would be done about it.

    `subject` is what it is about, the same as long as it lasts; `ids` are jobs or tasks, as
    the repair needs them. Without a repair, `remedy` says what a person does.
    """

    check: Check
    subject: str
    sentence: str
    ids: tuple[int, ...] = ()
    key: str | None = None
    repair: Repair | None = None
    remedy: str = ""

    @property
    def advice(self) -> str:
        return self.repair.value if self.repair else self.remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerFacts:
    """Queues as the broker has them; None for one that is not there."""

    depths: Mapping[str, Depth | None]
    response_queue: str
    epoch: Depth | None  # of the queue that marks the epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Store and broker at one moment: `at` by a monotonic clock, `time` by the database's.

    What could not be reached is None.
    """

    at: float
    time: datetime
    epoch: str | None
    store: StoreFacts | None
    broker: BrokerFacts | None


#: Tasks and jobs named in one sentence.
_NAMED: Final = 5
#: A worker's word is as old as its heartbeat, and an answer takes a moment to be recorded.
_COURTESY: Final = timedelta(seconds=2)


# --- jobs ----------------------------------------------------------------------------------------


def judge_jobs(jobs: Sequence[JobFacts], nodes: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Everything that does not add up within some jobs."""
    for job in jobs:
        yield from _counters(job)
        yield from _finished(job)
    for node in nodes:
        yield _node(node)


def _counters(job: JobFacts) -> Iterator[Finding]:
    wrong = [
        f"{name} is {kept} and should be {job.counted.get(name, 0)}"
        for name, kept in job.kept.items()
        if kept != job.counted.get(name, 0)
    ]
    if wrong:
        sentence = f"job {job.id} has miscounted its tasks: {', '.join(wrong)}"
        yield _of_job(Check.COUNTERS, job.id, sentence)


def _finished(job: JobFacts) -> Iterator[Finding]:
    moving = job.counted.get("active", 0)
    if job.finished and moving:
        sentence = f"job {job.id} is marked as over, and {_tasks(moving)} of it can still run"
        yield _of_job(Check.FINISHED, job.id, sentence)
    elif not job.finished and not moving:
        sentence = f"job {job.id} is not marked as over, and nothing of it can run any more"
        yield _of_job(Check.FINISHED, job.id, sentence)


def _node(node: NodeFacts) -> Finding:
    what = f"{'join' if node.key is None else f'task {node.key}'} {node.id} of job {node.job_id}"
    if node.in_vain:
        sentence = f"{what} waits for {node.in_vain} before it that are done already"
    elif node.pending != node.counted:
        sentence = f"{what} waits for {node.pending} before it, and should wait for {node.counted}"
        return _of_job(Check.PENDING, node.job_id, sentence, subject=f"node {node.id}")
    else:
        sentence = f"{what} is blocked, and nothing before it holds it back"
    return _of_job(Check.BLOCKED, node.job_id, sentence, subject=f"node {node.id}")


def _of_job(check: Check, job_id: int, sentence: str, subject: str = "") -> Finding:
    return Finding(
        check=check,
        subject=subject or f"job {job_id}",
        sentence=sentence,
        ids=(job_id,),
        repair=Repair.RECOUNT,
    )


# --- everything else ------------------------------------------------------------------------------


def judge(now: Sighting, before: Sighting, *, window: int, apart: float) -> Iterator[Finding]:
    """What does not agree now, nor did before where one moment proves nothing.

    Messages count as lost when the two are `apart` seconds from each other, or more.
    """
    if now.store is not None and before.store is not None:
        yield from _strays(now.store)
        yield from _overdue(now.store)
        yield from _lapsed(now.store, before.store)
        yield from _nowhere(now.store, before.store)
        yield from _tickets(now.store, before.store)
        yield from _unserved(now.store, before.store)
    yield from _judge_keys(now, before, window, apart)
    if now.broker is not None and before.broker is not None:
        yield from _epoch(now.epoch, now.broker)
        yield from _dead(now.broker)
        yield from _responses(now.broker, before.broker)


def _judge_keys(now: Sighting, before: Sighting, window: int, apart: float) -> Iterator[Finding]:
    if now.store is None or before.store is None or now.broker is None or before.broker is None:
        return
    known = {key.key: key for key in before.store.keys}
    calm = not _backlog(now.broker) and not _backlog(before.broker)
    for key in now.store.keys:
        if (earlier := known.get(key.key)) is None:
            continue
        queue = work_queue(key.key)
        depth, past = now.broker.depths.get(queue), before.broker.depths.get(queue)
        if depth is None and past is None and key.unmoved:
            yield _queue_missing(key)
        if depth is None or past is None:
            continue
        looks = (_look(before, earlier, past), _look(now, key, depth))
        if calm and _is_lost(earlier, key, looks, apart):
            yield _lost(key, looks[1].place)
        if depth.consumers and past.consumers and not key.paused:
            yield from _ready(key, earlier, window)
            yield from _unroutable(key, earlier)


def _strays(facts: StoreFacts) -> Iterator[Finding]:
    orphans: dict[int, list[Stray]] = {}
    for stray in facts.strays:
        if stray.orphaned:
            orphans.setdefault(stray.job_id, []).append(stray)
        else:
            sentence = f"task {stray.id} is {stray.state}, and its job {stray.job_id} is over"
            yield _of_job(Check.FINISHED, stray.job_id, sentence)
    for job_id, tasks in orphans.items():
        named = _list([task.id for task in tasks])
        yield Finding(
            check=Check.ORPHANED,
            subject=f"job {job_id}",
            sentence=f"tasks are left of job {job_id}, which was deleted: {named}",
            ids=(job_id,),
            repair=Repair.BURY,
        )


def _overdue(facts: StoreFacts) -> Iterator[Finding]:
    for state in dict.fromkeys(task.state for task in facts.overdue):
        late = [task for task in facts.overdue if task.state is state]
        yield Finding(
            check=Check.OVERDUE,
            subject=state.value,
            sentence=f"{_tasks(len(late))} in the state {state} should have been looked at up to "
            f"{max(task.seconds for task in late):.0f} s ago: {_list([t.id for t in late])}",
            ids=tuple(task.id for task in late),
            repair=Repair.SWEEP,
        )


def _lapsed(facts: StoreFacts, earlier: StoreFacts) -> Iterator[Finding]:
    still = {(task.id, task.attempt, task.beats) for task in earlier.lapsed}
    for task in facts.lapsed:
        if (task.id, task.attempt, task.beats) in still:
            yield Finding(
                check=Check.LEASE,
                subject=f"task {task.id}",
                sentence=f"task {task.id} is running by worker {task.worker}, whose lease of it "
                f"ended {task.seconds:.0f} s ago",
                ids=(task.id,),
                repair=Repair.SWEEP,
            )


def _nowhere(facts: StoreFacts, earlier: StoreFacts) -> Iterator[Finding]:
    still = {(task.id, task.attempt) for task in earlier.nowhere}
    for task in facts.nowhere:
        if (task.id, task.attempt) in still:
            yield Finding(
                check=Check.NOWHERE,
                subject=f"task {task.id}",
                sentence=f"task {task.id} is running by worker {task.worker}, of whom nothing is "
                "known",
                ids=(task.id,),
                repair=Repair.LEASE,
            )


def _tickets(facts: StoreFacts, earlier: StoreFacts) -> Iterator[Finding]:
    before = {(named.worker, named.id): named for named in earlier.named}
    for named in facts.named:
        past = before.get((named.worker, named.id))
        if past is None or past.state is not named.state:
            continue
        told = f"worker {named.worker} says that it does task {named.id}, "
        subject = f"task {named.id} at {named.worker}"
        ended = named.finished_at is not None and named.finished_at + _COURTESY < named.seen_at
        if named.state is None or (named.state in SETTLED and ended):
            found = "which does not exist" if named.state is None else f"which is {named.state}"
            yield Finding(
                check=Check.TICKETS,
                subject=subject,
                sentence=told + found,
                ids=(named.id,),
                repair=Repair.STOP,
            )
        elif named.state is TaskState.RUNNING and past.holder == named.holder != named.worker:
            yield Finding(
                check=Check.TICKETS,
                subject=subject,
                sentence=told + f"which is running by {named.holder}",
                ids=(named.id,),
                remedy="nothing: one of the two answers counts, the other is refused",
            )


# --- keys and queues ------------------------------------------------------------------------------


def _unserved(facts: StoreFacts, earlier: StoreFacts) -> Iterator[Finding]:
    before = {key.key for key in earlier.keys if not key.workers}
    for key in facts.keys:
        waiting = sum(key.counts.values())
        if waiting and not key.workers and key.key in before:
            yield Finding(
                check=Check.UNSERVED,
                subject=key.key,
                sentence=f"{_tasks(waiting)} of {key.key} wait, and no worker serves it",
                key=key.key,
                remedy=f"start a worker: dane worker {key.key}",
            )


def _queue_missing(key: KeyFacts) -> Finding:
    return Finding(
        check=Check.QUEUE,
        subject=key.key,
        sentence=f"{_tasks(key.unmoved)} of {key.key} should lie in {work_queue(key.key)}, a queue "
        f"that does not exist: {_list(key.lying)}",
        key=key.key,
        repair=Repair.RECALL,
    )


def _look(sighting: Sighting, key: KeyFacts, depth: Depth) -> Look:
    return Look(at=sighting.at, time=sighting.time, depth=depth, idle=key.idle)


def _is_lost(before: KeyFacts, now: KeyFacts, looks: tuple[Look, Look], apart: float) -> bool:
    """The sweeper's own judgement, over our two looks."""
    suspicions = Suspicions(apart)
    suspicions.is_lost(now.key, looks[0], queued=before.queued, unmoved=before.queued)
    return suspicions.is_lost(now.key, looks[1], queued=now.queued, unmoved=now.unmoved)


def _lost(key: KeyFacts, place: int) -> Finding:
    return Finding(
        check=Check.QUEUED,
        subject=key.key,
        sentence=f"{_tasks(key.unmoved)} of {key.key} should lie in {work_queue(key.key)}, which "
        f"has {place} at most, those at its consumers included: {_list(key.lying)}",
        key=key.key,
        repair=Repair.RECALL,
    )


def _ready(key: KeyFacts, past: KeyFacts, window: int) -> Iterator[Finding]:
    waiting = sorted(set(key.ready_long) & set(past.ready_long))
    sent = key.counts.get(TaskState.QUEUED, 0) + key.counts.get(TaskState.DISPATCHING, 0)
    if waiting and sent < common(window) and not key.limited:
        yield Finding(
            check=Check.READY,
            subject=key.key,
            sentence=f"{_tasks(len(waiting))} of {key.key} are ready, there is room for them, "
            f"workers wait, and nobody sends them: {_list(waiting)}",
            ids=tuple(waiting),
            key=key.key,
            repair=Repair.RING,
        )


def _unroutable(key: KeyFacts, past: KeyFacts) -> Iterator[Finding]:
    if key.types is None or not key.workers or not past.workers:
        return
    before = {media_type for media_type, _, _ in past.unroutable}
    taken = [
        (number, first)
        for media_type, number, first in key.unroutable
        if media_type in before and (not key.types or (media_type or UNKNOWN_TYPE) in key.types)
    ]
    if taken:
        number = sum(number for number, _ in taken)
        yield Finding(
            check=Check.UNROUTABLE,
            subject=key.key,
            sentence=f"{_tasks(number)} of {key.key} found no queue, and one is bound and "
            f"consumed: {_list([first for _, first in taken])}",
            key=key.key,
            repair=Repair.ROUTE,
        )


def _epoch(epoch: str | None, broker: BrokerFacts) -> Iterator[Finding]:
    if epoch is not None and (broker.epoch is None or broker.epoch.waiting != 1):
        yield Finding(
            check=Check.EPOCH,
            subject="epoch",
            sentence="the broker is not the one that tasks were sent to: its mark "
            f"(dane.epoch.{epoch}) is missing",
            repair=Repair.RENEW,
        )


def _dead(broker: BrokerFacts) -> Iterator[Finding]:
    depth = broker.depths.get(DEAD_QUEUE)
    if depth and depth.waiting:
        yield Finding(
            check=Check.DEAD,
            subject=DEAD_QUEUE,
            sentence=f"{depth.waiting} reports that could not be read or recorded lie in "
            f"{DEAD_QUEUE}",
            remedy="read the log of the runner for why; dane doctor --replay-dead tries them again",
        )


def _responses(broker: BrokerFacts, before: BrokerFacts) -> Iterator[Finding]:
    depth, past = (facts.depths.get(facts.response_queue) for facts in (broker, before))
    if depth and past and depth.waiting and not depth.consumers and not past.consumers:
        yield Finding(
            check=Check.RESPONSES,
            subject=broker.response_queue,
            sentence=f"{depth.waiting} reports of workers lie in {broker.response_queue}, and no "
            "runner records them",
            remedy="start a runner: dane serve --role runner",
        )


def _backlog(broker: BrokerFacts) -> bool:
    depth = broker.depths.get(broker.response_queue)
    return bool(depth and depth.waiting)


# --- words ----------------------------------------------------------------------------------------


def _tasks(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"


def _list(ids: Sequence[int]) -> str:
    named = ", ".join(str(one) for one in sorted(ids)[:_NAMED])
    return f"{named}, …" if len(ids) > _NAMED else named
