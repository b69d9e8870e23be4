"""What was measured: a table for people, JSON for programs, and the page of the documents."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks.ground import Size
from benchmarks.measure import Figures

Json = Mapping[str, Any]

_ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = _ROOT / "docs" / "performance.md"
_BEGIN: Final = "<!-- measured -->\n"
_END: Final = "<!-- /measured -->\n"


def table(results: Sequence[Figures]) -> Table:
    """Medians, and the ratios that count."""
    shown = Table("", "benchmark", "figure", "median", "unit", "compared", "", "target", "")
    for figures in results:
        for cells in rows_of(as_json(figures)):
            shown.add_row(*cells)
    return shown


def as_json(figures: Figures) -> dict[str, Any]:
    """Every figure of a benchmark, and what was to be reached."""
    benchmark = figures.benchmark
    return {
        "benchmark": benchmark.number,
        "title": benchmark.title,
        "figures": {
            name: {
                "unit": benchmark.unit_of(name),
                "median": figures.median(name),
                "rounds": rounds,
            }
            for name, rounds in figures.by_name.items()
        },
        "targets": [
            {
                "figure": target.figure,
                "of": target.of,
                "always": target.always,
                "target": str(target),
                "value": figures.value(target),
                "reached": figures.reaches(target),
            }
            for target in figures.targets()
        ],
    }


def rows_of(found: Json) -> Iterator[tuple[str, ...]]:
    """The rows of a table: a line for each figure, with a line more for each further target."""
    number, title = f"B{found['benchmark']}", found["title"]
    for name, figure in found["figures"].items():
        cells = (number, title, name, _said(figure["median"]), figure["unit"])
        # A ratio stands beside what it is a ratio to.
        targets = [one for one in found["targets"] if (one["of"] or one["figure"]) == name]
        for target in targets or [None]:
            yield (*cells, *_compared(target))
            cells = ("", "", "", "", "")
        number = title = ""


def _compared(target: Json | None) -> tuple[str, str, str, str]:
    if target is None:
        return "", "", "", ""
    what = f"{target['figure']} ÷ it" if target["of"] else "worst" if target["always"] else "median"
    reached = "yes" if target["reached"] else "no"
    return what, _said(target["value"]), target["target"], reached


def _said(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def kept(path: Path, figures: Figures, size: Size) -> None:
    """Keep the figures of a benchmark in a file, in place of earlier ones of the same."""
    earlier = json.loads(path.read_text()) if path.exists() else []
    entry = {
        **as_json(figures),
        "size": size.name.lower(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "revision": _revision(),
        "machine": _machine(),
    }
    others = [one for one in earlier if one["benchmark"] != entry["benchmark"]]
    ordered = sorted([*others, entry], key=lambda one: int(one["benchmark"]))
    path.write_text(json.dumps(ordered, indent=2, ensure_ascii=False) + "\n")


def _revision() -> str:
    done = subprocess.run(  # noqa: S603  nothing in it is from outside
        ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def write_document(path: Path, document: Path = DOCUMENT) -> None:
    """Put the figures kept in a file into the table of docs/performance.md."""
    before, _, rest = document.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    document.write_text(before + _BEGIN + _page(json.loads(path.read_text())) + _END + after)


def _page(found: Sequence[Json]) -> str:
    lines = [
        "| # | benchmark | figure | median | unit | compared | is | target | reached |",
        "|---|---|---|--:|---|---|--:|---|---|",
    ]
    for one in found:
        lines += ["| " + " | ".join(cells) + " |" for cells in rows_of(one)]
    taken = sorted({f"{one['date']}, {one['machine']}, {one['revision']}" for one in found})
    return "\n".join([*lines, "", f"Taken on {'; '.join(taken)}.", ""])
