"""How many tasks of a key may go, when so many may in a second."""

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from dane_server.storage.rate import Rate

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def test_a_burst_goes_at_once_and_the_next_when_its_time_has_come() -> None:
    fresh = Rate(per_second=10, burst=5)
    spent = Rate(per_second=10, burst=5, next_at=fresh.after(5, BEGIN))

    assert fresh.places(BEGIN) == 5
    assert spent.places(BEGIN) == 0
    assert 0.099 < spent.until_next(BEGIN) < 0.101
    assert spent.places(after(0.1)) == 1
    assert spent.places(after(3600)) == 5


def test_without_a_burst_what_comes_in_a_tenth_of_a_second_goes_together() -> None:
    """A thousand in a second, one by one, would be a thousand claims."""
    assert Rate(per_second=1000).places(BEGIN) == 100
    assert Rate(per_second=0.1).places(BEGIN) == 1


@given(
    st.floats(0.1, 5000),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 60)), min_size=1, max_size=40),
)
@settings(max_examples=100)
def test_in_no_span_of_time_go_more_than_the_rate_and_a_burst(
    per_second: float, burst: int, asked: list[tuple[float, int]]
) -> None:
    """And whoever waits as long as it was told to finds a place."""
    next_at, at, went = None, 0.0, list[tuple[float, int]]()
    for pause, wanted in asked:
        at += pause
        rate = Rate(per_second=per_second, burst=burst, next_at=next_at)
        taken = min(rate.places(after(at)), wanted)
        went.append((at, taken))
        if taken:
            next_at = rate.after(taken, after(at))
        left = Rate(per_second=per_second, burst=burst, next_at=next_at)
        assert left.places(after(at + left.until_next(after(at)) + 1e-5)) >= 1

    for first, (begin, _) in enumerate(went):
        total = 0
        for end, taken in went[first:]:
            total += taken
            assert total <= burst + (end - begin) * per_second + 0.1


def test_a_clock_that_was_put_back_makes_the_next_early_and_never_late() -> None:
    ahead = Rate(per_second=10, burst=5, next_at=after(3600))

    waited = Rate(per_second=10, burst=5, next_at=after(1))  # `now` is of before a lock

    assert ahead.places(BEGIN) == 5
    assert waited.places(BEGIN) == 0
    assert ahead.after(5, BEGIN) == after(0.5)
