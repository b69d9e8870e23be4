"""What is known of queues from what became of messages, and what operators are told of it."""

import logging
from collections.abc import Mapping, Sequence

import pytest

from dane_core.exchange.base import Fate
from dane_core.job import JobId, TaskId
from dane_server.runner import bindings
from dane_server.runner.bindings import Bindings
from dane_server.storage.view import Claim


def claim(task_id: int, key: str = "A", media_type: str = "video") -> Claim:
    return Claim(
        task_id=TaskId(task_id),
        job_id=JobId(1),
        key=key,
        type=media_type,
        name=None,
        args={},
        priority=0,
        timeout=None,
        attempt=1,
        dispatch=1,
        fanin=0,
    )


def fates(**by_fate: Claim) -> Mapping[Fate, Sequence[Claim]]:
    """`fates(ROUTED=claim(1))`."""
    found = {name: [one] for name, one in by_fate.items()}
    return {fate: found.get(fate.name, []) for fate in Fate}


def test_the_first_of_each_routing_key_without_a_queue_is_its_probe() -> None:
    known = Bindings()
    known.note(fates(UNROUTABLE=claim(1)))
    some = [claim(2, media_type="audio"), claim(3), claim(4), claim(5, key="B")]

    assert known.probes(some) == {"video.A": some[1]}


@pytest.mark.parametrize("fate", ["ROUTED", "REFUSED"])
def test_where_something_arrived_or_was_refused_there_is_a_queue(fate: str) -> None:
    known = Bindings()
    known.note(fates(UNROUTABLE=claim(1)))

    again = known.note(fates(**{fate: claim(2)}))

    assert again == {"A"}
    assert known.probes([claim(3)]) == {}
    assert known.unbound == frozenset()
    assert known.note(fates(**{fate: claim(3)})) == set()


def test_of_keys_that_were_just_bound_it_is_not_known_any_more_that_there_was_no_queue() -> None:
    known = Bindings()
    known.note(fates(UNROUTABLE=claim(1)))
    known.note(fates(UNROUTABLE=claim(2, key="B")))

    known.forget(["A"])

    assert known.unbound == {"video.B"}


def test_what_clients_write_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "_MOST", 3)
    known = Bindings()

    for number in range(50):
        known.note(fates(UNROUTABLE=claim(number, media_type=f"t{number}")))

    all_of_them = [claim(number, media_type=f"t{number}") for number in range(50)]
    assert 0 < len(known.probes(all_of_them)) <= 4


@pytest.mark.parametrize(
    ("fate", "told"),
    [
        (
            "UNROUTABLE",
            [
                "no queue is bound to A: its tasks wait for a worker",
                "a queue is bound to A again",
            ],
        ),
        (
            "REFUSED",
            [
                "the queue of A takes no more: its tasks are sent again later",
                "the queue of A takes tasks again",
            ],
        ),
    ],
)
def test_operators_are_told_once_of_a_queue_that_takes_nothing_and_once_of_its_return(
    caplog: pytest.LogCaptureFixture, fate: str, told: Sequence[str]
) -> None:
    caplog.set_level(logging.INFO)
    known = Bindings()

    for one in (fate, fate, "ROUTED", "ROUTED"):
        known.note(fates(**{one: claim(1)}))

    assert caplog.messages == told


def test_operators_are_not_told_of_a_key_that_was_just_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Bindings().note(fates(UNROUTABLE=claim(1)), just_bound=["A"])

    assert caplog.messages == []
