"""Knows the rows of the fault matrix: which run now, and what each of them has shown.

`make test` runs the quick ones. The others are deselected there and counted at its end;
`make faults` runs them all, and so does whoever names a file of this folder.
"""

import json
import resource
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

#: Processor seconds that the quick rows may take together, their processes included. They take
#: about a third of it; and processor time, unlike time, hardly depends on what else the machine
#: does. A row more needs one less.
QUICK_BUDGET: Final = 150.0

#: Of a test: the processor seconds that had been used when it began.
BEGAN_AT: Final = pytest.StashKey[float]()
#: Of a test: whether it has failed before its fixtures were torn down.
FAILED: Final = pytest.StashKey[bool]()

row: Final = pytest.mark.row
quick: Final = pytest.mark.quick
#: Of a test that shows no row, and takes as long as one.
long: Final = pytest.mark.long


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the fault matrix")
    group.addoption("--every-row", action="store_true", help="also the rows that take long")
    group.addoption("--only-rows", metavar="N,N", help="of the rows, only these")
    group.addoption("--rows-to", metavar="FILE", help="write what the rows have shown, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(number): shows a row of RELIABILITY's fault matrix")
    config.addinivalue_line("markers", "quick: a row that `make test` runs too")
    config.addinivalue_line("markers", "long: shows no row, and takes as long as one")
    config.pluginmanager.register(_Rows(config), "dane-fault-rows")


def wants_every_row(config: pytest.Config) -> bool:
    named = any("faults" in str(arg) for arg in config.args)
    return bool(config.getoption("--every-row")) or named


class _Rows:
    """Deselects, counts and reports; with xdist, across its processes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._left: set[str] = set()
        self._quick_seconds = 0.0
        self._quick_effort = 0.0
        self._took: defaultdict[str, float] = defaultdict(float)
        self._failed: set[str] = set()
        self._shown: list[dict[str, Any]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            note_row(item)
        if only := self._config.getoption("--only-rows"):
            self._keep(items, {int(number) for number in only.split(",")})
        if wants_every_row(self._config):
            return
        left = [item for item in items if takes_long(item)]
        if left:
            self._left |= {item.nodeid for item in left}
            items[:] = [item for item in items if item not in left]
            self._config.hook.pytest_deselected(items=left)

    def _keep(self, items: list[pytest.Item], rows: set[int]) -> None:
        """Leave out other rows, and the tests of the rows' own tools."""
        kept = [
            item
            for item in items
            if row_of(item) in rows or (row_of(item) is None and "tests/faults" not in item.nodeid)
        ]
        self._config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        item.stash[BEGAN_AT] = _effort()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:  # of xdist: this is what its controller gets to see
            output["rows_left"] = sorted(self._left)
            return
        if path := self._config.getoption("--rows-to"):
            Path(path).write_text(json.dumps(self._shown, indent=1))
        if self._over_budget and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @property
    def _over_budget(self) -> bool:
        """Whether the quick rows of a run that leaves the others out took too much."""
        return not wants_every_row(self._config) and self._quick_effort > QUICK_BUDGET

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._left |= set(getattr(node, "workeroutput", {}).get("rows_left", ()))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.when == "teardown" and BEGAN_AT in item.stash:  # its processes have ended
            item.user_properties.append(("effort", _effort() - item.stash[BEGAN_AT]))
        report = yield
        if report.failed:
            item.stash[FAILED] = True
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The oracle speaks at a test's teardown, so only that report knows all."""
        shown = dict(report.user_properties)
        self._took[report.nodeid] += report.duration
        if not report.passed:
            self._failed.add(report.nodeid)
        if report.when != "teardown":
            return
        took = self._took.pop(report.nodeid)
        if shown.get("quick"):
            self._quick_seconds += took
            self._quick_effort += float(str(shown.pop("effort", 0)))
        self._shown.append(
            {
                **shown,
                "test": report.nodeid,
                "passed": report.nodeid not in self._failed,
                "took": round(took, 1),
                "at": time.strftime("%Y-%m-%d", time.gmtime()),
            }
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._left:
            terminalreporter.write_line(
                f"{len(self._left)} tests of the fault matrix take long and were left to "
                f"`make faults`; its quick ones took {self._quick_seconds:.0f} s, and "
                f"{self._quick_effort:.0f} s of processors (budget {QUICK_BUDGET:.0f} s)"
            )
        if self._over_budget:
            terminalreporter.write_line(
                "FAILED: the quick rows of the fault matrix are not quick: take one out", red=True
            )


def _effort() -> float:
    """Processor seconds of this process, and of those it has started that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def takes_long(item: pytest.Item) -> bool:
    """Whether `make test` leaves it to `make faults`."""
    is_row = row_of(item) is not None and not item.get_closest_marker("quick")
    return is_row or item.get_closest_marker("long") is not None


def row_of(item: pytest.Item) -> int | None:
    mark = item.get_closest_marker("row")
    return None if mark is None else int(mark.args[0])


def note_row(item: pytest.Item) -> None:
    """Put into the report of a test which row it shows, in its own words."""
    number = row_of(item)
    if number is None:
        return
    text = str(getattr(getattr(item, "function", None), "__doc__", None) or "")
    fault, _, expected = text.partition("\n\n")
    item.user_properties += [
        ("row", number),
        ("quick", item.get_closest_marker("quick") is not None),
        ("fault", " ".join(fault.split())),
        ("expected", " ".join(expected.split())),
        ("ids", _parameters(item)),
    ]


def _parameters(item: pytest.Item) -> str:
    called = getattr(item, "callspec", None)
    return "" if called is None else str(called.id)
