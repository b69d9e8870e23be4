"""`python -m benchmarks [NUMBER …]`: measure DANE and its peers in turn, and compare them."""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks.chain import CHAIN
from benchmarks.child import CHILD
from benchmarks.embedded import EMBEDDED
from benchmarks.fairness import FAIRNESS
from benchmarks.fan_out import FAN_OUT
from benchmarks.full_store import FULL_STORE
from benchmarks.ground import Grounds, Size, grounds
from benchmarks.growth import GROWTH
from benchmarks.latency import LATENCY
from benchmarks.measure import Benchmark, Figures, Run
from benchmarks.report import kept, table, write_document
from benchmarks.small_jobs import SMALL_JOBS
from benchmarks.submission import SUBMISSION
from tests.services.provider import NoService

ALL: Final = {
    benchmark.number: benchmark
    for benchmark in (
        *(FAN_OUT, CHAIN, SMALL_JOBS, SUBMISSION, GROWTH),
        *(FAIRNESS, FULL_STORE, LATENCY, EMBEDDED, CHILD),
    )
}

#: Columns of the table where there is no terminal.
_WIDTH: Final = 140


def main() -> int:
    chosen = _arguments()
    if chosen.document:
        write_document(chosen.json)
        return 0
    size = Size.TRIAL if chosen.trial else Size.WHOLE if chosen.numbers else Size.USUAL
    numbers = chosen.numbers or [number for number, one in ALL.items() if one.by_default]
    console = Console(stderr=True)
    results = []
    began = time.monotonic()
    try:
        with grounds(size) as ground:
            for number in numbers:
                figures = measured(ALL[number], ground, chosen.rounds, chosen.only, console)
                results.append(figures)
                if not chosen.trial:
                    kept(chosen.json, figures, size)
    except NoService as missing:
        console.print(str(missing))
        return 3
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table(results))
    console.print(f"measured in {(time.monotonic() - began) / 60:.1f} minutes", highlight=False)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "numbers",
        nargs="*",
        type=int,
        choices=[[], *ALL],
        metavar="NUMBER",
        help="these only, at their whole size",
    )
    parser.add_argument("--rounds", type=int, default=3, help="at least three for a median")
    parser.add_argument("--only", help="one contender only, to profile it", metavar="CONTENDER")
    parser.add_argument("--trial", action="store_true", help="small, to see that it works")
    parser.add_argument(
        "--json",
        type=Path,
        default=Path("benchmarks.json"),
        help="keep the figures here, beside those of other benchmarks  [%(default)s]",
    )
    parser.add_argument(
        "--document", action="store_true", help="only put the figures kept into docs/performance.md"
    )
    return parser.parse_args()


def measured(
    benchmark: Benchmark, ground: Grounds, rounds: int, only: str | None, console: Console
) -> Figures:
    """Let the contenders take turns, round after round."""
    figures = Figures(benchmark)
    for round_ in range(1, rounds + 1):
        for name, run in benchmark.contenders.items():
            if only not in (None, name):
                continue
            for figure, value in _figures_of(name, run, ground):
                figures.add(figure, value)
                console.print(
                    f"B{benchmark.number} {benchmark.title}, round {round_}: "
                    f"{figure} {value:,.2f} {benchmark.unit_of(figure)}",
                    highlight=False,
                )
    return figures


def _figures_of(name: str, run: Run, ground: Grounds) -> Iterator[tuple[str, float]]:
    with ground.new() as own:
        found = asyncio.run(run(own))
    if isinstance(found, float):
        yield name, found
    else:
        yield from found.items()


if __name__ == "__main__":
    sys.exit(main())
