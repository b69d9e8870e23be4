"""How jobs are taken in: checked, batched, and durable before anyone is told so."""

import asyncio
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from dane_core.errors import (
    BadSpec,
    DaneError,
    ExchangeUnreachable,
    KeyReused,
    OutcomeUnknown,
    SourceConflict,
    StoreUnreachable,
)
from dane_core.exchange.memory import MemoryExchange
from dane_core.message import Offer
from dane_server.runner import submit
from dane_server.runner.arguments import Arguments
from dane_server.runner.bell import Bell, LocalBell
from dane_server.runner.dispatch import Moment
from dane_server.runner.submit import Folders, Submissions
from dane_server.storage.claiming import Claiming
from dane_server.storage.view import Claim, JobQuery, NewJob, Once, Submitted
from dane_server.storage.writer import Writer
from tests.server.crash import Holding
from tests.server.ledger import LEASE, Ledger, graph, hello, parallel, sequence, spec, task
from tests.server.scripted import new_runner

FOLDERS = Folders(temp=Path("/srv/TEMP"), out=Path("/srv/OUT"))
ONCE = Once(key="k1", digest="a" * 64)


def submissions(
    ledger: Ledger, *, writer: Writer | None = None, bell: Bell | None = None
) -> Submissions:
    return Submissions(
        writer or ledger.writer, Arguments(ledger.reader), bell or LocalBell(), FOLDERS
    )


async def stored(ledger: Ledger) -> int:
    return len((await ledger.reader.jobs(JobQuery(limit=999))).jobs)


class Counting(Writer):
    """Notes the sizes of the batches it stores."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.store)
        self.batches: list[int] = []

    async def store_jobs(
        self, new_jobs: Sequence[NewJob], claiming: Claiming | None = None
    ) -> list[Submitted | DaneError]:
        self.batches.append(len(new_jobs))
        return await super().store_jobs(new_jobs, claiming)


async def test_a_submitted_job_is_there_when_submit_returns(ledger: Ledger) -> None:
    submitted = await submissions(ledger).submit(spec("A", source_id="FILM1"))

    job = await ledger.reader.job(submitted.job_id)
    assert not submitted.replayed
    assert job.shared == {
        "TEMP_FOLDER": "/srv/TEMP/FI/LM/1/FILM1",
        "OUT_FOLDER": "/srv/OUT/FI/LM/1/FILM1",
    }


async def test_jobs_that_arrive_together_are_stored_together(ledger: Ledger) -> None:
    writer = Counting(ledger)
    entrance = submissions(ledger, writer=writer)

    outcomes = await asyncio.gather(
        *(entrance.submit(spec("A", source_id=f"S{n}")) for n in range(50))
    )

    assert len({outcome.job_id for outcome in outcomes}) == 50
    assert sum(writer.batches) == 50
    assert len(writer.batches) < 25
    for place, outcome in enumerate(outcomes):
        assert (await ledger.reader.job(outcome.job_id)).source_id == f"S{place}"


async def test_large_jobs_are_not_stored_together(ledger: Ledger) -> None:
    """A transaction of a hundred thousand tasks would hold up everyone behind it."""
    writer = Counting(ledger)
    entrance = submissions(ledger, writer=writer)
    large = parallel(*["A"] * 3000)

    await asyncio.gather(*(entrance.submit(spec(large, source_id=f"S{n}")) for n in range(3)))

    assert writer.batches == [1, 1, 1]


async def test_of_jobs_stored_together_each_gets_its_own_outcome(ledger: Ledger) -> None:
    entrance = submissions(ledger)
    await entrance.submit(spec(source_id="S1"), once=ONCE)
    other = Once(key="k1", digest="b" * 64)

    outcomes = await asyncio.gather(
        entrance.submit(spec(source_id="S2")),
        entrance.submit(spec(source_id="S1", source_url="http://127.0.0.1/other")),
        entrance.submit(spec(source_id="S1"), once=ONCE),
        entrance.submit(spec("B", source_id="S1"), once=other),
        return_exceptions=True,
    )

    assert isinstance(outcomes[0], Submitted)
    assert isinstance(outcomes[1], SourceConflict)
    assert isinstance(outcomes[2], Submitted)
    assert outcomes[2].replayed
    assert isinstance(outcomes[3], KeyReused)
    assert await stored(ledger) == 2


async def test_a_job_whose_submitter_left_is_stored_with_the_others(ledger: Ledger) -> None:
    holding = Holding(ledger.store)
    entrance = submissions(ledger, writer=Writer(holding))
    first = asyncio.create_task(entrance.submit(spec(source_id="S1")))
    await holding.reached.wait()
    leaving = asyncio.create_task(entrance.submit(spec(source_id="S2")))
    staying = asyncio.create_task(entrance.submit(spec(source_id="S3")))
    await asyncio.sleep(0)
    first.cancel()
    leaving.cancel()
    holding.go_on.set()

    outcome = await asyncio.wait_for(staying, 10)

    assert (await ledger.reader.job(outcome.job_id)).source_id == "S3"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await ledger.reader.of_source("S1")


async def test_nobody_waits_longer_than_a_request_may_take(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent database, and behind another batch: the times do not add up."""
    monkeypatch.setattr(submit, "_LONGEST", 0.5)
    holding = Holding(ledger.store)
    entrance = submissions(ledger, writer=Writer(holding))
    first = asyncio.create_task(entrance.submit(spec(source_id="S1"), once=ONCE))
    await holding.reached.wait()
    second = asyncio.create_task(entrance.submit(spec(source_id="S2")))

    async with asyncio.timeout(10):
        told = await asyncio.gather(first, second, return_exceptions=True)
    holding.go_on.set()
    monkeypatch.undo()
    await asyncio.wait_for(entrance.submit(spec(source_id="S3")), 10)

    assert [type(one) for one in told] == [OutcomeUnknown, StoreUnreachable]
    assert await ledger.reader.of_source("S1")
    assert await stored(ledger) == 2  # what was not begun is not done behind anyone's back


class Failing(Writer):
    """A writer that fails some times before it works."""

    def __init__(self, ledger: Ledger, *faults: Exception) -> None:
        super().__init__(ledger.store)
        self._faults = list(faults)

    async def store_jobs(
        self, new_jobs: Sequence[NewJob], claiming: Claiming | None = None
    ) -> list[Submitted | DaneError]:
        if self._faults:
            raise self._faults.pop(0)
        if any(new.spec.source_id == "poison" for new in new_jobs):
            raise ValueError("poison")
        return await super().store_jobs(new_jobs, claiming)


async def test_when_the_store_is_away_all_who_wait_are_told_and_the_next_is_stored(
    ledger: Ledger,
) -> None:
    entrance = submissions(ledger, writer=Failing(ledger, StoreUnreachable("away")))

    outcomes = await asyncio.gather(
        *(entrance.submit(spec(source_id=f"S{n}")) for n in range(3)), return_exceptions=True
    )
    after = await asyncio.wait_for(entrance.submit(spec(source_id="S9")), 10)

    told = [outcome for outcome in outcomes if isinstance(outcome, StoreUnreachable)]
    assert told
    assert await stored(ledger) == 4 - len(told)
    assert isinstance(after, Submitted)


async def test_a_job_the_store_chokes_on_does_not_take_others_with_it(ledger: Ledger) -> None:
    entrance = submissions(ledger, writer=Failing(ledger))
    ids = ("S1", "poison", "S2")

    outcomes = await asyncio.gather(
        *(entrance.submit(spec(source_id=one)) for one in ids), return_exceptions=True
    )

    assert [type(outcome) for outcome in outcomes] == [Submitted, ValueError, Submitted]
    assert await stored(ledger) == 2


class Deaf:
    """A bell that nobody hears, for as long as it takes."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()

    async def ring(self) -> None:
        self.rung.set()
        await asyncio.Event().wait()


async def test_a_submitter_does_not_wait_until_the_runners_have_heard(ledger: Ledger) -> None:
    """A broker that does not answer is no reason to keep a stored job from its submitter."""
    bell = Deaf()
    entrance = submissions(ledger, bell=bell)

    outcome = await asyncio.wait_for(entrance.submit(spec()), 10)

    assert isinstance(outcome, Submitted)
    await asyncio.wait_for(bell.rung.wait(), 10)
    assert entrance._storing is not None
    entrance._storing.cancel()


class Desk:
    """A dispatcher that only notes what it is handed."""

    def __init__(self, window: int = 1000) -> None:
        self._window = window
        self.handed_over: list[Claim] = []
        self.unbound: frozenset[str] = frozenset()
        self.unrouted: set[str] = set()

    def claiming(self) -> Claiming:
        return Claiming(window=self._window, limit=500, lease=LEASE, unbound=self.unbound)

    def hand_over(self, claims: Sequence[Claim], claimed: Moment) -> None:
        assert claimed.age >= 0
        self.handed_over += claims

    async def see_off(self) -> None:
        pass

    def note_unrouted(self, routing_keys: AbstractSet[str]) -> None:
        self.unrouted |= routing_keys


class Counted(LocalBell):
    """A bell whose rings are counted."""

    rings = 0

    async def ring(self) -> None:
        self.rings += 1


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_what_can_be_sent_at_once_is_handed_over(ledger: Ledger, *, many: bool) -> None:
    """Nobody has to look for it, so no bell is rung."""
    await ledger.acts.resume_key("A")
    desk, bell = Desk(), Counted()
    entrance = submissions(ledger, bell=bell)
    entrance.send_by(desk)
    wanted = spec(parallel(task("A", name="later"), task("A", name="first", priority=9)))

    if many:
        await entrance.submit_many([wanted])
    else:
        await entrance.submit(wanted)
        await _idle(entrance)

    assert [claim.name for claim in desk.handed_over] == ["first", "later"]
    assert bell.rings == 0


async def test_whoever_sends_is_told_of_what_was_taken_to_find_no_queue(ledger: Ledger) -> None:
    """One of them may have been bound since; and one task is left to find that out."""
    await ledger.acts.resume_key("A")
    desk, bell = Desk(), Counted()
    desk.unbound = frozenset({"unknown.A", "unknown.C"})
    entrance = submissions(ledger, bell=bell)
    entrance.send_by(desk)

    await entrance.submit(spec(parallel("A", "A", "B")))
    await _idle(entrance)

    assert len(desk.handed_over) == 1
    assert desk.unrouted == {"unknown.A"}
    assert bell.rings == 1


async def test_what_cannot_be_sent_at_once_is_rung_for(ledger: Ledger) -> None:
    await ledger.acts.resume_key("A")
    desk, bell = Desk(), Counted()
    entrance = submissions(ledger, bell=bell)
    entrance.send_by(desk)

    await entrance.submit(spec(parallel("A", "B")))
    await _idle(entrance)

    assert [claim.key for claim in desk.handed_over] == ["A"]
    assert bell.rings == 1


class Sending(Desk):
    """Has what is handed over on the wire some turns of the event loop later, as a dispatcher."""

    sent = False

    def hand_over(self, claims: Sequence[Claim], claimed: Moment) -> None:
        super().hand_over(claims, claimed)
        self.sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        for _ in range(2):  # the message is made, and written
            await asyncio.sleep(0)
        self.sent = True


async def test_what_can_be_sent_leaves_before_its_job_is_answered(ledger: Ledger) -> None:
    """To write the answer takes as long as to send; the worker would wait for it."""
    await ledger.acts.resume_key("A")
    desk, entrance = Sending(), submissions(ledger)
    entrance.send_by(desk)

    await entrance.submit(spec("A"))

    assert desk.sent


@pytest.mark.parametrize("where", ["hand_over", "note_unrouted", "see_off"])
@pytest.mark.parametrize("fault", [ExchangeUnreachable("cut"), RuntimeError("a bug")], ids=repr)
async def test_a_stored_job_is_accepted_once_though_it_could_not_be_sent(
    ledger: Ledger, fault: Exception, where: str
) -> None:
    """Its lease brings it back."""
    await ledger.acts.resume_key("A")

    desk, entrance = Desk(), submissions(ledger)
    setattr(desk, where, Mock(side_effect=fault))
    entrance.send_by(desk)

    [many] = await entrance.submit_many([spec("A")])
    one = await entrance.submit(spec("A"))
    await _idle(entrance)

    assert isinstance(many, Submitted)
    assert len(many.claims) == len(one.claims) == 1
    assert await stored(ledger) == 2


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_what_may_have_been_stored_is_rung_for(ledger: Ledger, *, many: bool) -> None:
    bell = Counted()
    entrance = submissions(ledger, writer=Failing(ledger, OutcomeUnknown("cut")), bell=bell)

    with pytest.raises(OutcomeUnknown):
        await (entrance.submit_many([spec()]) if many else entrance.submit(spec()))
    if not many:
        await _idle(entrance)

    assert bell.rings == 1


async def _idle(entrance: Submissions) -> None:
    assert entrance._storing is not None
    await entrance._storing


# --- many at once -------------------------------------------------------------------------------


async def test_of_many_a_bad_one_fails_alone_and_in_its_place(ledger: Ledger) -> None:
    offer = Offer(key="STRICT", args_schema={"type": "object", "required": ["x"]})
    await ledger.writer.see_workers([hello(offer)])

    outcomes = await submissions(ledger).submit_many(
        [
            spec("A", source_id="S1"),
            spec("STRICT", source_id="S2"),
            spec("A", source_id="S1", source_url="http://127.0.0.1/other"),
            spec("B", source_id="S3"),
        ]
    )

    assert [type(outcome) for outcome in outcomes] == [
        Submitted,
        BadSpec,
        SourceConflict,
        Submitted,
    ]
    assert await stored(ledger) == 2
    assert await submissions(ledger).submit_many([]) == []


# --- arguments ----------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["B", "kB"]},
        "sizes": {"$ref": "#/$defs/Sizes"},
    },
    "$defs": {"Sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}}},
    "required": ["unit"],
    "additionalProperties": False,
}


async def faults_of(ledger: Ledger, tasks: Any) -> dict[str, str]:
    with pytest.raises(BadSpec) as refusal:
        await submissions(ledger).submit(spec(tasks))
    return {fault.path: fault.message for fault in refusal.value.faults}


async def test_arguments_that_a_worker_would_refuse_are_refused_with_their_paths(
    ledger: Ledger,
) -> None:
    await ledger.writer.see_workers([hello(Offer(key="SIZE", args_schema=SCHEMA), "FREE")])
    good = task("SIZE", args={"unit": "kB", "sizes": [1, 2]})

    faults = await faults_of(
        ledger,
        sequence(
            good,
            parallel(task("SIZE", args={"unit": "MB"}), "SIZE", task("FREE", args={"any": 1})),
            graph(a=task("SIZE", args={"unit": "B", "sizes": [3, 0]}), b=("SIZE", "a")),
        ),
    )

    assert set(faults) == {
        "tasks.taskSequential[1].taskParallel[0].Task.args.unit",
        "tasks.taskSequential[1].taskParallel[1].Task.args",
        "tasks.taskSequential[2].taskGraph.a.Task.args.sizes[1]",
        "tasks.taskSequential[2].taskGraph.b.task.Task.args",
    }
    assert await stored(ledger) == 0
    await submissions(ledger).submit(spec(good))


async def test_a_schema_of_a_newer_worker_counts(ledger: Ledger) -> None:
    entrance = submissions(ledger)
    await ledger.writer.see_workers([hello(Offer(key="A", args_schema={"required": ["x"]}))])
    with pytest.raises(BadSpec):
        await entrance.submit(spec("A"))

    await ledger.writer.see_workers([hello(Offer(key="A", args_schema={"required": ["y"]}))])

    await entrance.submit(spec(task("A", args={"y": 1})))
    with pytest.raises(BadSpec):
        await entrance.submit(spec(task("A", args={"x": 1})))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"properties": 7},
        {"$ref": "#/$defs/missing"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"pattern": "("},
        {"properties": {"a": {"pattern": "("}}},
        {"$schema": "http://example.org/own"},
        {"properties": {"a": {"$ref": "#"}}},
        {"$ref": "#"},
        {"$ref": "file:///etc/hostname"},
        {"properties": {"text": {"pattern": "("}}},
    ],
    ids=str,
)
async def test_a_worker_that_announces_nonsense_stops_nobody_from_submitting(
    ledger: Ledger, schema: dict[str, Any]
) -> None:
    """Nor may it make the server fetch anything."""
    await ledger.writer.see_workers([hello(Offer(key="A", args_schema=schema))])

    outcome = await submissions(ledger).submit(spec(task("A", args={"a": {"a": {}}, "text": "x"})))

    assert isinstance(outcome, Submitted)


async def test_a_job_of_many_wrong_tasks_is_refused_with_the_first_faults(ledger: Ledger) -> None:
    await ledger.writer.see_workers([hello(Offer(key="A", args_schema={"required": ["x"]}))])

    faults = await faults_of(ledger, parallel(*["A"] * 2000))

    assert 1 <= len(faults) <= 100


async def test_a_runner_takes_jobs_without_its_loops(ledger: Ledger) -> None:
    """The API's process: durable first, sent by others."""
    runner = new_runner(ledger, MemoryExchange(), remote=True)

    submitted = await runner.submit(spec(), once=ONCE)
    again = await runner.submit(spec(), once=ONCE)
    [third] = await runner.submit_many([spec()])

    assert again == Submitted(job_id=submitted.job_id, replayed=True)
    assert isinstance(third, Submitted)
