"""Judges a history against a store at rest: the invariants of the fault matrix, as functions.

Everything here is pure. `evidence` gathers what is judged, past the product's own queries; each
function returns what is wrong, in sentences, and nothing when all is well.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, TypeVar, cast

from tests.faults.history import Acted, Began, Ended, Event, Misbehaved, Seen, Sent

E = TypeVar("E", Sent, Began, Ended, Misbehaved, Seen, Acted)

SETTLED: Final = frozenset({"succeeded", "failed", "cancelled", "skipped"})
#: Somebody will move these on; what is at rest has none of them.
_MOVING: Final = frozenset({"ready", "dispatching", "queued", "running"})
#: These may last, if they say until when: no worker is there, or it is tried again later.
_PATIENT: Final = frozenset({"unroutable", "backoff"})
_ACTIVE: Final = _MOVING | _PATIENT
#: Within how many seconds somebody looks again at what is in these states: the longest lease that a
#: row or a default has, the time an unroutable task waits, the horizon. BACKOFF has its own.
_BOUNDS: Final[Mapping[str, float]] = {
    "ready": 60,  # handed back by a worker
    "dispatching": 15,
    "queued": 3600,
    "running": 60,
    "unroutable": 30,
}
#: Between the clock of the database and ours, in seconds.
_ASKEW: Final = 2.0
#: Of its timeout, what an attempt has run at least: it began a while before its body was entered.
_OF_TIMEOUT: Final = 0.5
#: How the server speaks of a task that it fails for the workers that began it.
_ACCUSED: Final = "that began it: "
_TRACEBACK: Final = "Traceback (most recent call last)"
#: What is in tracebacks that are nobody's fault: the broker's client tells so that a connection
#: is lost, and a worker so that a task of the tests has raised.
_HARMLESS: Final = ("Cancelling cause reader exited abnormally", "tests/faults/trouble.py")
#: Files and threads that a process may hold more than at its start: pools fill as they are used.
_SLACK: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job, as it stands in its table."""

    id: int
    source_id: str
    status: str = "succeeded"
    paused: bool = False
    finished: bool = True
    total: int = 1
    active: int = 0
    held: int = 0
    succeeded: int = 1
    failed: int = 0
    forgiven: int = 0
    cancelled: int = 0
    skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A node of a job's graph: a task, or a join (`key` is None)."""

    id: int
    job_id: int
    key: str | None = "TOIL"
    state: str = "succeeded"
    outcome: int | None = 200
    attempt: int = 1
    pending: int = 0
    released: bool = True
    allow_failure: bool = False
    due_in: float | None = None  # seconds until somebody looks at it again, as it says
    leased: bool = False
    timeout: float | None = None
    max_delay: float = 600.0  # of a task that failed for now
    message: str = ""

    @property
    def name(self) -> str:
        return f"{self.key or 'join'} {self.id} of job {self.job_id}"

    @property
    def done(self) -> bool:
        return self.state == "succeeded" or (self.state == "failed" and self.allow_failure)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRow:
    """`dst` waits for `src`."""

    src: int
    dst: int
    reopened: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt that ended."""

    task_id: int
    number: int
    outcome: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """The recorded result of a task."""

    task_id: int
    attempt: int
    value: str | None  # None: an answer without one


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a process holds of the machine."""

    files: int
    threads: int
    to_broker: int  # connections
    to_store: int


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that is known at the end of a test, by the hundred thousand at times."""

    events: Sequence[Event] = ()
    jobs: Sequence[JobRow] = ()
    tasks: Sequence[TaskRow] = ()
    edges: Sequence[EdgeRow] = ()
    attempts: Sequence[AttemptRow] = ()
    answers: Sequence[AnswerRow] = ()
    #: Messages in each queue, with the workers there and once more when all had left.
    queues: Mapping[str, int] = field(default_factory=dict)
    left_in_queues: Mapping[str, int] = field(default_factory=dict)
    #: Of each process: when it was ready, and at rest.
    footprints: Mapping[str, tuple[Footprint, Footprint]] = field(default_factory=dict)
    logs: Mapping[str, str] = field(default_factory=dict)  # by the name of the process
    secrets: Mapping[str, str] = field(default_factory=dict)  # by what they are
    #: Process ids of workers that were killed, frozen, or cut off.
    harmed: Collection[int] = ()
    #: Tasks that the row has made fail in a way that no worker has written down.
    to_fail: Collection[int] = ()
    #: What the row expects in tracebacks.
    expected: Collection[str] = ()

    def of(self, kind: type[E], task: tuple[int, int] | None = None) -> Sequence[E]:
        """Events of one kind; those of one attempt, given as (task id, number), alone."""
        return cast("Sequence[E]", self._events.get((kind, task), ()))

    @cached_property
    def _events(self) -> Mapping[tuple[type[Event], tuple[int, int] | None], Sequence[Event]]:
        found: defaultdict[tuple[type[Event], tuple[int, int] | None], list[Event]]
        found = defaultdict(list)
        for event in self.events:
            found[type(event), None].append(event)
            if not isinstance(event, Sent | Acted):
                found[type(event), (event.task_id, event.attempt)].append(event)
        return found

    @cached_property
    def touched(self) -> set[int]:
        """Jobs that a person has acted on."""
        return {act.job_id for act in self.of(Acted)}

    @cached_property
    def deleted(self) -> set[int]:
        return {act.job_id for act in self.of(Acted) if act.act == "delete"}


def accepted_is_durable(evidence: Evidence) -> Iterator[str]:
    """I1: every 201 has its job, and a request that was repeated has one job in all."""
    jobs = {job.id: job for job in evidence.jobs}
    taken = [sent for sent in evidence.of(Sent) if sent.status == 201]
    for sent in taken:
        job = jobs.get(sent.job_id or 0)
        if job is None and sent.job_id not in evidence.deleted:
            yield f"{sent.source_id} was accepted as job {sent.job_id}, which is not there"
        elif job is not None and job.source_id != sent.source_id:
            yield f"job {job.id} is of {job.source_id}, but was accepted for {sent.source_id}"
    by_key: defaultdict[str, set[int | None]] = defaultdict(set)
    for sent in taken:
        if sent.key is not None:
            by_key[sent.key].add(sent.job_id)
    for key, ids in by_key.items():
        if len(ids) > 1:
            several = sorted(ids, key=str)
            yield f"requests with the key {key} were answered with several jobs: {several}"
    keyed = {sent.source_id for sent in evidence.of(Sent) if sent.key is not None}
    sources = Counter(job.source_id for job in evidence.jobs)
    for source_id in sorted(keyed):
        if sources[source_id] > 1:
            yield f"the one request for {source_id} has made {sources[source_id]} jobs"


def one_true_result(evidence: Evidence) -> Iterator[str]:
    """I2: a task has one result at most, which some worker produced for that attempt."""
    tasks = {task.id: task for task in evidence.tasks}
    produced: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for end in evidence.of(Ended):
        if end.outcome == 200:
            produced[end.task_id, end.attempt].add(end.value)
    for answer in evidence.answers:
        task = tasks.get(answer.task_id)
        if task is None:
            yield f"task {answer.task_id} has an answer, but is not there"
        elif task.state == "succeeded" and answer.value not in produced[task.id, answer.attempt]:
            yield f"{task.name}: no worker produced {answer.value!r} in attempt {answer.attempt}"
    answered = Counter(answer.task_id for answer in evidence.answers)
    good = Counter(one.task_id for one in evidence.attempts if one.outcome == 200)
    for task in _tasks(evidence):
        if answered[task.id] > 1 or (good[task.id] > 1 and task.job_id not in evidence.touched):
            yield (
                f"{task.name}: {answered[task.id]} answers and {good[task.id]} attempts that "
                "succeeded"
            )
        if task.state == "succeeded" and (answered[task.id] < 1 or good[task.id] < 1):
            yield f"{task.name} has succeeded without an answer, or without an attempt that did"
        if task.state in ("failed", "cancelled") and not _had_to(task, evidence):
            yield f"{task.name} has {task.state} with {task.outcome} for no reason: {task.message}"


def _had_to(task: TaskRow, evidence: Evidence) -> bool:
    """Whether something in the history explains that a task has failed, or was cancelled."""
    if task.id in evidence.to_fail:
        return True
    if task.state == "cancelled" or task.outcome == 499:
        return any(act.act == "cancel" and act.job_id == task.job_id for act in evidence.of(Acted))
    if task.outcome == 504:
        return _ran_too_long(task, evidence)
    if task.outcome == 500 and _ACCUSED in task.message:
        accused = task.message.partition(_ACCUSED)[2].split(", ")
        return all(any(f"-{pid}-" in name for pid in evidence.harmed) for name in accused)
    this = (task.id, task.attempt)
    if evidence.of(Misbehaved, this):
        return task.outcome == 500
    return any(end.outcome == task.outcome for end in evidence.of(Ended, this))


def _ran_too_long(task: TaskRow, evidence: Evidence) -> bool:
    """Whether an attempt has run for its timeout before it was seen to have failed."""
    this = (task.id, task.attempt)
    begun = [one.at for one in evidence.of(Began, this)]
    seen = [one.at for one in evidence.of(Seen, this)]
    if task.timeout is None or not begun or not seen:
        return False
    return min(seen) - min(begun) >= _OF_TIMEOUT * task.timeout


def nothing_in_limbo(evidence: Evidence) -> Iterator[str]:
    """I3: every task is settled, or says what it waits for and until when."""
    paused = {job.id for job in evidence.jobs if job.paused}
    waits = {
        task.job_id for task in evidence.tasks if task.state in _PATIENT or task.state == "held"
    }
    failed = {job.id for job in evidence.jobs if job.status in ("failed", "cancelled")}
    for task in evidence.tasks:
        if task.state in _MOVING and task.job_id not in paused:
            yield f"{task.name} is still {task.state}"
        elif task.state in _ACTIVE and (late := _looked_at_late(task)):
            yield f"{task.name} is {task.state}, and {late}"
        elif task.state == "blocked" and task.job_id not in waits | paused | failed:
            yield f"{task.name} is blocked, though nothing before it waits or has failed"
    active = {task.job_id for task in _tasks(evidence) if task.state in _ACTIVE}
    for job in evidence.jobs:
        if job.finished == (job.id in active):
            yield f"job {job.id}: finished is {job.finished}, tasks moving: {job.id in active}"


def _looked_at_late(task: TaskRow) -> str:
    """What is wrong with the time at which somebody looks at a task again; empty if nothing."""
    if task.state == "running" and not task.leased:  # it lives on its message
        return ""
    if task.due_in is None:
        return "nobody will look at it again"
    bound = task.max_delay if task.state == "backoff" else _BOUNDS[task.state]
    if task.due_in > bound + _ASKEW:
        return f"nobody will look at it again for {task.due_in:.0f} s, where {bound:g} are enough"
    return ""


def counters_are_true(evidence: Evidence) -> Iterator[str]:
    """I4: what is counted in a row equals what is counted from the rows."""
    tasks = {task.id: task for task in evidence.tasks}
    pending = Counter(
        edge.dst
        for edge in evidence.edges
        if edge.src in tasks and (edge.reopened or not tasks[edge.src].released)
    )
    for task in evidence.tasks:
        if task.pending != pending[task.id]:
            yield f"{task.name}: pending is {task.pending}, counted {pending[task.id]}"
        if task.done and not task.released:
            yield f"{task.name} is done and has not let its successors go"
    counted: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for task in _tasks(evidence):
        counted[task.job_id].update(["total", _counter(task)])
    for job in evidence.jobs:
        for name in _COUNTERS:
            if getattr(job, name) != counted[job.id][name]:
                number = getattr(job, name)
                yield f"job {job.id}: {name} is {number}, counted {counted[job.id][name]}"


def order_is_kept(evidence: Evidence) -> Iterator[str]:
    """I5: nothing was begun before what it waits for had been done."""
    tasks = {task.id: task for task in evidence.tasks}
    before: defaultdict[int, list[int]] = defaultdict(list)
    for edge in evidence.edges:
        before[edge.dst].append(edge.src)
    done_at: dict[int, float] = {}
    for end in evidence.of(Ended):
        task = tasks.get(end.task_id)
        if task is not None and (end.outcome == 200 or task.allow_failure):
            done_at[task.id] = min(end.at, done_at.get(task.id, end.at))
    for begin in evidence.of(Began):
        if begin.task_id not in tasks or begin.job_id in evidence.touched:
            continue
        for earlier in _tasks_before(begin.task_id, before, tasks):
            if done_at.get(earlier, begin.at + 1) > begin.at:
                yield f"{tasks[begin.task_id].name} was begun before {tasks[earlier].name} was done"


def settled_stays(evidence: Evidence) -> Iterator[str]:
    """I6: once a task is settled nothing changes it but a person."""
    touched = evidence.touched
    by_hand = {task.id for task in evidence.tasks if task.job_id in touched}
    first: dict[int, Seen] = {}
    for seen in evidence.of(Seen):
        before = first.setdefault(seen.task_id, seen)
        if _end(before) != _end(seen) and seen.task_id not in by_hand:
            yield f"task {seen.task_id} was {_end(before)}, and later {_end(seen)}"
    for task in evidence.tasks:
        now = (task.state, task.outcome, task.attempt)
        if task.id in first and task.id not in by_hand and _end(first[task.id]) != now:
            yield f"{task.name} was {_end(first[task.id])}, and is {now} at the end"


def nothing_is_left(evidence: Evidence) -> Iterator[str]:
    """I7: at rest the queues are empty, and processes hold what they held at their start."""
    for queue, number in {**evidence.left_in_queues, **evidence.queues}.items():
        if number or evidence.left_in_queues.get(queue):
            left = evidence.left_in_queues.get(queue, 0)
            yield f"queue {queue} has {number} messages at rest, {left} once all had left"
    for name, (start, rest) in evidence.footprints.items():
        if rest.to_broker > start.to_broker:
            first = start.to_broker
            yield f"{name} has {rest.to_broker} connections to the broker, {first} at first"
        for what, most in (("files", start.files), ("threads", start.threads)):
            if getattr(rest, what) > most + _SLACK:
                yield f"{name} holds {getattr(rest, what)} {what}, {most} at first"
        if rest.to_store > _SLACK:
            yield f"{name} has {rest.to_store} connections to the store"


def bad_input_is_told(evidence: Evidence) -> Iterator[str]:
    """I8: what is wrong gets a 4xx that says where, and nothing is stored; nobody gets a 500."""
    sources = {job.source_id for job in evidence.jobs}
    for sent in evidence.of(Sent):
        if sent.status >= 500 and sent.status != 503:
            yield f"{sent.source_id} was answered with {sent.status}"
        if "Traceback" in sent.body:
            yield f"{sent.source_id} was answered with a traceback"
        if sent.sound or sent.status in (0, 503):
            continue
        if not 400 <= sent.status < 500:
            yield f"{sent.source_id} is wrong, and was answered with {sent.status}"
        elif sent.content_type != "application/problem+json" or not sent.paths:
            yield f"{sent.source_id} was refused without saying where it is wrong"
        if sent.source_id in sources:
            yield f"{sent.source_id} is wrong, and was stored"


def logs_are_quiet(evidence: Evidence) -> Iterator[str]:
    """I9: no log has a secret in it, and none tells of what nobody expected."""
    harmless = [*_HARMLESS, *evidence.expected]
    for process, text in evidence.logs.items():
        for what, secret in evidence.secrets.items():
            if secret and secret in text:
                yield f"the log of {process} has {what} in it"
        for traceback in _tracebacks(text):
            if not any(words in traceback for words in harmless):
                yield f"the log of {process} has what nobody expected: {traceback}"


def _tracebacks(log: str) -> Iterator[str]:
    """Each traceback with the line that it came with: of JSON, or as Python prints it."""
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if _TRACEBACK not in line:
            continue
        if line.startswith("{"):
            yield _record(line)
            continue
        end = number + 1
        while end < len(lines) and lines[end].startswith((" ", "\t")):
            end += 1
        yield "\n".join(lines[max(number - 1, 0) : end + 1])


def _record(line: str) -> str:
    try:
        record = json.loads(line)
    except ValueError:  # cut off in its midst
        return line
    return f"{record.get('message')}\n{record.get('traceback', '')}"


#: The invariants, by their number in the matrix.
INVARIANTS: Final[Mapping[str, Callable[[Evidence], Iterable[str]]]] = {
    "I1": accepted_is_durable,
    "I2": one_true_result,
    "I3": nothing_in_limbo,
    "I4": counters_are_true,
    "I5": order_is_kept,
    "I6": settled_stays,
    "I7": nothing_is_left,
    "I8": bad_input_is_told,
    "I9": logs_are_quiet,
}


def violations(evidence: Evidence) -> list[str]:
    """Every invariant that does not hold, each in a sentence; none is right."""
    return [
        f"{number}: {sentence}"
        for number, invariant in INVARIANTS.items()
        for sentence in invariant(evidence)
    ]


_COUNTERS: Final = (
    "total",
    "active",
    "held",
    "succeeded",
    "failed",
    "forgiven",
    "cancelled",
    "skipped",
)


def _tasks(evidence: Evidence) -> list[TaskRow]:
    return [task for task in evidence.tasks if task.key is not None]


def _counter(task: TaskRow) -> str:
    if task.state in _ACTIVE:
        return "active"
    return "forgiven" if task.state == "failed" and task.allow_failure else task.state


def _tasks_before(
    task_id: int, before: Mapping[int, Sequence[int]], tasks: Mapping[int, TaskRow]
) -> set[int]:
    """The tasks right before one, looking through joins."""
    found: set[int] = set()
    frontier = [*before.get(task_id, ())]
    while frontier:
        node = frontier.pop()
        if node not in tasks:
            continue
        if tasks[node].key is None:
            frontier += before.get(node, ())
        else:
            found.add(node)
    return found


def _end(seen: Seen) -> tuple[str, int | None, int]:
    return seen.state, seen.outcome, seen.attempt
