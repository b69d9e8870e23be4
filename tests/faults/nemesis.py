"""`make nemesis SECONDS=600 [SEED=n]`: many faults at random, at once, under load.

An API server, a runner, two servers that are both, and some workers, each behind a wire of its own;
a broker and a database of our own; and people who cancel, retry, pause and delete what runs. The
schedule of faults and acts follows from the seed alone. In the end everything is healed, has its
time to recover, and the oracle looks at what is left.
"""

import argparse
import asyncio
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from dane_core.exchange.amqp import connect
from dane_core.routing import RESPONSE_QUEUE, work_queue
from tests.faults import clocks
from tests.faults.labor import CREW
from tests.faults.process import Process
from tests.faults.rig import Ground, Rig, make_tables, rigged
from tests.faults.workload import LIGHT, Workload
from tests.services import provider
from tests.services.mariadb import Database, database_at
from tests.services.proxy import Proxy
from tests.services.rabbitmq import Broker

#: Between two faults, in seconds: drawn evenly from here.
_PAUSES: Final = (1.0, 6.0)
#: How long a fault lasts that has an end.
_LASTS: Final = (0.5, 8.0)
#: After which everything has to be done, once all is healed: an answer that was deleted with its
#: queue is missed after three minutes, and its successors wait for it.
RECOVERY: Final = 240.0
#: Jobs that may be under way; posting waits for more room.
_OPEN: Final = 60
_WORKERS: Final = 3
_BOTH: Final = "server"
#: Leases that end while their worker is frozen for long: 4 beats.
_LEASED: Final[Mapping[str, Any]] = {"HAND_OFF": 0.3, "BEAT": 0.5}
#: As short as the product advises: what was claimed and not sent by half of it waits for the rest.
_BRISK: Final[Mapping[str, Any]] = {"LEASE": 12}
#: How much longer than other faults those last that have to outlast a lease, in seconds.
_LONGER: Final = 12.0
#: By how much the clock of the database goes wrong, in seconds.
_STEPS: Final = (-3600, -30, 30, 3600)
_ALARM: Final = ("set_vm_memory_high_watermark", "absolute", "1MB")
_CALM: Final = ("set_vm_memory_high_watermark", "0.4")
#: How many answers should lie in the response queue when it is deleted.
_ANSWERS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens, to which of those it can happen to, and for how long."""

    after: float  # seconds since the fault before
    kind: str
    victim: int
    lasts: float


KINDS: Final = {
    "kill a server": 4,
    "kill a worker": 4,
    "freeze a server": 2,
    "freeze a worker": 2,
    "stop a worker": 2,
    "cut a wire": 4,
    "silence a wire": 3,
    "refuse on a wire": 2,
    "slow a wire": 2,
    "lose a commit": 3,
    "restart the broker": 1,
    "kill the broker": 1,
    "wipe the broker": 1,
    "restart the database": 1,
    "kill the database": 1,
    "freeze a worker for long": 2,
    "freeze a server for long": 1,
    "delete a work queue": 2,
    "delete the response queue": 2,
    "alarm the broker": 1,
    "step the clock": 1,
    "cancel a job": 2,
    "retry a job": 2,
    "delete a job": 2,
    "pause a job": 2,
    "pause a key": 2,
    "forceretry a task": 2,
}


def schedule(seed: int, seconds: float) -> list[Fault]:
    """The faults of a seed, for so long; always the same ones."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    while sum(fault.after for fault in faults) < seconds:
        faults.append(
            Fault(
                after=round(chance.uniform(*_PAUSES), 2),
                kind=chance.choices([*KINDS], [*KINDS.values()])[0],
                victim=chance.randrange(1_000_000),
                lasts=round(chance.uniform(*_LASTS), 2),
            )
        )
    return faults[:-1]


@dataclass(slots=True)
class Place:
    """Where a server or a worker stands: it is started anew there whenever it is gone."""

    name: str
    start: Callable[[], Awaitable[Process]]
    wires: Sequence[Proxy]
    process: Process | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def man(self) -> None:
        async with self.starting:
            if self.process is None or not self.process.alive:
                with suppress(AssertionError, TimeoutError):  # what it needs is not there now
                    self.process = await self.start()
                    self.process.may_end = True  # as what it needs may go again


class Nemesis:
    """Carries a schedule out on a rig."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._seed = seed
        self._servers: list[Place] = []
        self._workers: list[Place] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Lock()
        self._posted: list[int] = []

    async def run(self, seconds: float) -> None:
        """Load and faults for so long, then heal, recover, and leave the rest to the oracle."""
        await self._settle_in()
        posting = asyncio.create_task(self._post())
        manning = asyncio.create_task(self._man_all())
        try:
            for fault in schedule(self._seed, seconds):
                await asyncio.sleep(fault.after)
                print(f"  {fault.kind} (victim {fault.victim}) for {fault.lasts} s", flush=True)
                doing = asyncio.create_task(self._do(fault))
                self._under_way.add(doing)
                doing.add_done_callback(self._under_way.discard)
        finally:
            posting.cancel()
            await asyncio.gather(*self._under_way)
            manning.cancel()
            await asyncio.wait([posting, manning])
        await self._heal()
        self._rig.healed()
        took = await self._rig.recovered(RECOVERY)
        print(f"healed: {len(self._posted)} jobs done {took:.1f} s later", flush=True)

    # --- those who take part -----------------------------------------------------------------

    async def _settle_in(self) -> None:
        rig = self._rig
        for role in ("api", "runner", None, None):
            broker, store = await rig.proxy_to_broker(), await rig.proxy_to_store()

            async def serve(
                role: str | None = role, broker: Proxy = broker, store: Proxy = store
            ) -> Process:
                return await rig.server(role, broker=broker, store=store, RUNNER=_BRISK)

            self._servers.append(Place(role or _BOTH, serve, (broker, store)))
        for _ in range(_WORKERS):
            wire = await rig.proxy_to_broker()

            async def work(wire: Proxy = wire) -> Process:
                return await rig.worker(broker=wire, WORKER=_LEASED)

            self._workers.append(Place("worker", work, (wire,)))
        for place in self._places:
            await place.man()

    @property
    def _places(self) -> list[Place]:
        return [*self._servers, *self._workers]

    @property
    def _wires(self) -> list[Proxy]:
        return [wire for place in self._places for wire in place.wires]

    async def _man_all(self) -> None:
        while True:
            await asyncio.gather(*(place.man() for place in self._places))
            await asyncio.sleep(0.5)

    async def _post(self) -> None:
        """Post for as long as it lasts, some wrong ones among them; wait when many are open."""
        supply, chance = Workload(self._seed, LIGHT), random.Random(self._seed)
        while True:
            if chance.random() < 0.05:
                with suppress(AssertionError):
                    await self._rig.try_post(supply.unsound_job(), sound=False)
            with suppress(TimeoutError):
                self._posted.append(await self._post_one(supply.job()))
            await self._rig.until(self._has_room, within=3600)

    async def _post_one(self, spec: dict[str, object]) -> int:
        while True:
            with suppress(AssertionError):  # no server is there just now
                return await self._rig.post(spec, within=3600)
            await asyncio.sleep(0.5)

    async def _has_room(self) -> bool:
        return await self._rig.open_jobs() < _OPEN

    # --- what happens to them ------------------------------------------------------------------

    async def _do(self, fault: Fault) -> None:
        rig = self._rig
        match fault.kind.split():
            case ["kill", "a", who]:
                self._victim(fault, who).kill()
            case ["stop", "a", who]:
                self._victim(fault, who).terminate()
            case ["freeze", "a", who, *long]:
                victim = self._victim(fault, who)
                victim.freeze()
                await asyncio.sleep(fault.lasts + (_LONGER if long else 0))
                victim.thaw()
            case ["restart", "the", what]:
                async with self._turns:
                    await asyncio.to_thread(self._service(what).restart)
            case ["kill", "the", what]:
                service = self._service(what)
                async with self._turns:  # one service at a time: an act waits until it is done
                    await asyncio.to_thread(service.kill)
                    await asyncio.sleep(fault.lasts)
                    await asyncio.to_thread(service.start)
            case ["wipe", *_]:
                async with self._turns:
                    await asyncio.to_thread(rig.broker.wipe)
            case ["alarm", *_]:
                async with self._turns:
                    await self._alarm(fault.lasts)
            case ["step", *_]:
                clocks.put_database_clock(rig.folder, _STEPS[fault.victim % len(_STEPS)])
                await asyncio.sleep(fault.lasts)
                clocks.put_database_clock(rig.folder, 0)
            case ["delete", "a", "work", "queue"]:
                async with self._turns:
                    await self._delete_queue(work_queue(CREW[fault.victim % len(CREW)].key))
            case ["delete", "the", "response", "queue"]:
                async with self._turns:
                    await self._delete_answers()
            case [_, "a", "job" | "key" | "task"]:
                await self._act(fault)
            case _:
                await self._do_to_wire(fault)

    async def _do_to_wire(self, fault: Fault) -> None:
        wire = self._wires[fault.victim % len(self._wires)]
        match fault.kind:
            case "cut a wire":
                wire.cut()
                return
            case "silence a wire":
                wire.silence()
            case "refuse on a wire":
                wire.refuse()
            case "slow a wire":
                wire.delay, wire.rate = 0.2, 20_000.0
            case "lose a commit":
                stores = [place.wires[1] for place in self._servers]
                wire = stores[fault.victim % len(stores)]
                wire.drop_after_commit()
        await asyncio.sleep(fault.lasts)
        wire.mend()

    async def _alarm(self, lasts: float) -> None:
        """The broker takes no messages for a while."""
        await asyncio.to_thread(self._rig.broker.control, *_ALARM)
        await asyncio.sleep(lasts)
        await asyncio.to_thread(self._rig.broker.control, *_CALM)

    async def _delete_queue(self, name: str) -> None:
        async with connect(self._rig.ground.amqp_url) as exchange:
            await exchange.delete_queue(name)

    async def _delete_answers(self) -> None:
        """Delete the response queue once answers lie in it that no runner has read."""
        runners = [place.process for place in self._servers if place.name != "api"]
        stopped = [runner for runner in runners if runner is not None and runner.alive]
        for runner in stopped:
            runner.freeze()
        try:
            async with connect(self._rig.ground.amqp_url) as exchange:

                async def filled() -> bool:
                    depth = await exchange.depth(RESPONSE_QUEUE)
                    return depth is None or depth.waiting >= _ANSWERS

                with suppress(TimeoutError):  # nobody has anything to say
                    await self._rig.until(filled, 5)
                await exchange.delete_queue(RESPONSE_QUEUE)
        finally:
            for runner in stopped:
                runner.thaw()

    async def _act(self, fault: Fault) -> None:
        """What a person does to a job, a task or a key; what they pause they resume."""
        act, _, what = fault.kind.split()
        if what == "key":
            key = CREW[fault.victim % len(CREW)].key
            await self._rig.act_on_key("pause", key)
            await asyncio.sleep(fault.lasts)
            await self._rig.act_on_key("resume", key)
            return
        if not self._posted:
            return
        recent = self._posted[-_OPEN:]
        job_id = recent[fault.victim % len(recent)]
        if what == "task":
            if job_tasks := await self._tasks(job_id):
                task_id = job_tasks[fault.victim % len(job_tasks)]
                await self._rig.try_act(act, job_id, task_id)
            return
        await self._rig.try_act(act, job_id)
        if act == "pause":
            await asyncio.sleep(fault.lasts)
            await self._resume(job_id)

    async def _resume(self, job_id: int) -> None:
        """Resume a job, until it is or is gone."""

        async def resumed() -> bool:
            return await self._rig.try_act("resume", job_id) not in (0, 503)

        await self._rig.until(resumed)

    async def _tasks(self, job_id: int) -> list[int]:
        try:
            return await self._rig.tasks_of(job_id)
        except (DBAPIError, OSError):  # the database is not there now
            return []

    async def _heal(self) -> None:
        for wire in self._wires:
            wire.mend()
        for process in self._rig.processes:
            if process.alive:
                process.thaw()
        await asyncio.to_thread(self._rig.broker.start)
        await asyncio.to_thread(self._rig.database.start)
        for place in self._places:
            await place.man()
            assert place.process is not None
            assert place.process.alive, f"{place.name} does not start: {place.process.tail()}"
            place.process.may_end = False

    def _victim(self, fault: Fault, who: str) -> Process:
        places = self._servers if who == "server" else self._workers
        process = places[fault.victim % len(places)].process
        assert process is not None
        return process

    def _service(self, what: str) -> Broker | Database:
        return self._rig.broker if what == "broker" else self._rig.database


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.nemesis", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if chosen.seed is None else chosen.seed
    print(f"seed {seed}: {chosen.seconds:g} s of faults", flush=True)
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            broker = stack.enter_context(provider.private_broker())
            database = stack.enter_context(provider.private_database())
            url = stack.enter_context(database_at(database.url))
            folder = Path(tempfile.mkdtemp(prefix="dane-nemesis-"))
            asyncio.run(
                _haunt(
                    Ground(amqp_url=broker.url, mysql_url=url, broker=broker, database=database),
                    folder,
                    seed=seed,
                    seconds=chosen.seconds,
                )
            )
    except (AssertionError, TimeoutError) as wrong:
        print(f"seed {seed}: {wrong!r}", *getattr(wrong, "__notes__", ()), sep="\n")
        print(f"the history and the logs are in {folder}")
        return 1
    print(f"seed {seed}: nothing lost, doubled or in limbo ({time.monotonic() - began:.0f} s)")
    return 0


async def _haunt(ground: Ground, folder: Path, *, seed: int, seconds: float) -> None:
    await make_tables(ground.mysql_url)
    async with rigged(ground, folder) as rig:
        await Nemesis(rig, seed).run(seconds)


if __name__ == "__main__":
    sys.exit(main())
