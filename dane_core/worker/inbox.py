"""What a worker hears: controls for all workers, and verdicts on what it asked."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final, TypeVar

from dane_core.errors import BadMessage, ExchangeUnreachable
from dane_core.exchange.base import Exchange, Fate
from dane_core.message import (
    Ask,
    Control,
    Envelope,
    Released,
    Stamp,
    TaskMessage,
    Ticket,
    Verdict,
    open_control,
    open_verdict,
)
from dane_core.routing import inbox_queue
from dane_core.worker.outbox import Outbox

K = TypeVar("K")
V = TypeVar("V")

logger = logging.getLogger(__name__)

#: What was cancelled, recalled, or asked about in vain, is remembered up to this many.
_REMEMBERED: Final = 10_000
#: How far the clocks of several servers may differ, in seconds: by more when something was
#: recalled, since to ask about that costs little. A worker's own clock is never looked at. What one
#: server process says is in order by its stamps.
_SERVERS_APART: Final = 5.0
_RECALL_DOUBT: Final = 300.0
_NEVER: Final = float("inf")
_PAUSE: Final = 1.0  # seconds, when the exchange cannot be reached


class Inbox:
    """The queue of one worker, and what it has learned there."""

    def __init__(
        self,
        exchange: Exchange,
        worker_id: str,
        outbox: Outbox,
        obey: Callable[[Control], None],
        *,
        patience: timedelta,
    ) -> None:
        self.name = inbox_queue(worker_id)
        self.listening = asyncio.Event()
        self._exchange = exchange
        self._worker_id = worker_id
        self._outbox = outbox
        self._obey = obey
        self._patience = patience.total_seconds()
        self._listenings = 0
        self._since = _NEVER
        self._welcome: Stamp | None = None
        self._recalled: OrderedDict[tuple[str, object], float] = OrderedDict()
        self._asked: dict[Ticket, asyncio.Future[Verdict]] = {}
        self._given_up: OrderedDict[Ticket, None] = OrderedDict()
        self._handing_back: set[asyncio.Task[Fate]] = set()

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            with suppress(ExchangeUnreachable):
                async with self._exchange.listen(self.name) as subscription:
                    self.missed_some()
                    self.listening.set()
                    while deliveries := await subscription.take(100):
                        for delivery in deliveries:
                            self._hear(delivery.envelope)
                        await subscription.ack_through(deliveries[-1])
            await asyncio.sleep(_PAUSE)

    def missed_some(self) -> None:
        """Controls until now were not heard: tasks sent before have to be asked about.

        What time that is on the server's clock, its welcome tells; until then it is all tasks.
        """
        self._listenings += 1
        self._since = _NEVER
        self._welcome = None

    @property
    def unwelcomed(self) -> int:
        """Which listening waits for a server's welcome; 0 when none does."""
        return self._listenings if self._since == _NEVER else 0

    def is_doubtful(self, message: TaskMessage) -> bool:
        """Whether the server may have changed its mind about a task since it was sent."""
        if self._may_be_older_than_welcome(message):
            return True
        names = (
            ("job", message.job_id),
            ("task", message.ticket.task_id),
            ("key", message.key),
        )
        return any(
            message.sent_at < self._recalled.get(name, -_NEVER) + _RECALL_DOUBT for name in names
        )

    def _may_be_older_than_welcome(self, message: TaskMessage) -> bool:
        stamp, welcome = message.stamp, self._welcome
        if stamp is not None and welcome is not None and stamp.process == welcome.process:
            return stamp.at < welcome.at
        return message.sent_at < self._since + _SERVERS_APART

    async def ask(self, ticket: Ticket, *, redelivered: bool) -> Verdict | None:
        """May we still run this? None when nobody answers in time."""
        verdict = self._asked.setdefault(ticket, asyncio.get_running_loop().create_future())
        ask = Ask(
            ticket=ticket, worker=self._worker_id, reply_to=self.name, redelivered=redelivered
        )
        self._given_up.pop(ticket, None)
        try:
            async with asyncio.timeout(self._patience):
                if await self._outbox.post(ask) is Fate.UNROUTABLE:
                    return None
                return await asyncio.shield(verdict)
        except TimeoutError:
            if redelivered:
                _remember(self._given_up, ticket, None)
            return None
        finally:
            self._asked.pop(ticket, None)

    def _hear(self, envelope: Envelope) -> None:
        try:
            if envelope.type == "verdict":
                self._note_verdict(open_verdict(envelope))
            else:
                self._note_control(open_control(envelope))
        except BadMessage as fault:
            logger.warning("a message in %s was not understood: %s", self.name, fault)

    def _note_verdict(self, verdict: Verdict) -> None:
        asked = self._asked.get(verdict.ticket)
        if asked is not None and not asked.done():
            asked.set_result(verdict)
        elif verdict.ticket in self._given_up:
            del self._given_up[verdict.ticket]
            if verdict.run:
                self._hand_back(verdict.ticket)

    def _hand_back(self, ticket: Ticket) -> None:
        """To the server a task is ours that went back to its queue while we waited for a word."""
        released = Released(ticket=ticket, worker=self._worker_id, reason="the verdict came late")
        task = asyncio.create_task(self._outbox.post(released))
        self._handing_back.add(task)
        task.add_done_callback(self._handing_back.discard)

    def _note_control(self, control: Control) -> None:
        if control.act == "welcome":
            self._be_welcomed(control)
        elif control.act in ("cancel", "recall"):
            self._remember(control)
        self._obey(control)

    def _be_welcomed(self, control: Control) -> None:
        """Whatever a server says from that time on, we hear."""
        if control.listening == self.unwelcomed != 0 and control.sent_at is not None:
            self._since = control.sent_at
            self._welcome = control.stamp

    def _remember(self, control: Control) -> None:
        sent_at = _NEVER if control.sent_at is None else control.sent_at
        for kind, ident in (
            ("task", control.task_id),
            ("job", control.job_id if control.task_id is None else None),
            ("key", control.key),
        ):
            if ident is not None:
                before = self._recalled.get((kind, ident), -_NEVER)
                _remember(self._recalled, (kind, ident), max(before, sent_at))


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    """Note something as the latest; the oldest is forgotten when there is too much."""
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
