"""Takes tasks for sending, inside a transaction.

Whoever claims tasks of a key holds the key's row until the commit: two runners that counted
the same window at once would both fill it, and so with every limit of the key. What takes a place
are the rows of tasks themselves, so that nothing has to be given back. Rows are locked in this
order everywhere: tasks, jobs, keys. A claim takes keys before tasks, but no task that another
holds, and so waits for none.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, NamedTuple

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.job import JobId, TaskId
from dane_core.routing import MAX_PRIORITY
from dane_core.states import SENT
from dane_server.storage.candidates import Search
from dane_server.storage.chunk import ROWS
from dane_server.storage.fairness import InFlight, common, risen, share_out
from dane_server.storage.inline import NOTHING
from dane_server.storage.rate import Rate
from dane_server.storage.statements import dispatch as sql
from dane_server.storage.trip import defer
from dane_server.storage.view import Claim

#: How often a claim looks further when all it had chosen was held by others.
_TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Claiming:
    """What a claim is to keep to.

    `put_off` is told in how many seconds there may be more, though nobody rings: when the rate
    of a key lets its next task go, or at once, where a claim has not seen everything. `unbound`
    are routing keys that had no queue lately; what finds none is tried `again` after some time.
    """

    window: int
    limit: int
    lease: timedelta
    again: timedelta = timedelta(0)
    unbound: AbstractSet[str] = frozenset()
    ageing: timedelta = timedelta(0)
    put_off: Callable[[float], None] = lambda _: None
    search: Search = field(default_factory=Search)

    @property
    def common(self) -> int:
        """Of the window, what is there for jobs that have some in flight already."""
        return common(self.window)


async def claim_ready(connection: AsyncConnection, asked: Claiming) -> list[Claim]:
    """Claim tasks of each key, as far as its window and its limits have room, in fair shares.

    Keys share what may be claimed: one that workers empty faster than it is filled would
    otherwise leave nothing to those behind it.
    """
    ready = sorted(await connection.scalars(sql.keys_ready()))
    if not ready:
        return []
    keys = ready if len(ready) <= asked.limit else sorted(random.sample(ready, asked.limit))
    held = await _held(connection, keys)  # not those just paused
    flights = await _flights(connection, sorted(held))
    rooms = {key: _room(held[key], flights[key], asked.window) for key in held}
    full = _full(asked, rooms, flights)
    if full and (wait := asked.search.until_worth_it()):
        asked.put_off(wait)
        rooms |= dict.fromkeys(full, 0)
        full = frozenset()
    claims: list[Claim] = []
    passing: set[int] = set()
    for _ in range(_TRIES):
        chosen = await _chosen(connection, asked, (rooms, flights), passing)
        claims = await _locked(connection, chosen)
        if claims or not chosen.ids:
            break
        passing |= set(chosen.ids)  # all held by others: there may be something behind them
    if full and full.isdisjoint(claim.key for claim in claims):
        asked.search.note_vain()
    await _take(connection, claims, asked.lease)
    await _spend(connection, held, claims, asked.put_off)
    is_all = len(claims) == len(chosen.ids) and chosen.whole.issuperset(ready)
    if claims and (passing or not is_all):
        asked.put_off(0.0)
    return claims


class _Chosen(NamedTuple):
    """The ids of tasks to claim, and the keys of which no other could have been chosen.

    `risen` has those that have waited so long that they count as of another rank. So they do on
    the broker: there they would be behind what kept them waiting before.
    """

    ids: list[int]
    whole: set[str]
    risen: Mapping[int, int]


async def _chosen(
    connection: AsyncConnection,
    asked: Claiming,
    standing: tuple[Mapping[str, int], Mapping[str, "_Flight"]],
    passing: set[int],
) -> _Chosen:
    """Choose tasks; what one key does not use is shared among the others."""
    rooms, flights = dict(standing[0]), standing[1]
    chosen: dict[str, list[int]] = {}
    whole = {key for key, room in rooms.items() if room <= 0}
    early: dict[int, int] = {}
    shares = even_shares(asked.limit, rooms)
    while more := [key for key, share in shares.items() if share > len(chosen.get(key, ()))]:
        for key in more:
            found = await asked.search.find(connection, key, shares[key], passing)
            groups = found.groups()
            weights = await _weights(connection, {group.owner for group in groups})
            in_flight = InFlight(flights[key].jobs, weights)
            ageing = asked.ageing.total_seconds()
            past = asked.search.past[key]
            open_to_all = _common(asked, flights[key])
            reserved = max(shares[key] - open_to_all, 0)
            taken = share_out(
                groups, in_flight, shares[key], reserved=reserved, ageing=ageing, past=past
            )
            chosen[key] = found.take(taken)
            if levels := risen(groups, in_flight, ageing):
                firsts = found.firsts()
                early |= {firsts[number]: rank for number, rank in levels.items()}
            number = len(chosen[key])
            is_left_to_new = open_to_all <= number < shares[key]
            if found.are_all or is_left_to_new or number == standing[0][key]:
                whole.add(key)
            if len(chosen[key]) < shares[key]:
                rooms[key] = len(chosen[key])
        shares = even_shares(asked.limit, rooms)
    ids = [task_id for key in sorted(chosen) for task_id in chosen[key]]
    return _Chosen(ids, whole, early)


async def _weights(connection: AsyncConnection, owners: set[int]) -> dict[int, int]:
    """What owners weigh; one alone has nobody to be weighed against."""
    if len(owners) < 2:
        return {}
    weights = await connection.execute(sql.weights_of(), {"ids": sorted(owners)})
    return {row.id: row.weight for row in weights}


async def _locked(connection: AsyncConnection, chosen: _Chosen) -> list[Claim]:
    """Those of the chosen that can be had now, locked, in the order they were chosen in."""
    if not chosen.ids:
        return []
    found = await connection.execute(sql.sendable(), {"ids": sorted(chosen.ids)})
    rows = {row.id: row for row in found}
    return [_found(rows[one], chosen.risen.get(one)) for one in chosen.ids if one in rows]


def _found(row: sa.Row[Any], rank: int | None) -> Claim:
    """A claim, perhaps as of another rank; of a job that has not begun nothing was answered."""
    claim = _claim(row)
    if rank is not None:
        claim = replace(claim, priority=MAX_PRIORITY - rank)
    return replace(claim, earlier=NOTHING) if row.job_not_begun else claim


async def _take(connection: AsyncConnection, claims: Sequence[Claim], lease: timedelta) -> None:
    if ids := sorted(claim.task_id for claim in claims):
        await defer(connection, sql.claim(), {"ids": ids, "seconds": lease.total_seconds()})


class _Flight:
    """What of a key is sent, and what runs."""

    def __init__(self) -> None:
        self.jobs = Counter[tuple[int, int]]()
        self.sent = self.running = 0

    def add(self, row: sa.Row[Any]) -> None:
        self.jobs[row.owner_id, row.job_id] += row.size
        if row.state in SENT:
            self.sent += row.size
        else:
            self.running += row.size


async def _flights(connection: AsyncConnection, keys: Sequence[str]) -> dict[str, _Flight]:
    flights = {key: _Flight() for key in keys}
    if keys:
        for row in await connection.execute(sql.in_flight(), {"keys": keys}):
            flights[row.task_key].add(row)
    return flights


def _room(key: sa.Row[Any], flight: "_Flight | sa.Row[int, int, int]", window: int) -> int:
    """How many more tasks of a held key may be sent."""
    room = window - flight.sent
    if key.concurrency is not None:
        room = min(room, key.concurrency - flight.sent - flight.running)
    if key.rate is not None:
        room = min(room, _rate(key).places(key.now))
    return int(room)


def _common(asked: Claiming, flight: "_Flight") -> int:
    """How many more tasks of a key may be sent of jobs that have some in flight."""
    return max(asked.common - flight.sent, 0)


def _full(
    asked: Claiming, rooms: Mapping[str, int], flights: Mapping[str, "_Flight"]
) -> frozenset[str]:
    """The keys of which only reserved places are left."""
    return frozenset(
        key for key, room in rooms.items() if room > 0 and not _common(asked, flights[key])
    )


def _rate(key: sa.Row[Any]) -> Rate:
    return Rate(per_second=key.rate, burst=key.burst, next_at=key.next_at)


async def _spend(
    connection: AsyncConnection,
    held: Mapping[str, sa.Row[Any]],
    claims: Sequence[Claim],
    put_off: Callable[[float], None],
) -> None:
    """Write down what claims take from the rates of their keys, and say when more may go."""
    taken = Counter(claim.key for claim in claims)
    for key, row in held.items():
        if row.rate is None:
            continue
        next_at = _rate(row).after(taken[key], row.now)
        if taken[key]:
            await defer(connection, sql.put_off_next(), {"key": key, "time": next_at})
        left = Rate(per_second=row.rate, burst=row.burst, next_at=next_at)
        if wait := left.until_next(row.now):
            put_off(wait)


def even_shares(limit: int, rooms: Mapping[str, int]) -> dict[str, int]:
    """Share `limit` places among keys: to each the same, but no more than it has room for."""
    shares: dict[str, int] = {}
    fullest_first = sorted(sorted(rooms.items(), reverse=True), key=lambda one: one[1])
    for asked, (key, room) in enumerate(fullest_first):
        shares[key] = max(min(room, limit // (len(rooms) - asked)), 0)
        limit -= shares[key]
    return shares


def _claim(row: sa.Row[Any]) -> Claim:
    return Claim(
        task_id=TaskId(row.id),
        job_id=JobId(row.job_id),
        key=row.task_key,
        type=row.type,
        name=row.name,
        args=orjson.loads(row.args) if row.args else {},
        priority=MAX_PRIORITY - row.rank,
        timeout=row.timeout,
        attempt=row.attempt,
        dispatch=row.dispatch + 1,
        fanin=row.fanin,
    )


async def claim_along(
    connection: AsyncConnection,
    free: Sequence[sa.Row[Any]],
    places: Mapping[str, int],
    asked: Claiming,
) -> list[Claim]:
    """Claim locked tasks that this transaction lets go, as far as there is room for them.

    `places` are those in the exchange, by key, that this transaction has made free. Not claimed
    is what is of a key that has others ready: whose turn it is, is found out with them.
    """
    by_key: dict[str, list[sa.Row[Any]]] = {}
    if len(free) <= ROWS and asked.window:
        for task in sorted(free, key=lambda task: (task.rank, task.id)):
            if not task.stopped:
                by_key.setdefault(task.task_key, []).append(task)
    passed_on = {key for key, own in by_key.items() if _may_pass_on(own, places.get(key, 0))}
    claims = [_claim(task) for key in passed_on for task in by_key.pop(key)]
    claims += await _claim_of_room(connection, by_key, asked.common)
    if ids := sorted(claim.task_id for claim in claims):
        taken = {"ids": ids, "seconds": asked.lease.total_seconds()}
        await defer(connection, sql.claim_free(), taken)
    return claims


def _may_pass_on(own: Sequence[sa.Row[Any]], places: int) -> bool:
    """Whether tasks of a key may have the places of those before them.

    What a key has in the exchange stays the same then: nobody has to count it, or to hold it.
    """
    return len(own) <= places and own[0].is_open and not own[0].others_ready


async def _claim_of_room(
    connection: AsyncConnection, by_key: Mapping[str, Sequence[sa.Row[Any]]], window: int
) -> list[Claim]:
    """Claims of what there is room for, to be written down by the caller."""
    held = await _held(connection, sorted(by_key)) if by_key else {}
    claims: list[Claim] = []
    for key, row in held.items():
        room = max(await _room_alone(connection, row, window), 0)
        claims += [_claim(task) for task in by_key[key][:room]]
    await _spend(connection, held, claims, lambda _: None)
    return claims


async def _room_alone(connection: AsyncConnection, key: sa.Row[Any], window: int) -> int:
    """How many tasks that are not ready yet may be claimed: none if there are others."""
    limits = {"key": key.task_key, "window": window, "running": key.concurrency or 0}
    standing = (await connection.execute(sql.standing_of_key(), limits)).one()
    return 0 if standing.ready else _room(key, standing, window)


async def _held(connection: AsyncConnection, keys: Sequence[str]) -> dict[str, sa.Row[Any]]:
    """Hold the windows of some keys, given in order; returns those that are not paused."""
    rows = (await connection.execute(sql.hold_keys(), {"keys": keys})).all()
    if missing := sorted(set(keys).difference(row.task_key for row in rows)):
        await connection.execute(sql.add_keys(), [{"task_key": key} for key in missing])
        rows = (await connection.execute(sql.hold_keys(), {"keys": keys})).all()
    return {row.task_key: row for row in rows if not row.paused}


async def mark_queued(
    connection: AsyncConnection, claims: Sequence[Claim], horizon: timedelta
) -> None:
    """Claimed tasks lie in their queues; somebody looks at them again after the horizon."""
    await defer(connection, sql.mark_queued(), _sent(claims, horizon))


async def start_jobs(connection: AsyncConnection, claims: Sequence[Claim]) -> None:
    """Say that the jobs of claimed tasks have begun, of those where it is not said yet."""
    await defer(connection, sql.start_jobs(), {"ids": sorted({one.job_id for one in claims})})


async def mark_unroutable(
    connection: AsyncConnection, claims: Sequence[Claim], again: timedelta
) -> None:
    """Claimed tasks found no queue; they are tried again after some time."""
    await defer(connection, sql.mark_unroutable(), _sent(claims, again))


def _sent(claims: Sequence[Claim], look_after: timedelta) -> dict[str, Any]:
    tickets = sorted((claim.task_id, claim.dispatch) for claim in claims)
    ids = [task_id for task_id, _ in tickets]
    return {"ids": ids, "tickets": tickets, "seconds": look_after.total_seconds()}
