"""Finds queues that have lost messages, by evidence and never by age alone.

What waits long is mostly well: its workers are slow. Sending it again would make the queue
longer exactly when it is too long. So a task counts as lost only when the broker shows that its
message can be nowhere: docs/decisions/0011.
"""

import logging
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from dane_core.exchange.base import Depth, Exchange
from dane_core.message import Control
from dane_core.routing import work_queue
from dane_server.storage.acts import Acts
from dane_server.storage.sweeps import Aged, Sweeps

logger = logging.getLogger(__name__)

#: Queues looked at in one sweep.
_KEYS: Final = 5
#: Tasks beyond the horizon looked at in one sweep.
_AGED: Final = 500
#: A queue keeps its order: what began and was queued this much later has overtaken a task.
_OVERTAKEN: Final = 60.0  # seconds
#: What is concluded from workers being idle takes so many times longer.
TIMES_ON_THEIR_WORD: Final = 3
#: After a repair its key is left alone, at first for so long, and for twice as long each time
#: that it turns out not to have helped.
_REST: Final = 30.0
_LONGEST_REST: Final = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a queue. `time` is the database's, from before; `at` our monotonic one."""

    at: float
    time: datetime
    depth: Depth
    idle: bool  # every worker of the key has room for another task
    caught_up: bool = True  # no more reports wait than are read at once: the books can be trusted

    @property
    def place(self) -> int:
        """How many messages there may be: those that wait, and one in each consumer's hands.

        Whoever has room begins a message at once, so the hands of the idle are empty.
        """
        return self.depth.waiting if self.idle else self.hands

    @property
    def hands(self) -> int:
        """How many there may be when nothing is known of the workers."""
        return self.depth.waiting + self.depth.consumers


class Suspicions:
    """What was seen of the queues, and what follows from it. Pure."""

    def __init__(self, apart: float) -> None:
        self._apart = apart
        self._first: dict[str, Look] = {}
        self._rests: dict[str, tuple[float, float]] = {}  # until when, and for how long

    def since(self, key: str) -> datetime | None:
        """The time of the look that a suspicion began with."""
        look = self._first.get(key)
        return look.time if look else None

    def is_lost(self, key: str, look: Look, *, queued: int, unmoved: int) -> bool:
        """Whether messages of a key were lost: two looks, far enough apart, say so.

        `queued` tasks are in the queue by the books, `unmoved` of them since the first look.
        A look into books that lag behind decides nothing, and takes nothing back.
        """
        if not look.caught_up:
            return False
        first = self._first.get(key)
        if queued <= look.place:
            self._first.pop(key, None)
            self._rests.pop(key, None)
            return False
        if first is None:
            self._first[key] = look
            return False
        if unmoved <= first.place or unmoved <= look.place:
            self._first[key] = look
            return False
        # Hands are empty by the word of their workers only, which is some seconds old.
        on_their_word = unmoved <= max(first.hands, look.hands)
        apart = self._apart * (TIMES_ON_THEIR_WORD if on_their_word else 1)
        return look.at - first.at >= apart

    def rests(self, key: str, now: float) -> bool:
        """Whether a key is left alone because it was repaired not long ago."""
        return key in self._rests and now < self._rests[key][0]

    def rest(self, key: str, now: float) -> None:
        """It was repaired."""
        _, last = self._rests.get(key, (0.0, _REST / 2))
        length = min(2 * last, _LONGEST_REST)
        self._rests[key] = (now + length, length)
        self._first.pop(key, None)

    def forget(self) -> None:
        """What was seen until now proves nothing."""
        self._first.clear()


class Backlog:
    """Says for how long a backlog of reports excuses that a task is queued still. Pure."""

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._since: float | None = None

    def excuses(self, now: float, *, caught_up: bool) -> bool:
        """Whether the answer to what was queued long ago may wait to be recorded."""
        if caught_up:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since < self._longest


class Evidence:
    """Looks at some queues in each sweep, and repairs those that have lost something."""

    def __init__(
        self,
        *,
        sweeps: Sweeps,
        acts: Acts,
        exchange: Exchange,
        apart: timedelta,
        horizon: timedelta,
        given: timedelta,
    ) -> None:
        self._sweeps = sweeps
        self._acts = acts
        self._exchange = exchange
        self._suspicions = Suspicions(apart.total_seconds())
        self._backlog = Backlog(horizon.total_seconds())
        self._horizon = horizon
        self._given = given
        self._last_key = ""

    def forget(self) -> None:
        """Begin anew: what was seen until now proves nothing."""
        self._suspicions.forget()

    async def look(self, now: float, time: datetime, *, caught_up: bool = True) -> bool:
        """Look at the next few queues; whether something is to be sent again.

        `now` is our monotonic time, `time` the database's; `caught_up` whether no more reports
        wait than are read at once. Raises: ExchangeUnreachable.
        """
        keys = self._in_turn(await self._sweeps.keys_queued())
        idle = await self._sweeps.idle_keys() if keys else frozenset()
        repaired = [
            await self._look_at(key, now, time, idle=key in idle, caught_up=caught_up)
            for key in keys
            if not self._suspicions.rests(key, now)
        ]
        if self._backlog.excuses(now, caught_up=caught_up):
            return any(repaired)
        return await self._look_beyond_horizon() or any(repaired)

    def _in_turn(self, keys: list[str]) -> list[str]:
        """The next few after those of the last look."""
        later = [key for key in keys if key > self._last_key]
        some = [*later, *(key for key in keys if key <= self._last_key)][:_KEYS]
        if some:
            self._last_key = some[-1]
        return some

    async def _look_at(
        self, key: str, now: float, time: datetime, *, idle: bool, caught_up: bool
    ) -> bool:
        depth = await self._exchange.depth(work_queue(key))
        if depth is None:
            await self._sweeps.watch_key(key, self._given)
            await self._repair(key, now, "it does not exist any more")
            return True
        # Counted after the look: what was answered in between is not missed.
        since = self._suspicions.since(key) or time
        queued, unmoved = await self._sweeps.queued(key, since)
        look = Look(at=now, time=time, depth=depth, idle=idle, caught_up=caught_up)
        if not self._suspicions.is_lost(key, look, queued=queued, unmoved=unmoved):
            return False
        await self._repair(
            key, now, f"{unmoved} tasks should be in it, and {depth.waiting} messages wait there"
        )
        return True

    async def _repair(self, key: str, now: float, finding: str) -> None:
        logger.warning("queue %s has lost messages: %s; sending again", work_queue(key), finding)
        self._suspicions.rest(key, now)
        await self._acts.recall_key(key)
        await self._exchange.broadcast(Control(act="recall", key=key).seal())

    async def _look_beyond_horizon(self) -> bool:
        """Nothing lies in a queue for ever; but where others wait too, it may just be slow."""
        by_key: defaultdict[str, list[Aged]] = defaultdict(list)
        for one in await self._sweeps.aged(_AGED):
            by_key[one.key].append(one)
        sent = False
        for key, aged in by_key.items():
            lost = await self._lost_beyond_horizon(key, aged)
            slow = [one.task_id for one in aged if one not in lost]
            await self._sweeps.wait_longer(slow, self._horizon)
            if await self._sweeps.send_again([one.task_id for one in lost]):
                logger.warning(
                    "%s tasks of %s are queued, and their messages are nowhere: sending again",
                    len(lost),
                    key,
                )
                await self._exchange.broadcast(Control(act="recall", key=key).seal())
                sent = True
        return sent

    async def _lost_beyond_horizon(self, key: str, aged: list[Aged]) -> list[Aged]:
        """Those that cannot be in their queue: it is empty, or those behind them have left it."""
        depth = await self._exchange.depth(work_queue(key))
        if depth is None or depth.waiting == 0:
            return aged
        begun = await self._sweeps.last_begun(key)
        return [one for one in aged if begun is not None and one.age - begun > _OVERTAKEN]
