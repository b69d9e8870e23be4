"""Says which running attempts are over, by a clock that nobody can set. Pure.

The database's clock may be put forward or back, and a worker may be fine while its heartbeats
cannot reach us. So the runner's own monotonic time decides, and only the time counts in which a
heartbeat would have been heard.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dane_server.storage.sweeps import Running

#: A step of the database's clock that is worth a word, in seconds. Smaller ones do no harm.
_STEP: Final = 5.0
#: A look at the clock that took longer says nothing of it.
_SLOW_LOOK: Final = 1.0
#: No lease is shorter, in seconds.
_SHORTEST: Final = 1.0


class Clock:
    """Watches the database's clock for steps."""

    def __init__(self) -> None:
        self._offset: float | None = None

    def step(self, time: datetime, *, before: float, after: float) -> float:
        """By how many seconds it was put forward (or back: negative) since the last look.

        It showed `time` at a moment between `before` and `after` of our own; 0: it just ran on.
        """
        if after - before > _SLOW_LOOK:
            return 0.0
        offset = time.replace(tzinfo=UTC).timestamp() - (before + after) / 2
        last, self._offset = self._offset, offset
        if last is None or abs(offset - last) <= _STEP:
            return 0.0
        return offset - last


class Ears:
    """Knows since when what workers say has been heard without a break.

    Looks that are further apart than `gap` seconds are a break: nobody recorded anything
    meanwhile, or this process stood still.
    """

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._since: float | None = None
        self._last = 0.0

    def heard_for(self, now: float, *, hearing: bool) -> float:
        """For how long, at a look that found whether everything is heard."""
        if not hearing:
            return 0.0 if self._is_broken(now) else self._length(self._last)
        if self._is_broken(now):
            self._since = now
        self._last = now
        return self._length(now)

    def forget(self) -> None:
        """Begin anew: nothing that was heard before counts."""
        self._since = None

    def _is_broken(self, now: float) -> bool:
        if self._since is not None and now - self._last > self._gap:
            self._since = None
        return self._since is None

    def _length(self, now: float) -> float:
        return 0.0 if self._since is None else now - self._since


@dataclass(frozen=True, slots=True)
class _Pulse:
    """The heartbeats of one attempt, the moment since which they stand still, and their lease."""

    beats: int
    since: float
    lease: float


class Leases:
    """Watches the heartbeats of leased attempts; `lease` counts for those not seen beating yet."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._pulses: dict[tuple[int, int], _Pulse] = {}

    def over(self, running: Iterable[Running], now: float, *, heard_for: float) -> list[Running]:
        """Those whose lease has ended in the store, and that stood still for all of one here."""
        leased = {(one.task_id, one.attempt): one for one in running if one.leased}
        self._pulses = {key: self._felt(key, one, now) for key, one in leased.items()}
        return [one for key, one in leased.items() if self._is_over(key, one, now, heard_for)]

    def renew(self, now: float) -> None:
        """Give everything a fresh lease."""
        self._pulses = {
            key: _Pulse(pulse.beats, now, max(pulse.lease, self._lease))
            for key, pulse in self._pulses.items()
        }

    @property
    def longest(self) -> float:
        """Seconds of the longest lease that is known."""
        return max([self._lease, *(pulse.lease for pulse in self._pulses.values())])

    def _felt(self, key: tuple[int, int], one: Running, now: float) -> _Pulse:
        last = self._pulses.get(key)
        if last is None:
            return _Pulse(one.beats, now, self._lease)
        if last.beats == one.beats:
            return last
        # Renewed under our eyes: so much of it is left from now on.
        return _Pulse(one.beats, now, max(one.left, _SHORTEST))

    def _is_over(self, key: tuple[int, int], one: Running, now: float, heard_for: float) -> bool:
        pulse = self._pulses[key]
        stood_still = min(now - pulse.since, heard_for)
        return one.left <= 0 and stood_still >= pulse.lease


class Deadlines:
    """Watches attempts with a timeout; `overtime` seconds more are their worker's, to end them."""

    def __init__(self, overtime: float) -> None:
        self._overtime = overtime
        self._ends: dict[tuple[int, int, datetime | None], float] = {}

    def over(
        self, running: Iterable[Running], now: float, *, heard_for: float, stepped: bool
    ) -> list[Running]:
        """Those that ran too long, and whose worker would have been heard saying so.

        What is first seen as the clock has `stepped` gets all of its time from now.
        """
        limited: dict[tuple[int, int, datetime | None], Running]
        limited = {(one.task_id, one.attempt, one.started_at): one for one in running}
        ends: dict[tuple[int, int, datetime | None], float] = {}
        for key, one in limited.items():
            if one.timeout is not None:
                spent = 0.0 if stepped else max(one.spent, 0.0)
                ends[key] = self._ends.get(key, now + one.timeout - spent)
        self._ends = ends
        if heard_for < self._overtime:
            return []
        return [limited[key] for key, end in ends.items() if now - end >= self._overtime]
