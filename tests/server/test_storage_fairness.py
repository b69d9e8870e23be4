"""Whose task goes next: priority, then owners by their weight, then their jobs."""

from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from dane_server.storage.fairness import Group, InFlight, Past, share_out

NOTHING = InFlight({}, {})


@st.composite
def _groups(draw: st.DrawFn, *, ranks: int = 3) -> list[Group]:
    lines = draw(
        st.lists(
            st.tuples(st.integers(0, ranks), st.integers(1, 3), st.integers(1, 4)),
            unique=True,
            max_size=12,
        )
    )
    return [
        # Jobs have one owner each.
        Group(
            rank=rank,
            owner=owner,
            job=10 * owner + job,
            ready=draw(st.integers(0, 9)),
            waited=draw(st.floats(0, 1000)),
        )
        for rank, owner, job in lines
    ]


@st.composite
def _in_flight(draw: st.DrawFn) -> InFlight:
    job = st.builds(
        lambda owner, job: (owner, 10 * owner + job), st.integers(1, 3), st.integers(1, 4)
    )
    weights = st.dictionaries(st.integers(1, 3), st.integers(1, 5))
    return InFlight(draw(st.dictionaries(job, st.integers(1, 9))), draw(weights))


@given(_groups(), _in_flight(), st.integers(-1, 60), st.sampled_from([0.0, 100.0]))
@settings(max_examples=150)
def test_as_many_go_as_there_are_places_and_tasks(
    groups: list[Group], in_flight: InFlight, places: int, ageing: float
) -> None:
    """No place is left empty while something is ready, and no task is taken twice."""
    taken = share_out(groups, in_flight, places, ageing=ageing)

    assert sum(taken) == max(min(places, sum(group.ready for group in groups)), 0)
    assert all(0 <= some <= group.ready for some, group in zip(taken, groups, strict=True))


@given(_groups(), _in_flight(), st.integers(1, 60))
@settings(max_examples=150)
def test_nothing_goes_before_what_is_more_urgent(
    groups: list[Group], in_flight: InFlight, places: int
) -> None:
    taken = share_out(groups, in_flight, places)

    served = [group.rank for group, some in zip(groups, taken, strict=True) if some]
    left = [group.rank for group, some in zip(groups, taken, strict=True) if some < group.ready]
    assert not served or not left or max(served) <= min(left)


@given(_groups(ranks=0), _in_flight(), st.integers(1, 60))
@settings(max_examples=200)
def test_no_owner_is_given_more_while_another_has_less_for_its_weight(
    groups: list[Group], in_flight: InFlight, places: int
) -> None:
    """Max-min: whoever could still use a place has no less than any other had before its last."""
    taken = share_out(groups, in_flight, places)

    has = Counter[int]()
    for (owner, _), count in in_flight.jobs.items():
        has[owner] += count
    for group, some in zip(groups, taken, strict=True):
        has[group.owner] += some
    served = {group.owner for group, some in zip(groups, taken, strict=True) if some}
    wanting = {group.owner for group, some in zip(groups, taken, strict=True) if some < group.ready}
    weight = {owner: in_flight.weights.get(owner, 1) for owner in served | wanting}
    for rich in served:
        for poor in wanting - {rich}:
            assert (has[rich] - 1) / weight[rich] <= has[poor] / weight[poor]


@given(_groups(ranks=0), _in_flight(), st.integers(1, 60))
@settings(max_examples=150)
def test_no_job_is_given_more_while_another_of_its_owner_has_less(
    groups: list[Group], in_flight: InFlight, places: int
) -> None:
    taken = share_out(groups, in_flight, places)

    def has(number: int) -> int:
        group = groups[number]
        return in_flight.jobs.get((group.owner, group.job), 0) + taken[number]

    for rich, one in enumerate(groups):
        for poor, other in enumerate(groups):
            if one.owner == other.owner and taken[rich] and taken[poor] < other.ready:
                assert has(rich) - 1 <= has(poor)


def test_a_single_task_has_a_place_before_the_rest_of_a_hundred_thousand() -> None:
    crowd = Group(rank=5, owner=1, job=1, ready=100_000, waited=9.0)
    single = Group(rank=5, owner=1, job=2, ready=1)

    assert share_out([crowd, single], InFlight({(1, 1): 999}, {}), 1) == [0, 1]


@given(_groups(), _in_flight(), st.integers(1, 60), st.integers(0, 60))
@settings(max_examples=200)
def test_reserved_places_go_to_jobs_with_nothing_in_flight_alone(
    groups: list[Group], in_flight: InFlight, places: int, reserved: int
) -> None:
    """One each; and none of them, nor of the others, stays empty while there is such a job."""
    taken = share_out(groups, in_flight, places, reserved=reserved)

    has, wanting = Counter(in_flight.jobs), set[tuple[int, int]]()
    for group, some in zip(groups, taken, strict=True):
        has[group.owner, group.job] += some
        if some < group.ready:
            wanting.add((group.owner, group.job))
    new = [job for job in has if has[job] and not in_flight.jobs.get(job)]
    common = max(places - reserved, 0)
    assert sum(taken) <= min(places, common + len(new))
    if sum(taken) < places:
        assert all(has[job] for job in wanting)
    if sum(taken) < common:
        assert not wanting


def test_a_crowd_leaves_reserved_places_and_a_newcomer_has_one() -> None:
    crowd, single = (Group(rank=5, owner=1, job=job, ready=99) for job in (1, 2))
    in_flight = InFlight({(1, 1): 80}, {})

    assert share_out([crowd], in_flight, 20, reserved=20) == [0]
    assert share_out([crowd], NOTHING, 20, reserved=20) == [1]
    assert share_out([crowd], NOTHING, 100, reserved=20) == [80]
    assert share_out([crowd, single], in_flight, 20, reserved=20) == [0, 1]
    assert share_out([crowd, single], in_flight, 20, reserved=15) == [0, 5]


def _one_by_one(groups: Sequence[Group], in_flight: InFlight, rounds: int) -> Counter[int]:
    """Which job has the only place there is, each time it becomes free."""
    past, served = Past(), Counter[int]()
    for _ in range(rounds):
        taken = share_out(groups, in_flight, 1, past=past)
        served[groups[taken.index(1)].job] += 1
    return served


def test_of_a_single_place_each_owner_has_its_share_in_turn() -> None:
    """Nothing is in flight when it becomes free: in numbers alone all are equal."""
    groups = [Group(rank=5, owner=owner, job=owner, ready=99, waited=-owner) for owner in (1, 2)]

    assert _one_by_one(groups, NOTHING, 40) == {1: 20, 2: 20}
    assert _one_by_one(groups, InFlight({}, {1: 3}), 40) == {1: 30, 2: 10}


def test_of_a_single_place_each_job_has_its_share_in_turn() -> None:
    groups = [Group(rank=5, owner=1, job=job, ready=99) for job in (1, 2, 3)]

    assert _one_by_one(groups, NOTHING, 30) == {1: 10, 2: 10, 3: 10}


def test_who_comes_later_takes_turns_from_then_on() -> None:
    """What others had before it came is not made up for."""
    past = Past()
    old, new = (Group(rank=5, owner=owner, job=owner, ready=99) for owner in (1, 2))
    for _ in range(50):
        share_out([old], NOTHING, 1, past=past)

    taken = [share_out([old, new], NOTHING, 1, past=past) for _ in range(10)]

    assert sum(some for _, some in taken) in (5, 6)


def test_of_equals_who_has_waited_longest_comes_first() -> None:
    groups = [Group(rank=5, owner=1, job=job, ready=1, waited=float(job)) for job in (1, 3, 2)]

    assert share_out(groups, NOTHING, 1) == [0, 1, 0]


def test_what_has_waited_long_counts_as_more_urgent_one_task_at_a_time() -> None:
    """Otherwise a stream of urgent work would keep it waiting for ever."""
    urgent = Group(rank=0, owner=1, job=1, ready=99)
    patient = Group(rank=2, owner=1, job=2, ready=99, waited=200.0)
    groups, busy = [urgent, patient], {(1, 1): 500}

    assert share_out(groups, InFlight(busy, {}), 10, ageing=101) == [10, 0]
    assert share_out(groups, InFlight(busy, {}), 10, ageing=100) == [9, 1]
    assert share_out(groups, InFlight(busy | {(1, 2): 1}, {}), 10, ageing=100) == [10, 0]
    assert share_out(groups, InFlight(busy, {}), 10, ageing=0) == [10, 0]


def test_having_waited_long_gives_no_precedence_over_the_same_priority() -> None:
    """All of a priority age together: the first of a hundred thousand has always waited longest."""
    groups = [
        Group(rank=5, owner=1, job=1, ready=99, waited=900.0),
        Group(rank=5, owner=2, job=2, ready=99, waited=1.0),
    ]

    past = Past()
    taken = [share_out(groups, NOTHING, 1, ageing=300, past=past) for _ in range(4)]

    assert sorted(taken) == [[0, 1], [0, 1], [1, 0], [1, 0]]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30_000)), max_size=50))
@settings(max_examples=30)
def test_what_is_remembered_does_not_grow(turns: list[tuple[int, int]]) -> None:
    past = Past()
    for job in range(25_000):
        past.serve(1, job)
    for owner, job in turns:
        past.serve(owner, job)

    assert len(past._ends) <= 10_000
