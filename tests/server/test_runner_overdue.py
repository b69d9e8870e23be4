"""Which running attempts are over: leases, deadlines and clocks, with the time as an argument."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from dane_core.job import TaskId
from dane_server.runner.overdue import Clock, Deadlines, Ears, Leases
from dane_server.storage.sweeps import Running

NOON = datetime(2026, 5, 4, 12, 0)  # noqa: DTZ001 - as the database tells it
LONG = 1e6  # everything was heard for ever


def running(task_id: int = 1, **members: Any) -> Running:
    plain: dict[str, Any] = {
        "task_id": TaskId(task_id),
        "attempt": 1,
        "leased": True,
        "beats": 0,
        "left": 0.0,
        "timeout": None,
        "spent": 0.0,
        "started_at": NOON,
    }
    return Running(**{**plain, **members})


# --- leases -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "over"),
    [
        # each look: (our time, beats, seconds left by the database); is it over at the last?
        ([(0, 4, 50), (5, 5, 60), (65, 5, 0)], True),
        ([(0, 4, 50), (5, 5, 58), (62, 5, 1)], False),  # the store gives it another second
        ([(0, 4, 50), (5, 5, 60), (64, 5, -3600)], False),  # the database's clock is ahead
        ([(0, 4, 50), (5, 5, 60), (65, 6, -3600)], False),  # ahead, and its worker is alive
        ([(0, 4, -3600), (59, 4, -3600)], False),  # whoever has just come waits one lease
        ([(0, 4, -3600), (60, 4, -3600)], True),
        ([(0, 0, 10), (5, 1, 10), (14, 1, 1)], False),  # a worker with a shorter lease
        ([(0, 0, 10), (5, 1, 10), (15, 1, 0)], True),
        ([(0, 0, 240), (5, 1, 240), (70, 1, -3600)], False),  # and one with a longer one
        ([(0, 0, 240), (5, 1, 240), (245, 1, 0)], True),
    ],
)
def test_a_lease_is_over_when_both_clocks_say_so(
    looks: list[tuple[float, int, float]],
    over: bool,  # noqa: FBT001
) -> None:
    leases = Leases(60)

    for now, beats, left in looks:
        found = leases.over([running(beats=beats, left=left)], now, heard_for=LONG)

    assert bool(found) is over


def test_silence_counts_only_while_somebody_listens() -> None:
    """A broker that was away for an hour has carried no heartbeats: nobody is late."""
    leases = Leases(60)
    leases.over([running(beats=1, left=60)], 0, heard_for=LONG)

    just_back = leases.over([running(beats=1, left=-3540)], 3600, heard_for=10)
    a_lease_later = leases.over([running(beats=1, left=-3590)], 3650, heard_for=60)

    assert (just_back, len(a_lease_later)) == ([], 1)


def test_a_new_attempt_has_a_lease_of_its_own() -> None:
    leases = Leases(60)
    leases.over([running(attempt=1)], 0, heard_for=LONG)

    found = leases.over([running(attempt=2)], 100, heard_for=LONG)

    assert found == []


def test_only_leases_can_end() -> None:
    """What runs on its message comes back from the broker."""
    leases = Leases(60)
    unleased = running(leased=False, left=-3600)

    found = [leases.over([unleased], now, heard_for=LONG) for now in (0, 1000)]

    assert found == [[], []]


def test_every_lease_begins_anew_when_it_is_renewed_and_is_as_long_as_it_was() -> None:
    leases = Leases(60)
    leases.over([running(beats=0, left=240)], 0, heard_for=LONG)
    leases.over([running(beats=1, left=240)], 5, heard_for=LONG)

    leases.renew(200)
    early = leases.over([running(beats=1, left=-1)], 439, heard_for=LONG)
    late = leases.over([running(beats=1, left=-1)], 440, heard_for=LONG)

    assert (early, len(late), leases.longest) == ([], 1, 240)


def test_of_many_only_those_that_are_silent_are_over() -> None:
    leases = Leases(60)
    for now in range(0, 61, 5):
        beating = running(1, beats=now, left=60)
        found = leases.over([beating, running(2, left=-1)], now, heard_for=LONG)

    assert [one.task_id for one in found] == [2]


# --- deadlines --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "over"),
    [
        # each look: (our time, seconds since its start by the database)
        ([(0, 5), (89, 94)], False),  # its worker has overtime to end it
        ([(0, 5), (90, 95)], True),
        ([(0, 5), (50, 3655)], False),  # the database's clock is ahead
        ([(0, 5), (90, -3600)], True),  # and put back
        ([(0, 1000)], True),  # a runner that has just started finds it
        ([(0, -1000), (94, -906)], False),  # started in the future: it gets its time
        ([(0, -1000), (95, -905)], True),
    ],
)
def test_an_attempt_is_over_when_its_timeout_and_the_overtime_have_passed(
    looks: list[tuple[float, float]],
    over: bool,  # noqa: FBT001
) -> None:
    deadlines = Deadlines(35)

    for now, spent in looks:
        task = running(timeout=60.0, spent=spent)
        found = deadlines.over([task], now, heard_for=LONG, stepped=False)

    assert bool(found) is over


def test_an_attempt_first_seen_as_the_clock_steps_gets_all_its_time() -> None:
    deadlines = Deadlines(35)
    task = running(timeout=60.0, spent=3600.0)

    at_once = deadlines.over([task], 0, heard_for=LONG, stepped=True)
    in_time = deadlines.over([task], 94, heard_for=LONG, stepped=False)
    late = deadlines.over([task], 95, heard_for=LONG, stepped=False)

    assert (at_once, in_time, late) == ([], [], [task])


def test_no_deadline_passes_while_its_answer_could_not_be_heard() -> None:
    deadlines = Deadlines(35)
    task = running(timeout=60.0, spent=3600.0)

    found = [deadlines.over([task], 0, heard_for=heard, stepped=False) for heard in (34, 35)]

    assert found == [[], [task]]


def test_what_has_no_timeout_may_run_for_days() -> None:
    deadlines = Deadlines(35)

    assert deadlines.over([running(spent=1e6)], 1e6, heard_for=LONG, stepped=False) == []


def test_an_attempt_that_was_begun_again_begins_its_time_again() -> None:
    """A message that was given to another worker: the same attempt, another start."""
    deadlines = Deadlines(35)
    first = running(timeout=60.0, spent=59.0)
    again = running(timeout=60.0, spent=1.0, started_at=NOON + timedelta(minutes=1))

    deadlines.over([first], 0, heard_for=LONG, stepped=False)

    assert deadlines.over([again], 60, heard_for=LONG, stepped=False) == []


# --- clocks and ears --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("moved", "took", "step"),
    [
        (10.0, 10.0, 0.0),
        (13.0, 10.0, 0.0),  # clocks run apart, and looks take their time
        (3610.0, 10.0, 3600.0),
        (-3590.0, 10.0, -3600.0),
        (4.0, 10.0, -6.0),
    ],
)
def test_a_step_of_the_databases_clock_is_seen(moved: float, took: float, step: float) -> None:
    clock = Clock()
    first = clock.step(NOON, before=100.0, after=100.0)

    second = clock.step(NOON + timedelta(seconds=moved), before=100.0 + took, after=100.0 + took)

    assert first == 0.0
    assert second == pytest.approx(step)


def test_a_step_is_told_once() -> None:
    clock = Clock()
    clock.step(NOON, before=0, after=0)
    clock.step(NOON - timedelta(hours=1), before=1, after=1)

    assert clock.step(NOON - timedelta(hours=1), before=2, after=2) == 0


def test_a_look_that_took_long_says_nothing_but_the_next_one_does() -> None:
    clock = Clock()
    clock.step(NOON, before=0, after=0)

    slow = clock.step(NOON - timedelta(hours=1), before=1, after=21)
    quick = clock.step(NOON - timedelta(hours=1), before=22, after=22)

    assert slow == 0.0
    assert quick == pytest.approx(-3622)


def test_what_is_heard_counts_from_the_first_look_on() -> None:
    ears = Ears(15)

    heard = [ears.heard_for(now, hearing=True) for now in (100, 105, 118)]

    assert heard == [0, 5, 18]


def test_a_short_break_does_not_matter_and_a_long_one_does() -> None:
    ears = Ears(15)
    ears.heard_for(0, hearing=True)
    ears.heard_for(10, hearing=True)

    during = ears.heard_for(20, hearing=False)
    after = ears.heard_for(25, hearing=True)
    frozen = ears.heard_for(41, hearing=True)
    away = [ears.heard_for(now, hearing=False) for now in (45, 50, 57)]
    back = ears.heard_for(58, hearing=True)

    assert (during, after, frozen, away, back) == (10, 25, 0, [0, 0, 0], 0)
