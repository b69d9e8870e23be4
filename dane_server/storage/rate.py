"""How many tasks of a key may be sent now, when so many may be in a second. No I/O here."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

#: `now` may be of before a lock was waited for, and others have gone on meanwhile.
_WAITED: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tasks in a second, `burst` of them together; `next_at`: when the next one is due.

    The generic cell rate algorithm: one moment is all there is to remember.
    """

    per_second: float
    burst: int | None = None
    next_at: datetime | None = None

    def places(self, now: datetime) -> int:
        """How many may go now."""
        early = (now - self._due(now)).total_seconds()
        # A hair more than it takes, so that no rounding of a moment costs a place.
        return max(int(early * self.per_second + self._together + 1e-3), 0)

    def after(self, taken: int, now: datetime) -> datetime:
        """When the next one is due after so many went now."""
        return self._due(now) + timedelta(seconds=taken / self.per_second)

    def until_next(self, now: datetime) -> float:
        """Seconds until there is a place; 0 if there is one."""
        late = (self._due(now) - now).total_seconds()
        return max(late - (self._together - 1) / self.per_second, 0.0)

    @property
    def _together(self) -> int:
        """Unless somebody says otherwise, what comes in a tenth of a second goes together."""
        return max(self.burst or int(self.per_second / 10), 1)

    def _due(self, now: datetime) -> datetime:
        """Now, if it is further off than a burst takes: the database's clock was put back."""
        furthest = now + timedelta(seconds=(self._together + 1) / self.per_second) + _WAITED
        return self.next_at if self.next_at and now < self.next_at <= furthest else now
