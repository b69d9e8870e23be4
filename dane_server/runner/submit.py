"""Takes jobs in: checks, compiles and stores them, as many at once as have arrived."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from dane_core.errors import BadSpec, DaneError, OutcomeUnknown, StoreUnreachable, Unreachable
from dane_core.folders import source_folders
from dane_core.spec import JobSpec, Limits
from dane_server.graph import Graph
from dane_server.runner.arguments import Arguments
from dane_server.runner.bell import Bell
from dane_server.runner.dispatch import Moment
from dane_server.runner.draft import Draft, Drafts, drafted
from dane_server.storage.claiming import Claiming
from dane_server.storage.view import Claim, NewJob, Once, Submitted

logger = logging.getLogger(__name__)

#: Jobs that arrive together are stored in one transaction, up to this many tasks.
_TASKS_TOGETHER: Final = 5000
#: A submitter has an answer after so many seconds, whatever it waited for; that of a large job
#: after one more for so many rows of it, which even a busy database writes in that time.
_LONGEST: Final = 30.0
_ROWS_IN_A_SECOND: Final = 1000
#: What is handed over is on the wire after so many turns of the event loop.
_TURNS_TO_SEND: Final = 3
#: After a commit that was not acknowledged, seconds in which the store may come back.
_PATIENCE: Final = 10.0
_PAUSE: Final = 0.25

_Outcome = Submitted | DaneError
_Waiting = tuple[NewJob, asyncio.Future[_Outcome]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Where the files of sources go, on storage that the workers share."""

    temp: Path
    out: Path


class JobStore(Protocol):
    """Keeps jobs: the writer, or who stands before it."""

    async def store_jobs(
        self, new_jobs: Sequence[NewJob], claiming: Claiming | None = None
    ) -> list[Submitted | DaneError]: ...


class Sender(Protocol):
    """Sends what was claimed elsewhere: the dispatcher, where this process has one."""

    def claiming(self) -> Claiming: ...

    def hand_over(self, claims: Sequence[Claim], claimed: Moment) -> None: ...

    async def see_off(self) -> None: ...

    def note_unrouted(self, routing_keys: AbstractSet[str]) -> None: ...


class Submissions:
    """Stores jobs durably before it says so."""

    def __init__(
        self, writer: JobStore, arguments: Arguments, bell: Bell, folders: Folders
    ) -> None:
        self._writer = writer
        self._arguments = arguments
        self._drafts = Drafts(arguments.of)
        self._bell = bell
        self._folders = folders
        self._waiting: list[_Waiting] = []
        self._storing: asyncio.Task[None] | None = None
        self._finding_out: set[asyncio.Task[None]] = set()
        self._sender: Sender | None = None

    def send_by(self, sender: Sender) -> None:
        """Hand over what can be sent at once, from now on; else the bell is rung for it."""
        self._sender = sender

    async def read(self, raw: bytes, limits: Limits) -> Draft:
        """Read a specification as it was sent. Raises: BadSpec, with every fault in it."""
        return await self._drafts.read(raw, limits)

    async def submit(
        self, spec: JobSpec | Draft, *, once: Once | None = None, owner: str = ""
    ) -> Submitted:
        """Store one job. What arrives while another batch is being stored goes in the next."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LONGEST
        [new] = await self._prepared([spec], owner, once)
        if isinstance(new, BadSpec):
            raise new
        until += new.rows / _ROWS_IN_A_SECOND
        outcome: asyncio.Future[_Outcome] = loop.create_future()
        self._waiting.append((new, outcome))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_waiting())
        try:
            async with asyncio.timeout_at(until):
                stored = await outcome
        except TimeoutError:
            raise self._given_up((new, outcome)) from None
        if isinstance(stored, DaneError):
            raise stored
        return stored

    def _given_up(self, one: _Waiting) -> StoreUnreachable:
        """What to tell whoever has waited for too long; what has not begun is not stored."""
        silent = "the database does not answer: no answer in time"
        if one in self._waiting:
            self._waiting.remove(one)
            return StoreUnreachable(silent)
        return OutcomeUnknown(silent)

    async def submit_many(
        self, specs: Sequence[JobSpec | Draft], *, owner: str = ""
    ) -> list[_Outcome]:
        """Store many jobs in one transaction; a bad one fails alone."""
        prepared = await self._prepared(specs, owner)
        began = Moment()
        new_jobs = [new for new in prepared if isinstance(new, NewJob)]
        try:
            outcomes = await self._writer.store_jobs(new_jobs, self._claiming())
        except OutcomeUnknown:
            await self._bell.ring()  # they may be there
            raise
        self._hand_over(outcomes, began)
        await self._see_to(outcomes)
        stored = iter(outcomes)
        return [next(stored) if isinstance(new, NewJob) else new for new in prepared]

    async def _prepared(
        self, specs: Sequence[JobSpec | Draft], owner: str, once: Once | None = None
    ) -> list[NewJob | BadSpec]:
        drafts = [spec if isinstance(spec, Draft) else drafted(spec) for spec in specs]
        unchecked = [draft.graph for draft in drafts if isinstance(draft.graph, Graph)]
        objections = iter(await self._arguments.check(unchecked))
        return [
            (isinstance(draft.graph, Graph) and next(objections))
            or NewJob(
                spec=draft.spec,
                graph=draft.graph,
                shared=self._shared(draft.spec),
                once=once,
                owner=owner,
            )
            for draft in drafts
        ]

    def _shared(self, spec: JobSpec) -> Mapping[str, str]:
        return source_folders(self._folders.temp, self._folders.out, spec.source_id)

    async def _store_waiting(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            try:
                await self._store(batch)
                continue
            except OutcomeUnknown as fault:
                self._find_out(batch, fault)
            except Unreachable as fault:
                _fail(batch, fault)
            except Exception:  # noqa: BLE001 - told to the one it concerns
                for one in batch:
                    await self._store_alone(one)
            await self._bell.ring()  # some of it may be there

    def _find_out(self, batch: Sequence[_Waiting], fault: OutcomeUnknown) -> None:
        """Store once more what has a key: stored already, it is only looked up by it."""
        _fail([one for one in batch if one[0].once is None], fault)
        if keyed := [one for one in batch if one[0].once is not None]:
            task = asyncio.create_task(self._store_keyed(keyed, fault))
            self._finding_out.add(task)
            task.add_done_callback(self._finding_out.discard)

    async def _store_keyed(self, batch: Sequence[_Waiting], unknown: OutcomeUnknown) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while not await self._is_stored(batch):  # noqa: ASYNC110 - it is asked for
                    await asyncio.sleep(_PAUSE)
        _fail(batch, unknown)  # whoever has no answer by now
        await self._bell.ring()

    async def _is_stored(self, batch: Sequence[_Waiting]) -> bool:
        try:
            await self._store(batch)
        except Unreachable:
            return False
        except Exception as fault:  # noqa: BLE001 - those who wait for it get it
            _fail(batch, fault)
        return True

    async def _store_alone(self, one: _Waiting) -> None:
        """Find out which job of a batch the store objects to: the others are no part of it."""
        try:
            await self._store([one])
        except Exception as fault:  # noqa: BLE001 - the one who waits for it gets it
            _fail([one], fault)

    async def _store(self, batch: Sequence[_Waiting]) -> None:
        began = Moment()
        stored = await self._writer.store_jobs([new for new, _ in batch], self._claiming())
        if self._hand_over(stored, began):
            # They leave before the answers are written, which takes as long; but nobody waits for
            # the broker to take them.
            for _ in range(_TURNS_TO_SEND):
                await asyncio.sleep(0)
        for (_, outcome), result in zip(batch, stored, strict=True):
            if not outcome.done():
                outcome.set_result(result)
        # Whoever waits for an answer has it: a broker that is slow to take this is not theirs.
        await self._see_to(stored)

    def _claiming(self) -> Claiming | None:
        return None if self._sender is None else self._sender.claiming()

    def _hand_over(self, stored: Sequence[_Outcome], began: Moment) -> bool:
        """Have sent what was claimed, and what would find a queue by now; whether there was any."""
        if self._sender is None:
            return False
        submitted = [one for one in stored if isinstance(one, Submitted)]
        claims = [claim for one in submitted for claim in one.claims]
        urgent_first = sorted(claims, key=lambda claim: (-claim.priority, claim.task_id))
        with _although_stored():
            self._sender.hand_over(urgent_first, began)
            self._sender.note_unrouted(frozenset().union(*(one.unrouted for one in submitted)))
        return bool(claims)

    async def _see_to(self, stored: Sequence[_Outcome]) -> None:
        """Have looked for what was not claimed, and send what was claimed before a stop."""
        if any(isinstance(one, Submitted) and one.more for one in stored):
            await self._bell.ring()
        if self._sender is not None:
            with _although_stored():
                await self._sender.see_off()

    def _next_batch(self) -> list[_Waiting]:
        size, tasks = 0, 0
        for new, _ in self._waiting:
            tasks += new.graph.total
            if size and tasks > _TASKS_TOGETHER:
                break
            size += 1
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        return batch


@contextmanager
def _although_stored() -> Iterator[None]:
    """The jobs are stored, whatever becomes of their sending: the leases of claims bring it on."""
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - nobody is to store them again for it
        logger.warning("claimed tasks wait for their lease: %r", fault)


def _fail(batch: Sequence[_Waiting], fault: Exception) -> None:
    for _, outcome in batch:
        if not outcome.done():
            outcome.set_exception(fault)
