"""`python -m tests.faults`: show every row of the fault matrix, and write docs/reliability.md.

Two rows at a time, each on services of its own; `--at-once 1` one by one. With `--only 13,27`
these rows alone, and nothing is written. Anything else is given to pytest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.faults.matrix import ROWS, Row
from tests.services.process import find_program

ROOT: Final = Path(__file__).parents[2]
DOCUMENT: Final = ROOT / "docs" / "reliability.md"

#: Tests of no row that take as long as one.
_TOO_LONG: Final = ["tests/server/test_storage_plans.py", "tests/server/api/test_api_large.py"]

Shown = Mapping[str, Any]

_PROMISE: Final = """\
# Reliability

## What is promised

- **Accepted is durable.** Once a job was answered with `201` it is there, whatever process is
  killed then, and even if the broker loses all it had.
- **Nothing is in limbo.** Every task that is not settled says what it waits for, and somebody
  looks at it again at a time that is written down.
- **Executed at least once, recorded exactly once.** The body of a task may run more than once.
  The first valid result of the task's current attempt is recorded; every other one is refused,
  counted and shown.

Not promised: that a body runs only once, that tasks of one rank run in order, or that what a
body does to the outside world happens once. A worker that cares has `(task_id, attempt)` to tell
its tries apart.

## What was shown

Each row of this table is a test. It breaks a DANE that is at work in processes of its own, heals
it, and waits; then a checker compares what clients and workers have written down with the tables,
the queues and the processes at rest. It looks for nine things: every accepted job is there (I1);
a task has one result at most, which a worker produced for that attempt (I2); everything has ended
or says what it waits for (I3); counters equal what they count (I4); nothing began before what it
waits for (I5); nothing settled changes (I6); nothing is left in queues, and no connection, file or
thread is left open (I7); wrong input is refused by name (I8); no secret is in a log (I9).

`make faults` runs all of it and writes this page; `make nemesis SECONDS=600` mixes faults at
random, for as long as you like. Seconds are from the end of the fault until all was done.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", help="rows, as in 13,27; nothing is written then")
    parser.add_argument("--at-once", type=int, default=2, help="this many rows at a time")
    chosen, others = parser.parse_known_args()
    only = {int(number) for number in (chosen.only or "").split(",") if number}
    shown, code = _run(only, [f"--numprocesses={chosen.at_once}", "--dist=worksteal", *others])
    missing = _missing(shown)
    if not only and not others:
        DOCUMENT.write_text(document(shown, versions()))
        print(f"written: {DOCUMENT.relative_to(ROOT)}; without a test: {missing or 'none'}")
    return code or (1 if missing and not only and not others else 0)


def _run(only: set[int], others: Sequence[str]) -> tuple[list[Shown], int]:
    rows = [row for number, row in ROWS.items() if not only or number in only]
    elsewhere = sorted({path for row in rows for path in row.shown_by})
    if not only:
        elsewhere += _TOO_LONG
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "pytest", "--every-row", f"--rows-to={found}"]
        if only:
            command.append(f"--only-rows={','.join(map(str, sorted(only)))}")
        code = subprocess.call([*command, "tests/faults", *elsewhere, *others], cwd=ROOT)
        return (json.loads(found.read_text()) if found.exists() else []), code


def _missing(shown: Sequence[Shown]) -> list[int]:
    tested = {one.get("row") for one in shown}
    return [
        number
        for number, row in ROWS.items()
        if number not in tested and not row.shown_by and not row.not_here
    ]


def versions() -> str:
    """What it was shown on."""
    mariadb = find_program(["mariadbd", "mysqld"], ["/usr/sbin", "/usr/libexec"])
    rabbit = find_program(
        ["rabbitmqctl"], ["/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"]
    )
    words = [f"Python {sys.version.split()[0]}"]
    for name, program, argument in (
        ("MariaDB", mariadb, "--version"),
        ("RabbitMQ", rabbit, "version"),
    ):
        if program is not None:
            done = subprocess.run([program, argument], capture_output=True, text=True, check=False)
            numbers = [word for word in done.stdout.split() if word[:1].isdigit()]
            words.append(f"{name} {numbers[0].split('-')[0]}" if numbers else name)
    return ", ".join(words)


def document(shown: Sequence[Shown], on: str) -> str:
    """The page: the promise, then what every row has shown."""
    by_row: defaultdict[int, list[Shown]] = defaultdict(list)
    by_file: defaultdict[str, list[Shown]] = defaultdict(list)
    for one in shown:
        if "row" in one:
            by_row[one["row"]].append(one)
        else:
            by_file[one["test"].partition("::")[0]].append(one)
    lines = [_PROMISE, f"On {time.strftime('%Y-%m-%d', time.gmtime())}, with {on}.\n"]
    part = ""
    for number, row in ROWS.items():
        if row.part != part:
            part = row.part
            lines += [f"### {part}\n", "| # | fault | outcome | seconds |", "|--:|---|---|--:|"]
        lines += _lines(row, by_row[number], by_file)
        if number + 1 not in ROWS or ROWS[number + 1].part != part:
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _lines(
    row: Row, shown: Sequence[Shown], by_file: Mapping[str, Sequence[Shown]]
) -> Iterator[str]:
    for one in shown:
        fault = f"{one['fault']} ({one['ids']})" if one["ids"] else one["fault"]
        outcome = one.get("outcome") or one["expected"]
        said = outcome if one["passed"] else f"**failed**; expected: {one['expected']}"
        yield f"| {row.number} | {_cell(fault)} | {_cell(said)} | {one.get('seconds', '')} |"
    for path in row.shown_by:
        tests = by_file.get(path, ())
        failed = sum(not one["passed"] for one in tests)
        said = f"{len(tests)} tests in `{path}`" + (f", **{failed} failed**" if failed else "")
        yield f"| {row.number} | {row.fault} | {said} | |"
    if not shown and not row.shown_by:
        yield f"| {row.number} | {row.fault} | {_not_shown(row)} | |"


def _not_shown(row: Row) -> str:
    return f"not shown here: {row.not_here}" if row.not_here else "**not shown yet**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").removesuffix(".")


if __name__ == "__main__":
    sys.exit(main())
