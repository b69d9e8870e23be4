"""Decides whose task goes next: by priority, then by owner, then by job. No I/O here.

What owners and jobs have in flight decides; so the decision is the same for any number of
servers. Only between equals it matters who was served last, as far as this server remembers.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

#: Jobs and owners remembered at most.
_REMEMBERED: Final = 10_000
#: The queue of owners; that of an owner's jobs is its id.
_OWNERS: Final = None
#: One place in so many of a window is kept for jobs that have nothing in flight.
_RESERVED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Tasks of one key, rank, owner and job that may be sent: at least so many."""

    rank: int
    owner: int
    job: int
    ready: int
    waited: float = 0.0  # seconds, the first of them


class InFlight(NamedTuple):
    """What is sent or running of a key, by owner and job; and what owners weigh, 1 if not here."""

    jobs: Mapping[tuple[int, int], int]
    weights: Mapping[int, int]


def common(window: int) -> int:
    """Of a window, the places there are for all; the rest is for jobs with nothing in flight.

    Filled by one job, it would leave no place for the first task of another.
    """
    return window - window // _RESERVED


class Past:
    """Who was served lately, in queues with a clock each that ticks with every place given.

    Who was not begins at the time of the clock, as if it had just been its turn.
    """

    def __init__(self) -> None:
        self._clocks: dict[int | None, float] = {}
        self._ends: dict[tuple[int | None, int], float] = {}

    def turn(self, queue: int | None, one: int) -> float:
        """When the next turn of one in a queue is; the least comes first."""
        return max(self._ends.get((queue, one), 0.0), self._clocks.get(queue, 0.0))

    def serve(self, queue: int | None, one: int, weight: int = 1, *, times: int = 1) -> None:
        """Give one its turn; the next comes the sooner, the more it weighs."""
        end = self.turn(queue, one) + times / weight
        self._clocks[queue] = end - 1 / weight
        self._ends[queue, one] = end
        if len(self._ends) + len(self._clocks) > _REMEMBERED:
            self._clocks.clear()
            self._ends.clear()


def share_out(
    groups: Sequence[Group],
    in_flight: InFlight,
    places: int,
    *,
    reserved: int = 0,
    ageing: float = 0.0,
    past: Past | None = None,
) -> list[int]:
    """How many tasks to take of each group.

    The most urgent come first. Among those that are alike, a place goes to the owner with the
    least in flight for its weight, and there to the job with the least. Of equals, who was served
    longest ago comes first, then who has waited longest. For each `ageing` seconds (0: never) that
    jobs of a rank with nothing in flight have waited, one task of each counts as one rank more
    urgent. The last `reserved` places are for jobs with nothing in flight, one for each.
    """
    past = past or Past()
    if len(groups) == 1:
        return [_all_for_one(groups[0], in_flight, places, reserved, past)]
    filling = _Filling(groups, in_flight, past)
    levels = _levels(groups, in_flight, ageing)
    for level in sorted(levels):
        places -= filling.fill(levels[level], places, reserved)
    return filling.taken


def _all_for_one(group: Group, in_flight: InFlight, places: int, reserved: int, past: Past) -> int:
    """Without a rival there is nothing to weigh, however many places there are."""
    is_new = not in_flight.jobs.get((group.owner, group.job))
    places = max(places - reserved, min(places, int(is_new)))
    taken = max(min(group.ready, places), 0)
    if taken:
        past.serve(_OWNERS, group.owner, in_flight.weights.get(group.owner, 1), times=taken)
        past.serve(group.owner, group.job, times=taken)
    return taken


def _levels(
    groups: Sequence[Group], in_flight: InFlight, ageing: float
) -> Mapping[int, Mapping[int, int]]:
    """Which groups are served at which level, and up to how many tasks of each by then."""
    levels: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for number, group in enumerate(groups):
        levels[group.rank][number] = group.ready
    for number, level in risen(groups, in_flight, ageing).items():
        levels[level][number] = 1
    return levels


def risen(groups: Sequence[Group], in_flight: InFlight, ageing: float) -> Mapping[int, int]:
    """The groups, by number, of which one task counts as more urgent now; and as of which rank."""
    starving: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if ageing and group.ready and not in_flight.jobs.get((group.owner, group.job)):
            starving[group.rank].append(number)
    levels: dict[int, int] = {}
    for rank, numbers in starving.items():
        by = int(max(groups[number].waited for number in numbers) // ageing)
        if by > 0 and rank > 0:
            levels |= dict.fromkeys(numbers, max(rank - by, 0))
    return levels


#: One owner of an urgency, or one group: the least comes first.
_Urgency = tuple[float, float, float, int]


class _Filling:
    """Gives places away one by one."""

    def __init__(self, groups: Sequence[Group], in_flight: InFlight, past: Past) -> None:
        self.taken = [0] * len(groups)
        self._groups = groups
        self._jobs = Counter(in_flight.jobs)
        self._owners: Counter[int] = Counter()
        for (owner, _), count in in_flight.jobs.items():
            self._owners[owner] += count
        self._weights = in_flight.weights
        self._past = past

    def fill(self, at_most: Mapping[int, int], places: int, reserved: int = 0) -> int:
        """Give places to groups, to each until it has so many; returns how many were given.

        The last `reserved` only to jobs that have none.
        """
        queues: defaultdict[int, list[_Urgency]] = defaultdict(list)
        for number, most in at_most.items():
            if self.taken[number] < most:
                queues[self._groups[number].owner].append(self._of_group(number))
        for queue in queues.values():
            heapify(queue)
        owners = [self._of_owner(owner, queue) for owner, queue in queues.items()]
        heapify(owners)
        given = 0
        while owners and given < places:
            owner = heappop(owners)[-1]
            queue = queues[owner]
            number = heappop(queue)[-1]
            if given >= places - reserved and self._has_some(number):
                continue  # and so has what is behind it in its queue, which began with the least
            self._give(number)
            given += 1
            if self.taken[number] < at_most[number]:
                heappush(queue, self._of_group(number))
            if queue:
                heappush(owners, self._of_owner(owner, queue))
        return given

    def _has_some(self, number: int) -> bool:
        group = self._groups[number]
        return self._jobs[group.owner, group.job] > 0

    def _give(self, number: int) -> None:
        group = self._groups[number]
        self.taken[number] += 1
        self._jobs[group.owner, group.job] += 1
        self._owners[group.owner] += 1
        self._past.serve(_OWNERS, group.owner, self._weights.get(group.owner, 1))
        self._past.serve(group.owner, group.job)

    def _of_owner(self, owner: int, queue: Sequence[_Urgency]) -> _Urgency:
        load = self._owners[owner] / self._weights.get(owner, 1)
        return load, self._past.turn(_OWNERS, owner), queue[0][2], owner

    def _of_group(self, number: int) -> _Urgency:
        group = self._groups[number]
        load = self._jobs[group.owner, group.job]
        return load, self._past.turn(group.owner, group.job), -group.waited, number
