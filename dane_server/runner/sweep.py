"""Looks after what nobody else will: claims, retries, leases, deadlines, a broker that forgot."""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from dane_core.errors import ExchangeUnreachable
from dane_core.exchange.base import Exchange
from dane_core.message import Control
from dane_core.routing import RESPONSE_QUEUE
from dane_core.states import TaskState
from dane_server.runner.bell import LocalBell
from dane_server.runner.epoch import Marker
from dane_server.runner.evidence import Evidence
from dane_server.runner.overdue import Clock, Deadlines, Ears, Leases
from dane_server.runner.pace import Pace
from dane_server.storage.acts import Acts
from dane_server.storage.sweeps import Running, Sight, Sweeps
from dane_server.supervise import Stopping

logger = logging.getLogger(__name__)

#: Answers that waited while no server ran are recorded first, for so long at most, in seconds.
_ANSWERS_FIRST: Final = 10.0
#: Between two looks meanwhile, and between two answers to "when is the next task due?".
_SOON: Final = 1.0
_BREATH: Final = 0.2
#: Who begins a sweep so many seconds late stood still, or waited for a database that did.
_STOOD_STILL: Final = 5.0
#: The shortest pause.
_INSTANT: Final = 0.05


class Sweeper:
    """Passes over the store every few seconds, and when the next task falls due."""

    def __init__(
        self,
        *,
        sweeps: Sweeps,
        acts: Acts,
        exchange: Exchange,
        bell: LocalBell,
        pace: Pace,
        response_queue: str = RESPONSE_QUEUE,
        stopping: Stopping | None = None,
    ) -> None:
        self._stopping = stopping or Stopping()
        self._sweeps = sweeps
        self._acts = acts
        self._exchange = exchange
        self._bell = bell
        self._pace = pace
        self._response_queue = response_queue
        patience = pace.patience.total_seconds()
        self._clock = Clock()
        self._ears = Ears(max(patience / 4, 3 * pace.sweep.total_seconds()))
        self._leases = Leases(patience)
        self._deadlines = Deadlines(pace.overtime.total_seconds())
        self._marker = Marker(
            sweeps=sweeps, exchange=exchange, claimed=pace.lease, given=pace.patience
        )
        self._evidence = Evidence(
            sweeps=sweeps,
            acts=acts,
            exchange=exchange,
            apart=pace.lost_after,
            horizon=pace.horizon,
            given=pace.patience,
        )
        self._began = self._last_pass = time.monotonic()
        self._was_late = False
        self._empty_since: float | None = None
        self._heard_for = 0.0
        self._hurried = False
        self._told = ""

    async def run(self) -> None:
        """Sweep until told to stop."""
        while True:
            next_due = await self.sweep()
            # Jittered, so that several runners do not sweep at once.
            regular = self._pace.sweep.total_seconds() * random.uniform(0.8, 1.2)  # noqa: S311
            await self._rest(regular if next_due is None else min(regular, next_due))

    async def watch_connection(self) -> None:
        """Sweep at once when the exchange is back: it may be another one, or an empty one."""
        async with self._stopping.idle():
            async for _ in self._exchange.reconnections():
                self._hurried = True
                self._bell.expect()

    async def sweep(self) -> float | None:
        """Pass over the store once; returns the seconds until the next task falls due."""
        before = time.monotonic()
        self._heed_standstill(before)
        sight = await self._sweeps.look()
        now = time.monotonic()
        step = self._clock.step(sight.time, before=before, after=now)
        if step:
            await self._heed_step(step, now)
        patient = not self._answers_are_in(now)
        await self._make_ready(patient=patient)
        await self._look_at_exchange(sight, now, stepped=bool(step))
        # Rung in any case: what another process committed may have been announced to nobody.
        await self._bell.ring()
        next_due = await self._sweeps.next_due()
        soon = _SOON if patient else None
        pauses = [pause for pause in (next_due, soon) if pause is not None]
        return max(min(pauses), _INSTANT) if pauses else None

    async def _rest(self, pause: float) -> None:
        """Wait; less, when something is put off until earlier, or the exchange came back."""
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left), self._stopping.idle():
                    await self._bell.expected()
            except TimeoutError:
                return
            if self._hurried:
                self._hurried = False
                return
            next_due = await self._sweeps.next_due()
            if next_due is not None:
                until = min(until, time.monotonic() + max(next_due, _INSTANT))
            async with self._stopping.idle():
                await asyncio.sleep(min(_BREATH, max(until - time.monotonic(), 0)))

    async def _make_ready(self, *, patient: bool) -> None:
        pace = self._pace
        # Who could not be heard is not gone.
        silence = pace.silence if self._heard_for >= pace.silence.total_seconds() else None
        while await self._sweeps.sweep(
            limit=pace.batch, silence=silence, patient_with_sendings=patient
        ):
            pass
        await self._sweeps.watch_unwatched(pace.patience)

    def _answers_are_in(self, now: float) -> bool:
        """Whether what waited while no server ran is recorded, as far as one can wait for it.

        Something that was being sent as the server died may have been done since.
        """
        if now - self._began >= _ANSWERS_FIRST:
            return True
        return self._empty_since is not None and now - self._empty_since >= _SOON / 2

    def _heed_standstill(self, now: float) -> None:
        """Who stood still has not heard what was done meanwhile, as one that has just begun.

        Not twice in a row: who is always slow is not to be patient for ever.
        """
        late = now - self._last_pass > 1.2 * self._pace.sweep.total_seconds() + _STOOD_STILL
        if late and not self._was_late:
            self._began, self._empty_since = now, None
        self._last_pass, self._was_late = now, late

    async def _heed_step(self, step: float, now: float) -> None:
        """The database's clock was set: what it wrote before is nothing to go by."""
        logger.warning("the database's clock was put %s by %.0f s", _way(step), abs(step))
        self._leases.renew(now)
        self._ears.forget()
        self._heard_for = 0.0
        self._evidence.forget()
        if step > 0:
            return  # some things are early now
        pace, at_once = self._pace, 0 * self._pace.sweep
        await self._sweeps.look_sooner(
            {
                TaskState.READY: at_once,
                TaskState.BACKOFF: at_once,
                TaskState.UNROUTABLE: at_once,
                TaskState.DISPATCHING: pace.lease,
                TaskState.QUEUED: pace.horizon,
                TaskState.RUNNING: timedelta(seconds=self._leases.longest),
            }
        )

    async def _look_at_exchange(self, sight: Sight, now: float, *, stepped: bool) -> None:
        """All that depends on what workers say, or on what the broker has."""
        if not self._exchange.connected or self._exchange.blocked:
            self._heard_for = self._ears.heard_for(now, hearing=False)
            self._evidence.forget()
            return  # nobody is heard, and nothing is proven
        try:
            waiting = await self._waiting_reports()
            if waiting == 0 and self._empty_since is None:
                self._empty_since = now
            hearing = waiting is not None and waiting <= 2 * self._pace.batch
            self._heard_for = self._ears.heard_for(now, hearing=hearing)
            if hearing:
                await self._end_what_is_over(sight.running, now, stepped=stepped)
            await self._put_forward()
            await self._marker.look(sight.epoch)
            # As many as are read at once say nothing of a recorder that keeps up.
            caught_up = waiting is not None and waiting <= self._pace.batch
            if self._answers_are_in(now):
                await self._evidence.look(now, sight.time, caught_up=caught_up)
            self._told = ""
        except ExchangeUnreachable as fault:
            if str(fault) != self._told:
                logger.warning("the exchange was not looked at: %s", fault)
            self._told = str(fault)
            self._evidence.forget()

    async def _put_forward(self) -> None:
        """What is overtaken in its queue all the time is not overtaken for ever."""
        if not self._pace.ageing:
            return
        for task_id in await self._sweeps.put_forward(self._pace.ageing):
            logger.info("task %s has waited long: it is sent as more urgent", task_id)
            await self._exchange.broadcast(Control(act="recall", task_id=task_id).seal())

    async def _waiting_reports(self) -> int | None:
        """How many reports nobody has read yet; None when nobody reads them."""
        depth = await self._exchange.depth(self._response_queue)
        return depth.waiting if depth is not None and depth.consumers else None

    async def _end_what_is_over(
        self, running: Sequence[Running], now: float, *, stepped: bool
    ) -> None:
        heard_for = self._heard_for
        silent = self._leases.over(running, now, heard_for=heard_for)
        late = self._deadlines.over(running, now, heard_for=heard_for, stepped=stepped)
        if silent:
            patience = f"{self._pace.patience.total_seconds():g}"
            reason = f"was not heard of for {patience} s"
            await self._sweeps.lose(silent, reason, limit=self._pace.starts)
        if late:
            await self._sweeps.time_out(late)
        for one in {(one.task_id, one.attempt): one for one in [*silent, *late]}.values():
            logger.warning("task %s: attempt %s is over", one.task_id, one.attempt)
            # Whoever still works on it, and can hear us, may stop.
            stop = Control(act="cancel", task_id=one.task_id, attempt=one.attempt)
            await self._exchange.broadcast(stop.seal())


def _way(step: float) -> str:
    return "forward" if step > 0 else "back"
