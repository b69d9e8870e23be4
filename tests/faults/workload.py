"""Random jobs from a seed: graphs of the test workers' keys, tiny to heavy."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

_KEYS: Final = ("TOIL", "THREADTOIL", "CHILDTOIL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How heavy the jobs are."""

    depth: int = 3  # of nesting, at most
    width: int = 4  # of one block, at most
    longest: float = 0.3  # seconds of one task
    failing: float = 0.1  # share of tasks that fail for now, once or twice
    fatal: float = 0.03  # share of tasks that fail for good
    keys: tuple[str, ...] = _KEYS
    size: int = 2000  # bytes of an answer, at most


TINY: Final = Load(depth=1, width=2, longest=0.05, failing=0, fatal=0, keys=("TOIL",), size=100)
LIGHT: Final = Load()
HEAVY: Final = Load(depth=5, width=6, longest=2.0, size=100_000)


class Workload:
    """An endless supply of specifications; the same seed gives the same ones."""

    def __init__(self, seed: int | str, load: Load = LIGHT) -> None:
        self._chance = random.Random(seed)
        self._load = load
        self._name = f"load-{seed}"
        self._count = 0

    def jobs(self, number: int) -> list[Json]:
        return [self.job() for _ in range(number)]

    def job(self) -> Json:
        self._count += 1
        return {
            "source_url": f"/{self._name}/{self._count}",
            "source_id": f"{self._name}-{self._count}",
            "priority": self._chance.randint(1, 10),
            "tasks": self._block(self._load.depth),
        }

    def unsound_job(self) -> Json:
        """A specification that has to be refused, naming where it is wrong."""
        spec = self.job()
        spec["source_id"] = f"unsound-{spec['source_id']}"
        damage: list[Json] = [
            {"tasks": {"taskSequential": []}},
            {"tasks": {"taskGraph": {"a": {"task": "TOIL", "after": ["b"]}}}},
            {"tasks": {"Task": {"task_key": "no key"}}},
            {"priority": "high"},
            {"source_url": None},
            {"nobody": "knows"},
        ]
        return {**spec, **self._chance.choice(damage)}

    def _block(self, depth: int) -> Json:
        kinds: list[Callable[[int], Json]] = [self._task]
        if depth > 0:
            kinds += [self._sequential, self._parallel, self._parallel, self._graph]
        kind = self._chance.choice(kinds)
        return kind(depth - 1)

    def _task(self, _depth: int) -> Json:
        load, chance = self._load, self._chance
        args: Json = {
            "seconds": round(load.longest * chance.random() ** 3, 3),
            "size": int(load.size * chance.random() ** 3),
            "steps": chance.choice([0, 0, 5]),
        }
        task: Json = {"task_key": chance.choice(load.keys), "args": args}
        if chance.random() < load.failing:
            args["good"] = chance.randint(2, 3)
            task["retry"] = {"limit": 3, "delay": 0.2, "factor": 1.5}
        if chance.random() < load.fatal:
            args["fatal"] = True
            task["allow_failure"] = chance.random() < 0.7
        return {"Task": task}

    def _blocks(self, depth: int) -> Iterator[Json]:
        for _ in range(self._chance.randint(1, self._load.width)):
            yield self._block(depth)

    def _sequential(self, depth: int) -> Json:
        return {"taskSequential": [*self._blocks(depth)]}

    def _parallel(self, depth: int) -> Json:
        return {"taskParallel": [*self._blocks(depth)]}

    def _graph(self, depth: int) -> Json:
        names: list[str] = []
        nodes: Json = {}
        for number, _ in enumerate(self._blocks(0)):
            after = [name for name in names if self._chance.random() < 0.5]
            nodes[f"n{number}"] = {"task": self._task(depth), "after": after}
            names.append(f"n{number}")
        return {"taskGraph": nodes}
