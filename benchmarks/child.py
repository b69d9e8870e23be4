"""B10: the fan-out once more, the work in child processes beside the work in threads."""

from typing import Final

from benchmarks.dane import IN_CHILD, IN_THREAD, dane
from benchmarks.fan_out import fan_out
from benchmarks.ground import Ground
from benchmarks.measure import Benchmark, Target

#: As many as there are children: one task at a time in each.
_SLOTS: Final = 4


def _tasks(ground: Ground) -> int:
    return ground.size.of(trial=200, usual=3_000)


async def _child(ground: Ground) -> float:
    async with dane(ground, work=IN_CHILD, slots=_SLOTS) as contender:
        return await fan_out(contender, _tasks(ground))


async def _thread(ground: Ground) -> float:
    async with dane(ground, work=IN_THREAD, slots=_SLOTS) as contender:
        return await fan_out(contender, _tasks(ground))


CHILD: Final = Benchmark(
    number=10,
    title="child process",
    unit="tasks/s",
    contenders={"in a child": _child, "in a thread": _thread},
    targets=[Target(figure="in a child", of="in a thread", at_least=0.7)],
)
