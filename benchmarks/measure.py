"""Rounds, medians and ratios: what a benchmark is, and how its figures are compared."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.ground import Ground

#: What one round of a contender gives: one figure, or several by name.
Run = Callable[[Ground], Coroutine[Any, Any, "float | Mapping[str, float]"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is to be reached: a bound for a figure, or for a figure divided by another one."""

    figure: str = "DANE"
    of: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    always: bool = False  # in every round, and not only in the median

    def is_met_by(self, value: float) -> bool:
        low = self.at_least is None or value >= self.at_least
        return low and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return f"≤ {self.at_most:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One thing that is measured: the same work, done by each contender in turn."""

    number: int
    title: str
    unit: str
    contenders: Mapping[str, Run]
    targets: Sequence[Target] = ()
    units: Mapping[str, str] = field(default_factory=dict)  # of figures that have another one
    by_default: bool = True  # or only when it is named

    def unit_of(self, figure: str) -> str:
        return self.units.get(figure, self.unit)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the rounds of a benchmark have given, by name."""

    benchmark: Benchmark
    by_name: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, figure: float) -> None:
        self.by_name.setdefault(name, []).append(figure)

    def median(self, name: str) -> float:
        return median(self.by_name[name])

    def targets(self) -> list[Target]:
        """Those whose figures have been taken."""
        return [
            target
            for target in self.benchmark.targets
            if {target.figure, target.of or target.figure} <= self.by_name.keys()
        ]

    def value(self, target: Target) -> float:
        """What is held against the bound: a median, a ratio of two, or the worst round."""
        value = self.median(target.figure)
        if target.always:
            figures = self.by_name[target.figure]
            value = max(figures) if target.at_most is not None else min(figures)
        return value / self.median(target.of) if target.of else value

    def reaches(self, target: Target) -> bool:
        return target.is_met_by(self.value(target))
