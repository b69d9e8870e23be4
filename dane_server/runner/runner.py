"""The runner: every write to the store goes through here."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

from dane_core.errors import DaneError
from dane_core.exchange.base import Exchange
from dane_core.routing import RESPONSE_QUEUE
from dane_core.spec import JobSpec, Limits
from dane_server.metrics import Metrics
from dane_server.runner.arguments import Arguments
from dane_server.runner.backlog import Backlog
from dane_server.runner.bell import LocalBell, RemoteBell
from dane_server.runner.dispatch import Dispatcher
from dane_server.runner.doctor import Doctor
from dane_server.runner.draft import Draft
from dane_server.runner.gauges import Gauges
from dane_server.runner.operate import Operator
from dane_server.runner.pace import Pace
from dane_server.runner.record import Recorder
from dane_server.runner.retention import Housekeeper
from dane_server.runner.rounds import Rounds
from dane_server.runner.submit import Folders, Submissions
from dane_server.runner.sweep import Sweeper
from dane_server.runner.ticket import SIGNING_KEY, Signer, new_secret
from dane_server.runner.totals import TotalsKeeper
from dane_server.runner.walk import Walker, Walks
from dane_server.storage.access import Access
from dane_server.storage.bulletin import LastRound
from dane_server.storage.view import Holder, KeyLimits, Once, OwnerState, Submitted
from dane_server.supervise import Stopping

#: The name of the service that is told to stop last.
RECORDER: Final = "recorder"


class Runner(Operator):
    """Moves jobs: takes them in, sends their tasks, records answers, carries out acts.

    One that is `remote` takes jobs and acts only, and leaves the moving to runners in other
    processes; `loops` of the others are to be kept running. What moves jobs may reach the store
    by connections of its own (`moving`), which those who ask for things cannot use up.
    """

    def __init__(
        self,
        *,
        access: Access,
        moving: Access | None = None,
        exchange: Exchange,
        folders: Folders,
        pace: Pace,
        response_queue: str = RESPONSE_QUEUE,
        remote: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        local = LocalBell()
        bell = RemoteBell(exchange, response_queue) if remote else local
        super().__init__(access.acts, exchange, bell, cancel_grace=pace.cancel_grace)
        door = Backlog(access.writer, access.quotas, pace.most_open)
        self._submissions = Submissions(door, Arguments(access.reader), bell, folders)
        self._access = moving or access
        self._pace = pace
        self._local = local
        self._response_queue = response_queue
        self._metrics = metrics or Metrics()
        #: Told to all loops but the recorder, which is told last: what it records starts nothing.
        self.stopping = Stopping()
        self.recorded = Stopping()
        #: The doctor's; None where another process makes them.
        self.rounds = None if remote else self._rounds()
        self._walker = None if remote else self._new_walker()
        self._bulletin = access.bulletin
        self._quotas = access.quotas
        self._totals = TotalsKeeper(
            metrics=self._metrics,
            bulletin=self._access.bulletin,
            exchange=exchange,
            stopping=self.stopping,
        )
        self.gauges = Gauges(
            metrics=self._metrics,
            pools={"api": access} if moving is None else {"api": access, "runner": moving},
            exchange=exchange,
            response_queue=response_queue,
            totals=self._totals,
        )

    async def last_round(self) -> LastRound | None:
        """What the doctor found last, whichever server it was; None before its first round.

        Raises: StoreUnreachable.
        """
        return await self._bulletin.last_round()

    async def read(self, raw: bytes, limits: Limits) -> Draft:
        """Read a specification as it was sent, however large, holding nobody up.

        Raises: BadSpec, with every fault in it; StoreUnreachable.
        """
        return await self._submissions.read(raw, limits)

    async def submit(
        self, spec: JobSpec | Draft, *, once: Once | None = None, owner: str = ""
    ) -> Submitted:
        """Store a job of an owner; it is durable when this returns.

        Raises: BadSpec (args that do not fit a worker's schema), SourceConflict, KeyReused,
        StoreUnreachable.
        """
        return await self._submissions.submit(spec, once=once, owner=owner)

    async def submit_many(
        self, specs: Sequence[JobSpec | Draft], *, owner: str = ""
    ) -> list[Submitted | DaneError]:
        """Store many jobs in one transaction; in place of a bad one stands what is wrong."""
        return await self._submissions.submit_many(specs, owner=owner)

    # --- who may have how much ----------------------------------------------------------

    async def owners(self, *, after: str | None = None, limit: int = 500) -> Sequence[OwnerState]:
        """The next owners, in the order of their names. Raises: StoreUnreachable."""
        return await self._quotas.owners(after=after, limit=limit)

    async def change_owner(self, name: str, changes: Mapping[str, int | None]) -> OwnerState:
        """Give an owner another `weight` or `max_open`. Raises: StoreUnreachable."""
        return await self._quotas.change_owner(name, changes)

    async def key_limits(self, key: str) -> KeyLimits:
        """The limits of a task key. Raises: StoreUnreachable."""
        return await self._quotas.key_limits(key)

    async def holders(self, key: str, *, after: int = -1, limit: int = 500) -> Sequence[Holder]:
        """The next tasks that have a place of a key, by their ids. Raises: StoreUnreachable."""
        return await self._quotas.holders(key, after=after, limit=limit)

    async def limit_key(self, key: str, changes: Mapping[str, float | None]) -> KeyLimits:
        """Change some limits of a key; what there is room for now is sent.

        Raises: BadSpec, for a burst without a rate; StoreUnreachable.
        """
        limits = await self._quotas.limit_key(key, changes)
        await self._bell.ring()
        return limits

    # --- what moves jobs ----------------------------------------------------------------

    async def loops(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        """The services that move jobs, by name; each runs until told to stop, or cancelled."""
        if (rounds := self.rounds) is None:
            return {}
        walker = self._walker or self._new_walker()
        writer, reader = self._access.writer, self._access.reader
        secret = await writer.shared_secret(SIGNING_KEY, new_secret())
        signer = Signer(secret)
        dispatcher = Dispatcher(
            writer=writer,
            reader=reader,
            exchange=self._exchange,
            bell=self._local,
            signer=signer,
            pace=self._pace,
            reply_to=self._response_queue,
            stopping=self.stopping,
        )
        self._submissions.send_by(dispatcher)
        recorder = Recorder(
            writer=writer,
            exchange=self._exchange,
            bell=self._local,
            signer=signer,
            pace=self._pace,
            dispatcher=dispatcher,
            queue=self._response_queue,
            metrics=self._metrics,
            left_over=self.left_over,
        )
        sweeper = Sweeper(
            sweeps=self._access.sweeps,
            acts=self._access.acts,
            exchange=self._exchange,
            bell=self._local,
            pace=self._pace,
            response_queue=self._response_queue,
            stopping=self.stopping,
        )
        housekeeper = Housekeeper(
            retention=self._access.retention,
            turns=self._access.turns,
            metrics=self._metrics,
            keep=self._pace.keep,
            stopping=self.stopping,
        )
        return {
            "dispatcher": dispatcher.run,
            "router": dispatcher.router.run,
            RECORDER: partial(recorder.run, self.recorded),
            "sweeper": sweeper.run,
            "sweeper's watch": sweeper.watch_connection,
            "walker": walker.run,
            "doctor": rounds.run,
            "housekeeper": housekeeper.run,
            "totals": self._totals.run,
        }

    def left_over(self) -> None:
        if self._walker is not None:
            self._walker.wake()

    def _new_walker(self) -> Walker:
        return Walker(
            walks=Walks.of(self._access.acts, cancel_grace=self._pace.cancel_grace),
            exchange=self._exchange,
            bell=self._local,
            turns=self._access.turns,
            every=self._pace.sweep,
            stopping=self.stopping,
        )

    def _rounds(self) -> Rounds:
        doctor = Doctor(
            access=self._access,
            exchange=self._exchange,
            bell=self._local,
            pace=self._pace,
            response_queue=self._response_queue,
        )
        return Rounds(
            doctor=doctor,
            turns=self._access.turns,
            bulletin=self._access.bulletin,
            metrics=self._metrics,
            every=self._pace.check,
            stopping=self.stopping,
        )
