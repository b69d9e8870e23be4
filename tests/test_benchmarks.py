"""What the benchmarks make of their figures; what they measure is measured by `make bench`."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import ALL
from benchmarks.ground import Ground, Size
from benchmarks.measure import Benchmark, Figures, Target
from benchmarks.percentile import percentile
from benchmarks.report import DOCUMENT, as_json, kept, rows_of, write_document


async def never(_: Ground) -> float:
    raise NotImplementedError


def figures(*targets: Target, **by_name: list[float]) -> Figures:
    benchmark = Benchmark(
        number=1, title="x", unit="ms", contenders={"DANE": never}, targets=targets
    )
    return Figures(benchmark, by_name)


def test_every_benchmark_has_a_number_and_targets_for_what_it_measures() -> None:
    assert [*ALL] == list(range(1, 11))
    for benchmark in ALL.values():
        assert benchmark.targets


def test_a_ratio_is_one_of_medians() -> None:
    found = figures(Target(of="Peer", at_least=2.0), DANE=[10, 90, 20], Peer=[10, 8, 9])

    [target] = found.targets()

    assert found.value(target) == 20 / 9
    assert found.reaches(target)


@pytest.mark.parametrize(("always", "reached"), [(False, True), (True, False)])
def test_what_must_hold_always_is_not_held_by_a_median(always: bool, reached: bool) -> None:  # noqa: FBT001
    """Memory that was too much once was too much."""
    found = figures(Target(at_most=100.0, always=always), DANE=[90, 101, 90])

    assert found.reaches(found.targets()[0]) is reached


def test_a_target_whose_peer_did_not_run_is_left_out() -> None:
    """`--only DANE` has nobody to be compared with."""
    found = figures(Target(of="Peer", at_least=2.0), DANE=[10])

    assert found.targets() == []
    assert list(rows_of(as_json(found))) == [("B1", "x", "DANE", "10", "ms", "", "", "", "")]


def test_figures_stay_beside_those_of_other_benchmarks(tmp_path: Path) -> None:
    """Each may be taken at another time; taken again, the new ones stand alone."""
    file, document = tmp_path / "benchmarks.json", tmp_path / "performance.md"
    other: Any = Figures(ALL[3], {"DANE": [7.0], "Celery": [1.0]})
    shutil.copy(DOCUMENT, document)
    before = document.read_text()

    for found in (figures(DANE=[1.0]), other, figures(DANE=[2_500.0])):
        kept(file, found, Size.USUAL)
    write_document(file, document)
    write_document(file, document)

    page = document.read_text()
    assert page.count("| B1 | x | DANE | 2,500 | ms |") == 1
    assert page.count("| DANE ÷ it | 7 | ≥ 5 | yes |") == 1
    assert page.startswith(before.partition("<!-- measured -->")[0])
    assert page.endswith(before.partition("<!-- /measured -->")[2])


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile([5.0, 3.0], 50) == 3.0
