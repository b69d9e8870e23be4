"""The judgement of the doctor, without store or broker: what is a divergence, and what is not."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from dane_core.exchange.base import Depth
from dane_core.states import TaskState
from dane_server.runner.checks import (
    BrokerFacts,
    Check,
    Finding,
    Repair,
    Sighting,
    judge,
    judge_jobs,
)
from dane_server.storage.facts import JobFacts, KeyFacts, LapsedLease, Named, StoreFacts

OPERATORS: Final = Path(__file__).parents[2] / "docs" / "operators.md"
THEN: Final = datetime(2030, 1, 1, 12)  # noqa: DTZ001 - naive, as the database's clock is
FULL: Final = Depth(waiting=3, consumers=1)
EMPTY: Final = Depth(waiting=0, consumers=1)


def key(**members: Any) -> KeyFacts:
    facts: dict[str, Any] = {
        "key": "OCR",
        "paused": False,
        "types": (),
        "workers": 1,
        "counts": {},
        "ready_long": (),
        "queued": 0,
        "unmoved": 0,
        "lying": (),
        "idle": False,
        "unroutable": (),
    }
    return KeyFacts(**{**facts, **members})


def sighting(
    *keys: KeyFacts, depth: Depth | None = EMPTY, responses: Depth | None = None, **store: Any
) -> Sighting:
    depths: Mapping[str, Depth | None] = {"dane.OCR": depth, "dane.responses": responses}
    broker = BrokerFacts(depths=depths, response_queue="dane.responses", epoch=None)
    return Sighting(
        at=0.0, time=THEN, epoch=None, store=StoreFacts(keys=keys, **store), broker=broker
    )


def judged(now: Sighting, before: Sighting | None = None, *, after: float = 30.0) -> list[Finding]:
    """Two looks, the second `after` so many seconds; without another the first saw the same."""
    earlier = before or now
    later = replace(now, at=earlier.at + after)
    return list(judge(later, earlier, window=10, apart=30.0))


def checks(findings: list[Finding]) -> list[Check]:
    return [finding.check for finding in findings]


def test_every_check_is_on_the_page_of_operators() -> None:
    """In the order of the code, and nothing else is."""
    page = OPERATORS.read_text()
    table = page[page.index("| check |") : page.index("A running server makes the same checks")]

    named = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)

    assert named == [check.value for check in Check]


def test_every_repair_says_what_it_does() -> None:
    assert all(repair.value for repair in Repair)


def test_tasks_without_a_message_are_lost_when_two_looks_far_enough_apart_say_so() -> None:
    lost = sighting(key(queued=5, unmoved=5), depth=FULL)

    assert checks(judged(lost)) == [Check.QUEUED]
    assert judged(lost, after=29.0) == []


@pytest.mark.parametrize(
    "well",
    [
        sighting(key(queued=4, unmoved=4), depth=FULL),
        sighting(key(queued=5, unmoved=4), depth=FULL),
        sighting(key(queued=5, unmoved=5), depth=FULL, responses=Depth(waiting=1, consumers=1)),
    ],
    ids=["one in the hands of the consumer", "they move", "answers wait to be recorded"],
)
def test_a_long_queue_is_no_loss(well: Sighting) -> None:
    assert judged(well) == []


def test_a_queue_that_was_there_at_one_of_the_looks_is_not_missing() -> None:
    """It was deleted just now, or is there again: the sweeper sees to it."""
    gone = sighting(key(queued=1, unmoved=1), depth=None)

    assert checks(judged(gone)) == [Check.QUEUE]
    assert judged(gone, sighting(key(queued=1, unmoved=1))) == []


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (key(ready_long=(1, 2)), [Check.READY]),
        (key(ready_long=(1, 2), paused=True), []),
        (key(ready_long=(1, 2), limited=True), []),
        (key(ready_long=(1, 2), counts={TaskState.QUEUED: 7}), [Check.READY]),
        (key(ready_long=(1, 2), counts={TaskState.QUEUED: 8}), []),
    ],
    ids=["nobody sends", "paused", "limited", "room", "only reserved places"],
)
def test_ready_tasks_are_a_divergence_when_nothing_holds_them_back(
    facts: KeyFacts, found: list[Check]
) -> None:
    assert checks(judged(sighting(facts))) == found


@pytest.mark.parametrize(
    ("types", "media_type", "found"),
    [
        ((), "image", [Check.UNROUTABLE]),
        (("image",), "image", [Check.UNROUTABLE]),
        (("video",), "image", []),
        (("video",), None, []),
        (("unknown",), None, [Check.UNROUTABLE]),
        (None, "image", []),
    ],
)
def test_what_found_no_queue_is_judged_by_what_workers_take(
    types: tuple[str, ...] | None, media_type: str | None, found: list[Check]
) -> None:
    facts = key(types=types, unroutable=[(media_type, 2, 7)])

    assert checks(judged(sighting(facts))) == found


def test_a_lease_whose_worker_was_heard_of_between_two_looks_is_alive() -> None:
    def lapsed(beats: int) -> Sighting:
        return sighting(lapsed=[LapsedLease(id=1, attempt=1, worker="w", beats=beats, seconds=90)])

    assert checks(judged(lapsed(3), lapsed(3))) == [Check.LEASE]
    assert judged(lapsed(4), lapsed(3)) == []


@pytest.mark.parametrize(
    ("ended", "found"),
    [(timedelta(seconds=-5), [Check.TICKETS]), (timedelta(seconds=5), [])],
    ids=["before the worker spoke", "after"],
)
def test_a_worker_at_a_task_that_has_just_ended_has_not_heard_of_it_yet(
    ended: timedelta, found: list[Check]
) -> None:
    named = Named(
        worker="w", seen_at=THEN, id=1, state=TaskState.SUCCEEDED, finished_at=THEN + ended
    )

    assert checks(judged(sighting(named=[named]))) == found


def test_a_task_that_two_workers_do_is_told_and_left_alone() -> None:
    """One of the two is fenced off already; who, they do not know, and cannot be told apart."""
    named = Named(worker="w1", seen_at=THEN, id=1, state=TaskState.RUNNING, holder="w2")

    [found] = judged(sighting(named=[named]))

    assert "running by w2" in found.sentence
    assert found.repair is None


def test_without_a_broker_only_the_store_is_judged() -> None:
    unserved = key(workers=0, counts={TaskState.READY: 1}, queued=5, unmoved=5)
    alone = replace(sighting(unserved), broker=None)

    assert checks(judged(alone)) == [Check.UNSERVED]


def test_many_tasks_are_counted_and_a_few_are_named() -> None:
    [found] = judged(sighting(key(ready_long=tuple(range(100)))))

    assert "100 tasks of OCR" in found.sentence
    assert found.sentence.endswith(": 0, 1, 2, 3, 4, …")


def test_a_job_is_judged_by_its_counters_and_by_whether_it_is_over() -> None:
    job = JobFacts(
        id=7,
        status="running",
        finished=True,
        kept={"total": 2, "active": 1, "failed": 1},
        counted={"total": 2, "active": 1, "succeeded": 1},
    )

    found = list(judge_jobs([job], []))

    assert checks(found) == [Check.COUNTERS, Check.FINISHED]
    assert found[0].sentence == ("job 7 has miscounted its tasks: failed is 1 and should be 0")
    assert found[1].sentence == "job 7 is marked as over, and 1 task of it can still run"
