"""The tools of the rows: the same seed makes the same trouble, and the page says what was shown."""

from collections import Counter

from dane_core.spec import read_job
from tests.faults.__main__ import document
from tests.faults.matrix import ROWS
from tests.faults.nemesis import KINDS, schedule
from tests.faults.workload import HEAVY, LIGHT, TINY, Workload


def test_a_seed_has_one_schedule_of_faults() -> None:
    """Whoever reads a seed in a log can have the same faults again."""
    assert schedule(7, 600) == schedule(7, 600)
    assert schedule(7, 600) != schedule(8, 600)


def test_a_schedule_ends_in_time_and_knows_every_fault() -> None:
    faults = schedule(7, 3600)

    assert sum(fault.after for fault in faults) < 3600
    assert Counter(fault.kind for fault in faults).keys() == KINDS.keys()


def test_random_jobs_are_sound_and_the_same_for_a_seed() -> None:
    for load in (TINY, LIGHT, HEAVY):
        specs = Workload(7, load).jobs(30)

        assert specs == Workload(7, load).jobs(30)
        for spec in specs:
            read_job(spec)


def test_every_row_of_the_matrix_is_known_and_accounted_for_on_the_page() -> None:
    """A row that nobody shows is told as such, and not left out."""
    facts = {
        "row": 3,
        "fault": "It dies.",
        "expected": "It lives.",
        "ids": "",
        "outcome": "lives",
        "seconds": 2.5,
        "test": "tests/faults/test_x.py::test_it",
    }
    shown = [{**facts, "passed": True}, {**facts, "row": 4, "passed": False}]

    page = document(shown, "RabbitMQ 3.10")

    assert [*ROWS] == [*range(1, 86)]
    assert "| 3 | It dies | lives | 2.5 |" in page
    assert "| 4 | It dies | **failed**; expected: It lives | 2.5 |" in page
    assert "| 36 | " + ROWS[36].fault in page
    assert all(f"\n| {number} | " in page for number in ROWS)
