"""Finishes what takes many transactions: cancellations, pauses, priorities, deletions, releases.

Each is asked for by a mark in the store, made first, and done some tasks at a time by whoever
finds the mark: so it is finished whoever dies, and nobody waits for it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Final, Generic, TypeVar

from dane_core.errors import ExchangeUnreachable, Unreachable
from dane_core.exchange.base import Exchange
from dane_core.message import Control
from dane_server.runner.bell import Bell
from dane_server.storage.acts import Acts
from dane_server.storage.turns import Turns
from dane_server.supervise import Stopping

logger = logging.getLogger(__name__)

#: Steps that whoever asks for a walk waits for; what is left then is done behind its back.
AT_ONCE: Final = 10

T = TypeVar("T", bound=Hashable)


def _nothing(_: Any) -> Sequence[Control]:
    return ()


async def _ended(_: Any) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk(Generic[T]):
    """One kind of walk. Its steps may be taken by several at once, and again after a crash."""

    name: str  # for the log: what is done to the subject
    unfinished: Callable[[], Awaitable[Sequence[T]]]  # subjects that have the mark
    step: Callable[[T], Awaitable[bool]]  # does some of it; false: nothing was left
    words: Callable[[T], Sequence[Control]] = _nothing  # what workers are told of it
    end: Callable[[T], Awaitable[bool]] = _ended  # takes the mark away; false: go on


@dataclass(frozen=True, slots=True)
class Walks:
    """All kinds of walks."""

    cancel: Walk[Any]
    pause: Walk[Any]
    pause_key: Walk[Any]
    rerank: Walk[Any]
    delete: Walk[Any]
    retry: Walk[Any]
    release: Walk[Any]

    @classmethod
    def of(cls, acts: Acts, *, cancel_grace: timedelta) -> "Walks":
        grace = cancel_grace.total_seconds()

        def stop(job_id: Any) -> Sequence[Control]:
            return (Control(act="cancel", job_id=job_id, grace=grace),)

        async def recall_key(key: str) -> bool:
            await acts.recall_key(key)  # a window at most
            return False

        return cls(
            cancel=Walk(
                name="cancel job",
                unfinished=acts.jobs_cancelling,
                step=acts.cancel_some,
                words=stop,
                end=acts.end_cancelling,
            ),
            pause=Walk(
                name="pause job",
                unfinished=acts.jobs_straying,
                step=acts.recall_some,
                words=lambda job_id: (Control(act="recall", job_id=job_id),),
            ),
            pause_key=Walk(
                name="pause key",
                unfinished=acts.keys_straying,
                step=recall_key,
                words=lambda key: (Control(act="recall", key=key),),
            ),
            rerank=Walk(
                name="prioritize job",
                unfinished=acts.jobs_reranking,
                step=acts.rerank_some,
                words=lambda job_id: (Control(act="recall", job_id=job_id),),
            ),
            delete=Walk(
                name="delete job", unfinished=acts.jobs_buried, step=acts.drop_some, words=stop
            ),
            retry=Walk(name="retry job", unfinished=acts.jobs_retrying, step=acts.retry_some),
            release=Walk(
                name="release after node",
                unfinished=acts.nodes_releasing,
                step=acts.release_after,
            ),
        )

    def __iter__(self) -> Iterator[Walk[Any]]:
        recalling = (self.cancel, self.pause, self.pause_key, self.rerank)
        return iter((*recalling, self.delete, self.retry, self.release))


async def tell(exchange: Exchange, *words: Control) -> None:
    """Tell all workers something that saves work; whether they hear it changes no truth."""
    try:
        for word in words:
            await exchange.broadcast(word.seal())
    except ExchangeUnreachable as fault:
        logger.warning("workers were not told to %s: %s", words[0].act, fault)


async def step_on(walk: Walk[T], subject: T, exchange: Exchange) -> bool:
    """Take a step; behind the last one workers are told, and the mark goes. Whether any is left.

    They are told before: what is started again after it is not to be stopped by these words.
    """
    if await walk.step(subject):
        return True
    await tell(exchange, *walk.words(subject))
    return not await walk.end(subject)


async def begin_walk(walk: Walk[T], subject: T, exchange: Exchange) -> bool:
    """Tell workers, and take the first steps of what was marked a moment ago; whether any is left.

    It is in force already: a store that fails now leaves it to the walker, and to no caller.
    """
    await tell(exchange, *walk.words(subject))
    try:
        for _ in range(AT_ONCE):
            if not await step_on(walk, subject, exchange):
                return False
    except Unreachable as fault:
        logger.warning("%s %s is finished later: %s", walk.name, subject, fault)
    return True


class Walker:
    """Finishes the walks that others began: one step of each in turn, so that none waits long."""

    def __init__(
        self,
        *,
        walks: Walks,
        exchange: Exchange,
        bell: Bell,
        turns: Turns,
        every: timedelta,
        stopping: Stopping | None = None,
    ) -> None:
        self._walks = walks
        self._exchange = exchange
        self._bell = bell
        self._turns = turns
        self._every = every.total_seconds()
        self._stopping = stopping or Stopping()
        self._woken = asyncio.Event()
        self._told: set[tuple[str, Hashable]] = set()
        self._faults: dict[tuple[str, Hashable], str] = {}

    def wake(self) -> None:
        """Something was left to do."""
        self._woken.set()

    async def run(self) -> None:
        """Finish walks whenever there are any, until told to stop."""
        while True:
            if await self._found():
                # Several at once would do no harm, and wait for each other's locks.
                async with self._turns.take("walk") as ours:
                    if ours:
                        await self.finish()
            try:
                # Jittered, so that several servers share the turns.
                pause = self._every * random.uniform(0.8, 1.2)  # noqa: S311
                async with asyncio.timeout(pause), self._stopping.idle():
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def finish(self) -> None:
        """Walk until nothing is left but what fails; that is tried again at the next call.

        Raises: StoreUnreachable, when it cannot be asked what there is to do.
        """
        failed: set[tuple[str, Hashable]] = set()
        todo = await self._found()
        looked_at = monotonic()
        while todo:
            for walk, subject in todo:
                if not await self._step(walk, subject):
                    failed.add((walk.name, subject))
            todo = [(walk, subject) for walk, subject in todo if (walk.name, subject) in self._told]
            if self._woken.is_set() or monotonic() - looked_at >= self._every:
                looked_at = monotonic()
                todo = await self._found()
            todo = [one for one in todo if (one[0].name, one[1]) not in failed]
            async with self._stopping.idle():
                await asyncio.sleep(0)  # the place to stop at

    async def _found(self) -> list[tuple[Walk[Any], Any]]:
        self._woken.clear()
        return [(walk, subject) for walk in self._walks for subject in await walk.unfinished()]

    async def _step(self, walk: Walk[Any], subject: Any) -> bool:
        """Take a step of one walk; false when it failed, which is said once."""
        name = (walk.name, subject)
        try:
            if name not in self._told:
                self._told.add(name)
                await tell(self._exchange, *walk.words(subject))
            left = await step_on(walk, subject, self._exchange)
        except Exception as fault:  # one that always fails holds up no other
            self._told.discard(name)
            if self._faults.get(name) != str(fault):
                self._faults[name] = str(fault)
                logger.warning(
                    "%s %s fails, and is tried again every %g s: %s",
                    walk.name,
                    subject,
                    self._every,
                    fault,
                    exc_info=not isinstance(fault, Unreachable),
                )
            return False
        self._faults.pop(name, None)
        if not left:
            self._told.discard(name)
        await self._bell.ring()  # what was let go by now can be sent
        return True
