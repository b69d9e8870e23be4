"""Finds cycles among things that wait for each other."""

from collections.abc import Iterator, Mapping, Sequence


def cycles(after: Mapping[str, Sequence[str]]) -> Iterator[Sequence[str]]:
    """Cycles, each in the order in which its names wait; breaking them all leaves none.

    `after` tells what each name waits for; these must be names too. The walk is depth-first,
    and every edge back to a name it has not yet returned from closes a cycle (Tarjan, 1972).
    """
    settled: set[str] = set()
    for name in after:
        if name not in settled:
            yield from _cycles_from(name, after, settled)


def _cycles_from(
    start: str, after: Mapping[str, Sequence[str]], settled: set[str]
) -> Iterator[Sequence[str]]:
    trail = [start]
    place = {start: 0}
    ahead = [iter(after[start])]
    while trail:
        before = next(ahead[-1], None)
        if before is None:
            settled.add(trail[-1])
            del place[trail.pop()], ahead[-1]
        elif before in place:
            yield trail[place[before] :]
        elif before not in settled:
            place[before] = len(trail)
            trail.append(before)
            ahead.append(iter(after[before]))
