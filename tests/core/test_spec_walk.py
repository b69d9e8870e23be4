"""Trees and graphs are walked without recursion, in the order they are written."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dane_core.spec import fold
from dane_core.spec.cycle import cycles

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_a_tree_is_made_from_the_bottom_in_the_order_it_is_written() -> None:
    opened: list[Any] = []

    def parts_of(node: Any) -> Sequence[Any]:
        opened.append(node)
        return node if isinstance(node, tuple) else ()

    made = fold((1, (2, ()), 3), parts_of, lambda node, parts: f"<{''.join(parts) or node}>")

    assert made == "<<1><<2><()>><3>>"
    assert opened == [(1, (2, ()), 3), 1, (2, ()), 2, (), 3]


def test_no_tree_is_too_deep() -> None:
    tree: list[Any] = []
    for _ in range(100_000):
        tree = [tree]

    assert fold(tree, lambda node: node, lambda _, parts: 1 + sum(parts)) == 100_001


@st.composite
def waiting(draw: st.DrawFn) -> dict[str, list[str]]:
    names = [f"n{i}" for i in range(draw(st.integers(1, 8)))]
    some = st.lists(st.sampled_from(names), unique=True, max_size=3)
    return {name: draw(some) for name in names}


def has_order(after: dict[str, list[str]]) -> bool:
    """Whether everything can be done, by doing again and again what waits for nothing."""
    done: set[str] = set()
    while ready := {name for name, waits in after.items() if done.issuperset(waits)} - done:
        done |= ready
    return len(done) == len(after)


@unhurried
@given(waiting())
def test_cycles_are_found_where_there_are_any(after: dict[str, list[str]]) -> None:
    found = list(cycles(after))

    assert bool(found) != has_order(after)
    for cycle in found:
        assert all(second in after[first] for first, second in pairwise([*cycle, cycle[0]]))


@unhurried
@given(waiting())
def test_breaking_every_cycle_found_leaves_none(after: dict[str, list[str]]) -> None:
    """So whoever mends all that was told is not told of another."""
    for cycle in cycles(after):
        if cycle[0] in after[cycle[-1]]:
            after = {**after, cycle[-1]: [n for n in after[cycle[-1]] if n != cycle[0]]}

    assert has_order(after)


def test_a_long_chain_is_walked_like_a_short_one() -> None:
    chain = {str(n): [str(n + 1)] for n in range(200_000)} | {"200000": []}

    assert list(cycles(chain)) == []
