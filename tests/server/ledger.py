"""A store with jobs in it, and short ways to move them: what a runner does, without one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from dane_core.errors import DaneError
from dane_core.job import JobId, Task, TaskId
from dane_core.message import (
    Answer,
    Ask,
    Heartbeat,
    Hello,
    Leased,
    Offer,
    Progress,
    Released,
    Started,
    Ticket,
)
from dane_core.spec import JobSpec, read_job
from dane_core.states import SENT, JobStatus, TaskState
from dane_server.graph import compile_graph
from dane_server.storage.acts import Acts
from dane_server.storage.engine import Store
from dane_server.storage.reader import Reader
from dane_server.storage.sweeps import Sweeps
from dane_server.storage.view import Claim, NewJob, Once, Recorded, Submitted
from dane_server.storage.writer import Writer

_AT_WORKERS = SENT | {TaskState.RUNNING}
LEASE = timedelta(seconds=60)
SILENCE = timedelta(seconds=60)


def task(key: str, **members: Any) -> dict[str, Any]:
    return {"Task": {"task_key": key, **members}}


def sequence(*steps: Any) -> dict[str, Any]:
    return {"taskSequential": list(steps)}


def parallel(*steps: Any) -> dict[str, Any]:
    return {"taskParallel": list(steps)}


def graph(**nodes: Any) -> dict[str, Any]:
    """`graph(a="A", b=("B", "a"))`: b, with key B, after a."""
    return {
        "taskGraph": {
            name: {"task": node[0], "after": list(node[1:])} if isinstance(node, tuple) else node
            for name, node in nodes.items()
        }
    }


def spec(tasks: Any = "A", **members: Any) -> JobSpec:
    source_id = members.pop("source_id", "S1")
    job = {"source_url": f"http://127.0.0.1/{source_id}", "source_id": source_id, "tasks": tasks}
    return read_job(job | members)


def new_job(
    tasks: Any = "A", *, once: Once | None = None, owner: str = "", **members: Any
) -> NewJob:
    """A job to store. `members` are those of a specification."""
    read = spec(tasks, **members)
    return NewJob(spec=read, graph=compile_graph(read.tasks), shared={}, once=once, owner=owner)


def ticket(claim: Claim, *, attempt: int | None = None) -> Ticket:
    return Ticket(
        task_id=claim.task_id,
        attempt=claim.attempt if attempt is None else attempt,
        dispatch=claim.dispatch,
        token="",
    )


def ticket_of(found: Task) -> Ticket:
    """What the bearer of a task's newest message holds."""
    return Ticket(task_id=found.id, attempt=found.attempt, dispatch=found.dispatch, token="")


def answer(to: Claim | Ticket, state: int = 200, **members: Any) -> Answer:
    held = to if isinstance(to, Ticket) else ticket(to)
    said: dict[str, Any] = {"message": "Success" if state == 200 else "it said so", "response": {}}
    return Answer(ticket=held, state=state, **{**said, **members})


def started(to: Claim, worker: str = "w1") -> Started:
    return Started(ticket=ticket(to), worker=worker, runtime=1.0)


def progress(to: Claim, fraction: float, message: str = "") -> Progress:
    return Progress(ticket=ticket(to), fraction=fraction, message=message)


def released(to: Claim, delay: float = 0.0, worker: str = "w1") -> Released:
    return Released(ticket=ticket(to), worker=worker, delay=delay)


def ask(to: Claim | Ticket, worker: str = "w1", *, redelivered: bool = False) -> Ask:
    held = to if isinstance(to, Ticket) else ticket(to)
    return Ask(ticket=held, worker=worker, reply_to="inbox", redelivered=redelivered)


def leased(to: Claim | Ticket, worker: str = "w1", lease: float = 60.0) -> Leased:
    held = to if isinstance(to, Ticket) else ticket(to)
    return Leased(ticket=held, worker=worker, runtime=60.0, lease=lease)


def heartbeat(*running: Claim | Ticket, worker: str = "w1", lease: float = 60.0) -> Heartbeat:
    held = tuple(to if isinstance(to, Ticket) else ticket(to) for to in running)
    return Heartbeat(worker=worker, running=held, lease=lease)


def hello(*keys: str | Offer, worker: str = "w1", fresh: bool = True) -> Hello:
    offers = tuple(key if isinstance(key, Offer) else Offer(key=key) for key in keys)
    return Hello(
        worker=worker, host="h", pid=1, slots=1, inbox=f"i.{worker}", offers=offers, fresh=fresh
    )


@dataclass(frozen=True)
class Ledger:
    """The books, and those who write and read them."""

    store: Store
    writer: Writer
    reader: Reader
    acts: Acts
    sweeps: Sweeps

    @classmethod
    def of(cls, store: Store) -> "Ledger":
        return cls(store, Writer(store), Reader(store), Acts(store), Sweeps(store))

    async def submit(self, tasks: Any = "A", **members: Any) -> JobId:
        """Store one job that must be accepted."""
        [outcome] = await self.outcomes(new_job(tasks, **members))
        assert isinstance(outcome, Submitted), outcome
        return outcome.job_id

    async def outcomes(self, *new_jobs: NewJob) -> list[Submitted | DaneError]:
        return await self.writer.store_jobs(new_jobs)

    async def claim(
        self, *, window: int = 1000, limit: int = 500, lease: timedelta = LEASE
    ) -> list[Claim]:
        return await self.writer.claim_ready(window=window, limit=limit, lease=lease)

    async def send(self, *, limit: int = 500) -> list[Claim]:
        """Claim what is ready, and find that the exchange has confirmed it."""
        claims = await self.claim(window=2 * limit, limit=limit)
        await self.mark(queued=claims)
        return claims

    async def mark(self, *, queued: Sequence[Claim] = (), unroutable: Sequence[Claim] = ()) -> None:
        await self.writer.mark_sent(queued, unroutable, again=timedelta(seconds=30))

    async def record(self, *answers: Answer, window: int = 0) -> Recorded:
        """Record answers; with a `window`, what they held up is claimed along the way."""
        return await self.writer.record(answers, window=window, lease=LEASE)

    async def answer_all(self, state: int = 200, **members: Any) -> Recorded:
        """Send everything that is ready, and answer it."""
        return await self.record(*(answer(one, state, **members) for one in await self.send()))

    async def sweep(self) -> int:
        return await self.sweeps.sweep(silence=SILENCE)

    async def tasks(self, job: JobId) -> Sequence[Task]:
        return await self.reader.tasks(job, limit=100_000)

    async def states(self, job: JobId) -> dict[str, TaskState]:
        """The states of a job's tasks by name, or else by key."""
        return {one.name or one.key: one.state for one in await self.tasks(job)}

    async def task(self, job: JobId, name: str) -> Task:
        """The one task of a job with this name or key."""
        [found] = [one for one in await self.tasks(job) if name in (one.name, one.key)]
        return found

    async def status(self, job: JobId) -> JobStatus:
        return (await self.reader.job(job)).status

    async def finish(self, job: JobId) -> None:
        """Resume and retry everything, then answer with 200 what is sent, until nothing is."""
        keys = [state.key for state in await self.reader.keys()]
        for key in keys:
            await self.acts.resume_key(key)
        await self.acts.finish_walks()
        await self.acts.resume_job(job)
        await self.acts.retry_job(job)
        while True:
            await self.acts.finish_walks()
            await self.writer.route_again(keys)
            await self.claim()
            sent = [one for one in await self.tasks(job) if one.state in _AT_WORKERS]
            if not sent:
                return
            await self.record(*(answer(ticket_of(one)) for one in sent))

    async def answers_of(self, job: JobId) -> Mapping[TaskId, Mapping[str, Any]]:
        return (await self.reader.job_view(job)).answers


def keys_of(claims: Iterable[Claim]) -> list[str]:
    return [claim.key for claim in claims]
