"""`python -m benchmarks [NUMBER …]`: measure DANE and its peers in turn, and compare them."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.chain import CHAIN
from benchmarks.fan_out import FAN_OUT
from benchmarks.ground import Grounds, grounds
from benchmarks.measure import Benchmark, Figures
from benchmarks.small_jobs import SMALL_JOBS
from tests.services.provider import NoService

ALL: Final = {benchmark.number: benchmark for benchmark in (FAN_OUT, CHAIN, SMALL_JOBS)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, choices=[[], *ALL], metavar="NUMBER")
    parser.add_argument("--rounds", type=int, default=3, help="at least three for a median")
    parser.add_argument("--only", help="one contender only, to profile it", metavar="CONTENDER")
    parser.add_argument("--json", type=Path, default=None, help="where to write every figure")
    chosen = parser.parse_args()
    console = Console(stderr=True)
    try:
        with grounds() as ground:
            results = [
                measured(ALL[number], ground, chosen.rounds, chosen.only, console)
                for number in chosen.numbers or ALL
            ]
    except NoService as missing:
        console.print(str(missing))
        return 3
    Console().print(table(results))
    if chosen.json:
        chosen.json.write_text(json.dumps([figures_of(result) for result in results], indent=2))
    return 0


def measured(
    benchmark: Benchmark, ground: Grounds, rounds: int, only: str | None, console: Console
) -> Figures:
    """Let the contenders take turns, round after round."""
    figures = Figures(benchmark)
    for round_ in range(1, rounds + 1):
        for name, run in benchmark.contenders.items():
            if only not in (None, name):
                continue
            with ground.new() as own:
                figure = asyncio.run(run(own))
            figures.add(name, figure)
            console.print(
                f"B{benchmark.number} {benchmark.title}, round {round_}: "
                f"{name} {figure:,.1f} {benchmark.unit}"
            )
    return figures


def table(results: Sequence[Figures]) -> Table:
    """Medians, and the ratios that count."""
    shown = Table("", "benchmark", "contender", "median", "unit", "DANE ÷ it", "target", "")
    for figures in results:
        benchmark = figures.benchmark
        targets = {target.peer: target for target in benchmark.targets}
        for name in figures.by_contender:
            target = targets.get(name)
            compared = target is not None and "DANE" in figures.by_contender
            sign = "≥" if benchmark.higher_is_better else "≤"
            shown.add_row(
                f"B{benchmark.number}",
                benchmark.title,
                name,
                f"{figures.median(name):,.1f}",
                benchmark.unit,
                f"{figures.ratio(target):.2f}" if target and compared else "",
                f"{sign} {target.ratio:g}" if target else "",
                ("yes" if figures.reaches(target) else "no") if target and compared else "",
            )
    return shown


def figures_of(result: Figures) -> dict[str, Any]:
    """Every figure of a benchmark, for other programs."""
    return {
        "benchmark": result.benchmark.number,
        "title": result.benchmark.title,
        "unit": result.benchmark.unit,
        "figures": result.by_contender,
        "targets": [
            {**asdict(target), "reached": result.reaches(target)}
            for target in result.benchmark.targets
            if {target.peer, "DANE"} <= set(result.by_contender)
        ],
    }


if __name__ == "__main__":
    sys.exit(main())
