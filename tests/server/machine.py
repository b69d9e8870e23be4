"""Everything that can happen to jobs, in any order; after each event the books must add up."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from dane_core.errors import IllegalMove
from dane_core.job import JobId, TaskId
from dane_core.message import Answer, Gone
from dane_core.states import (
    ANSWERS,
    IN_FLIGHT,
    SETTLED,
    JobStatus,
    TaskState,
    follows,
)
from dane_server.storage.acts import Acts
from dane_server.storage.view import Claim
from dane_server.storage.writer import Writer
from tests.server.audit import Books, Node, faults_in, read_books, rows_left
from tests.server.crash import Crash, Crashing
from tests.server.ledger import (
    Ledger,
    answer,
    ask,
    heartbeat,
    hello,
    leased,
    progress,
    released,
    started,
    task,
)

T = TypeVar("T")

KEYS = ("A", "B", "C")
WORKERS = ("w1", "w2")
NOW = timedelta(0)

_tasks = st.builds(
    task,
    st.sampled_from(KEYS),
    allow_failure=st.booleans(),
    retry=st.fixed_dictionaries({"limit": st.integers(0, 2), "delay": st.just(0)}),
)


@st.composite
def _graphs(draw: st.DrawFn, inside: st.SearchStrategy[Any]) -> dict[str, Any]:
    names = [f"n{number}" for number in range(draw(st.integers(2, 5)))]
    nodes = {
        name: {
            "task": draw(inside),
            "after": draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else [],
        }
        for place, name in enumerate(names)
    }
    return {"taskGraph": dict(draw(st.permutations(list(nodes.items()))))}


#: Small specifications with all kinds of nesting.
specs = st.recursive(
    _tasks,
    lambda inside: (
        st.lists(inside, min_size=2, max_size=3).map(lambda steps: {"taskSequential": steps})
        | st.lists(inside, min_size=2, max_size=3).map(lambda steps: {"taskParallel": steps})
        | _graphs(inside)
    ),
    max_leaves=8,
)


class AnyOrder(RuleBasedStateMachine):
    """Two jobs at most, with workers, operators and crashes at work on both."""

    runner: ClassVar[asyncio.Runner]
    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.books: dict[JobId, Books] = {}
        self.claims: list[Claim] = []
        self.unconfirmed: list[Claim] = []

    # --- events -------------------------------------------------------------------------

    @initialize(specs=st.lists(specs, min_size=1, max_size=2))
    def accept(self, specs: Sequence[Any]) -> None:
        for spec in specs:
            self.books |= self.read(self.run(self.ledger.submit(spec)))

    @rule(limit=st.sampled_from([1, 500]))
    def claim(self, limit: int) -> None:
        claims = self.watch(self.ledger.claim(limit=limit, lease=NOW))
        self.claims += claims
        self.unconfirmed += claims

    @precondition(lambda self: self.unconfirmed)
    @rule(fate=st.sampled_from(["queued", "queued", "unroutable"]), how_many=st.integers(1, 5))
    def hear_from_exchange(self, fate: str, how_many: int) -> None:
        some, self.unconfirmed = self.unconfirmed[:how_many], self.unconfirmed[how_many:]
        self.watch(self.ledger.mark(**{fate: some}))

    @precondition(lambda self: self.claims)
    @rule(
        picks=st.lists(st.integers(0, 1000), min_size=1, max_size=4),
        number=st.sampled_from(sorted(ANSWERS)),
        response=st.sampled_from([{}, {"n": 1}]),
        window=st.sampled_from([0, 2, 1000]),
    )
    def answer(
        self, picks: Sequence[int], number: int, response: Mapping[str, Any], window: int
    ) -> None:
        answers = [answer(self.picked(pick), number, response=response) for pick in picks]
        self.take_answers(answers, window)

    @rule(rounds=st.integers(1, 3))
    def get_on(self, rounds: int) -> None:
        """Everything goes well for a while, so that there is something to undo."""
        for _ in range(rounds):
            self.walk_on()
            claims = self.watch(self.ledger.claim(lease=NOW))
            self.claims += claims
            self.take_answers([answer(claim) for claim in claims], window=0)

    @precondition(lambda self: self.claims)
    @rule(window=st.sampled_from([0, 1000]))
    def answer_the_newest(self, window: int) -> None:
        """Most answers are of use, unlike those picked at random."""
        self.take_answers([answer(claim) for claim in self.claims[-4:]], window)

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1000))
    def start(self, pick: int) -> None:
        claim = self.picked(pick)
        self.watch(self.ledger.writer.note_reports([started(claim)], [progress(claim, 0.5)], []))

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1000))
    def hand_back(self, pick: int) -> None:
        self.watch(self.ledger.writer.note_reports([], [], [released(self.picked(pick))]))

    @precondition(lambda self: self.claims)
    @rule(pick=st.integers(0, 1000))
    def ask_before_running(self, pick: int) -> None:
        self.watch(self.ledger.writer.judge([ask(self.picked(pick))]))

    @precondition(lambda self: self.claims)
    @rule(
        picks=st.lists(st.integers(0, 1000), min_size=1, max_size=3),
        worker=st.sampled_from(WORKERS),
        lease=st.sampled_from([0.0, 60.0]),
    )
    def hand_off(self, picks: Sequence[int], worker: str, lease: float) -> None:
        said = [leased(self.picked(pick), worker, lease) for pick in picks]
        self.watch(self.ledger.writer.note_reports([], [], [], leased=said))

    @precondition(lambda self: self.claims)
    @rule(
        picks=st.lists(st.integers(0, 1000), min_size=1, max_size=4),
        worker=st.sampled_from(WORKERS),
    )
    def beat(self, picks: Sequence[int], worker: str) -> None:
        said = heartbeat(*map(self.picked, picks), worker=worker)
        self.watch(self.ledger.writer.note_reports([], [], [], heartbeats=[said]))

    @precondition(lambda self: self.claims)
    @rule(asks=st.lists(st.tuples(st.integers(0, 1000), st.sampled_from(WORKERS)), min_size=1))
    def get_messages_again(self, asks: Sequence[tuple[int, str]]) -> None:
        said = [ask(self.picked(pick), worker, redelivered=True) for pick, worker in asks]
        objections = self.watch(self.ledger.writer.judge(said))
        assert len(objections) == len(said)

    @rule(worker=st.sampled_from(WORKERS))
    def greet(self, worker: str) -> None:
        self.watch(self.ledger.writer.see_workers([hello(*KEYS, worker=worker)]))

    @rule(worker=st.sampled_from(WORKERS))
    def end_worker(self, worker: str) -> None:
        self.watch(self.ledger.writer.lose_workers([Gone(worker=worker)]))

    @rule()
    def end_leases(self) -> None:
        running = self.run(self.ledger.sweeps.look()).running
        over = [one for one in running if one.leased and one.left <= 0]
        self.watch(self.ledger.sweeps.lose(over, "was not heard of", limit=3))

    @rule()
    def sweep(self) -> None:
        self._finish_walks()
        self.watch(self.ledger.sweep())

    @rule()
    def walk_on(self) -> None:
        """A step of each walk that lets successors go."""
        self.watch(self.ledger.acts.release_some())

    @rule()
    def bind_workers(self) -> None:
        self.watch(self.ledger.writer.route_again(KEYS))

    @rule()
    def lose_the_exchange(self) -> None:
        self.watch(self.ledger.sweeps.recover_from_lost_exchange())

    @precondition(lambda self: self.books)
    @rule(
        pick=st.integers(0, 1000), act=st.sampled_from(["retry_task", "force_task", "reset_task"])
    )
    def act_on_task(self, pick: int, act: str) -> None:
        tasks = [task for books in self.books.values() for task in books.tasks]
        chosen = TaskId(tasks[pick % len(tasks)])
        forced = {chosen} if act == "force_task" else set()
        work = _allowed(getattr(self.ledger.acts, act)(chosen))
        self.watch(work, by_operator=True, forced=forced)

    @precondition(lambda self: self.books)
    @rule(
        pick=st.integers(0, 1000),
        act=st.sampled_from(["retry_job", "cancel_job", "pause_job", "resume_job"]),
    )
    def act_on_job(self, pick: int, act: str) -> None:
        job = list(self.books)[pick % len(self.books)]
        over = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
        if act in ("cancel_job", "pause_job") and self.books[job].job["status"] in over:
            return
        self.watch(_allowed(getattr(self.ledger.acts, act)(job)), by_operator=True)

    @rule(key=st.sampled_from(KEYS), act=st.sampled_from(["pause_key", "resume_key"]))
    def pause_or_resume_key(self, key: str, act: str) -> None:
        self.watch(getattr(self.ledger.acts, act)(key), by_operator=True)

    @precondition(lambda self: self.books)
    @rule(pick=st.integers(0, 1000), priority=st.integers(0, 10))
    def prioritize(self, pick: int, priority: int) -> None:
        job = list(self.books)[pick % len(self.books)]
        self.watch(self.ledger.acts.prioritize_job(job, priority), by_operator=True)

    @rule(key=st.sampled_from(KEYS), number=st.sampled_from([404, 499, 500]))
    def retry_key(self, key: str, number: int) -> None:
        self.watch(self.ledger.acts.retry_key(key, number), by_operator=True)

    @precondition(lambda self: self.books)
    @rule(
        pick=st.integers(0, 1000),
        act=st.sampled_from(["retry_job", "cancel_job", "pause_job", "resume_job"]),
        after=st.integers(0, 2),
    )
    def crash_in_act(self, pick: int, act: str, after: int) -> None:
        acts = Acts(Crashing(self.ledger.store, after))
        job = list(self.books)[pick % len(self.books)]
        over = {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
        if act in ("cancel_job", "pause_job") and self.books[job].job["status"] in over:
            return
        self.watch(_allowed(_survived(getattr(acts, act)(job))), by_operator=True)

    @precondition(lambda self: self.claims)
    @rule(number=st.sampled_from(sorted(ANSWERS)))
    def crash_before_commit(self, number: int) -> None:
        """Answers whose transaction did not commit change nothing."""
        before = dict(self.books)
        writer = Writer(Crashing(self.ledger.store, 0))
        answers = [answer(claim, number) for claim in self.claims[-4:]]
        self.watch(_survived(writer.record(answers, window=1000, lease=NOW)))
        self.watch(_survived(writer.claim_ready(window=1000, limit=500, lease=NOW)))
        assert self.books == before

    @precondition(lambda self: len(self.books) > 1)
    @rule(pick=st.integers(0, 1000), crash_after=st.sampled_from([None, 0, 1, 2]))
    def delete(self, pick: int, crash_after: int | None) -> None:
        job = list(self.books)[pick % len(self.books)]
        if crash_after is None:
            acts = self.ledger.acts
        else:
            acts = Acts(Crashing(self.ledger.store, crash_after))
        deleted = self.books.pop(job)
        self.watch(_survived(acts.delete_job(job)), by_operator=True)
        if crash_after == 0:
            self.books[job] = deleted
            return
        assert self.read(job) == {}
        self._finish_walks()
        assert self.run(rows_left(self.ledger.store, job)) == {}

    def _finish_walks(self) -> None:
        """As servers do by themselves; that goes on with an operator's retry that was cut short."""
        left = [self.run(rows_left(self.ledger.store, job)) for job in self.books]
        retries = any("retrying" in rows for rows in left)
        self.watch(self.ledger.acts.finish_walks(), by_operator=retries)

    # --- what must hold -----------------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        for job, books in self.books.items():
            assert not faults_in(books), f"job {job}: {faults_in(books)}"

    def teardown(self) -> None:
        """Nothing is stuck: once everything was retried and answered, every job is done."""
        try:
            for job in self.books:
                self.run(self.ledger.finish(job))
                books = self.read(job)[job]
                assert not faults_in(books), faults_in(books)
                assert books.job["status"] == JobStatus.SUCCEEDED, f"stuck: {books.nodes}"
        finally:
            for job in self.books:
                self.run(self.ledger.acts.delete_job(job))

    # --- how it is watched --------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def read(self, *jobs: JobId) -> dict[JobId, Books]:
        return self.run(read_books(self.ledger.store, jobs))

    def picked(self, pick: int) -> Claim:
        return self.claims[pick % len(self.claims)]

    def take_answers(self, answers: Sequence[Answer], window: int) -> None:
        """Of those for one task the first of its current attempt counts, if it is in flight."""
        nodes = {id_: node for books in self.books.values() for id_, node in books.tasks.items()}
        counting: dict[TaskId, Answer] = {}
        for one in answers:
            node = nodes.get(one.ticket.task_id)
            if node and node.attempt == one.ticket.attempt and node.state in IN_FLIGHT:
                counting.setdefault(one.ticket.task_id, one)
        recorded = self.watch(self.ledger.writer.record(answers, window=window, lease=NOW))
        assert set(recorded.settled) == set(counting)
        assert len(recorded.late) == len(answers) - len(counting)
        self.claims += recorded.claims
        self.unconfirmed += recorded.claims

    def watch(
        self,
        work: Coroutine[Any, Any, T],
        *,
        by_operator: bool = False,
        forced: set[TaskId] | None = None,
    ) -> T:
        """Do something, and compare the books before and after."""
        result = self.run(work)
        for job, after in self.read(*self.books).items():
            before, self.books[job] = self.books[job], after
            for id_, node in after.tasks.items():
                _check_move(before.tasks[id_], node, by_operator=by_operator)
                if id_ not in (forced or ()):
                    _check_start(id_, before, after, by_operator=by_operator)
        return result


def _check_move(old: Node, new: Node, *, by_operator: bool) -> None:
    if old.state is not new.state:
        along_the_way = new.state is TaskState.DISPATCHING and follows(old.state, TaskState.READY)
        assert follows(old.state, new.state) or along_the_way, f"{old} became {new}"
    if old.state in SETTLED and not by_operator:
        assert (old.state, old.attempt) == (new.state, new.attempt), f"{old} became {new}"


def _check_start(task: int, before: Books, after: Books, *, by_operator: bool) -> None:
    """A task that was let go, or begins anew, has all of its predecessors done."""
    old, new = before.tasks[task], after.tasks[task]
    let_go = old.state in (TaskState.BLOCKED, TaskState.HELD)
    anew = by_operator and new.attempt > old.attempt
    if new.state in (TaskState.READY, TaskState.DISPATCHING) and (let_go or anew):
        undone = [id_ for id_ in after.tasks_before(task) if not after.nodes[id_].is_done]
        assert not undone, f"task {task} began before {undone}"


async def _allowed(work: Coroutine[Any, Any, Any]) -> None:
    """Do an act, unless the job is being cancelled since an earlier one was cut short."""
    with suppress(IllegalMove):
        await work


async def _survived(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except Crash:
        return
