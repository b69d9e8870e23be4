"""Rounds, medians and ratios: what a benchmark is, and how its figures are compared."""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.ground import Ground

Run = Callable[[Ground], Coroutine[Any, Any, float]]


@dataclass(frozen=True, slots=True)
class Target:
    """What DANE is to reach: its figure divided by a peer's, at least or at most."""

    peer: str
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One thing that is measured: the same work, done by each contender in turn."""

    number: int
    title: str
    unit: str
    contenders: Mapping[str, Run]
    targets: Sequence[Target] = ()
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True)
class Figures:
    """What the rounds of a benchmark have given, by contender."""

    benchmark: Benchmark
    by_contender: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contender: str, figure: float) -> None:
        self.by_contender.setdefault(contender, []).append(figure)

    def median(self, contender: str) -> float:
        return median(self.by_contender[contender])

    def ratio(self, target: Target) -> float:
        """DANE's median divided by the peer's."""
        return self.median("DANE") / self.median(target.peer)

    def reaches(self, target: Target) -> bool:
        ratio = self.ratio(target)
        return ratio >= target.ratio if self.benchmark.higher_is_better else ratio <= target.ratio
