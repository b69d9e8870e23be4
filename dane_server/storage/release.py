"""Walks the edges of a graph inside a transaction: lets successors go, or makes them wait again.

`pending` of a node is the number of its predecessors that are not done: those that never let
it go (`released` is false), and those that did but were asked to do their work again before
the node went ahead (`edge.reopened`). The transaction that brings it to 0 lets the node go.

A node with very many successors lets them go in a walk of many transactions: a row of
`releasing` says how far it came, and those behind that place are waiting for it still.
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import TaskState
from dane_server.storage.chunk import chunks
from dane_server.storage.statements import release as sql
from dane_server.storage.statements.recording import living_jobs
from dane_server.storage.tally import Tally
from dane_server.storage.trip import defer, read

#: Successors that are let go in the transaction in which those before them are done.
_AT_ONCE: Final = 2000
#: Successors in each transaction of a walk.
_STEP: Final = 1000


async def release(
    connection: AsyncConnection,
    done: Sequence[sa.Row[Any]],
    tally: Tally,
    *,
    waiting: Sequence[sa.Row[Any]] | None = None,
) -> list[sa.Row[Any]]:
    """Let go what waited for some nodes; returns the tasks that are free now.

    They are counted as ready, and it is the caller's to make them so (`make_ready`), or to go
    further with them at once: until then they stand as before. Of each node `released` says
    whether it had let its successors go before. Those with too many of them are left to walks
    (`go_on`). What is `waiting` for the nodes is read, unless it is known.
    """
    free: list[sa.Row[Any]] = []
    room = _AT_ONCE
    while done:
        some, others = _within(done, room)
        room -= sum(node.fanout for node in some)
        await _begin_walks(connection, others, tally)
        if waiting is None or others:
            waiting = await _waiting_for(connection, some)
        freed, done = await _let_go(connection, waiting, tally)
        waiting = None
        free += freed
    return free


async def make_ready(connection: AsyncConnection, free: Sequence[sa.Row[Any]]) -> None:
    """Let tasks that are free be sent, when it is their turn."""
    for some in chunks(task.id for task in free):
        await defer(connection, sql.make_ready(), {"ids": some})


def _within(done: Sequence[sa.Row[Any]], room: int) -> tuple[list[sa.Row[Any]], list[sa.Row[Any]]]:
    """The nodes whose successors fit into a transaction together, and the others."""
    some: list[sa.Row[Any]] = []
    others: list[sa.Row[Any]] = []
    for node in sorted(done, key=lambda node: node.fanout):
        fits = node.fanout <= room
        room -= node.fanout if fits else 0
        (some if fits else others).append(node)
    return some, others


async def _begin_walks(
    connection: AsyncConnection, nodes: Sequence[sa.Row[Any]], tally: Tally
) -> None:
    for some in chunks(nodes):
        rows = [
            {"src": node.id, "job_id": node.job_id, "after_dst": 0, "again": node.released}
            for node in some
        ]
        await defer(connection, sql.begin_release(), rows)
        for node in some:
            tally.let_go(node.job_id, 1)


async def go_on(connection: AsyncConnection, src: int) -> bool:
    """Let the next successors of a node go; whether there were any.

    Each is let go once: the place where this stops is written down in the same transaction.
    """
    node = (await connection.execute(sql.releasing_node(src))).one_or_none()
    walk = (await connection.execute(sql.releases_of([src]))).one_or_none()
    if walk is None:
        return False
    tally = Tally()
    some: list[int] = []
    if node is not None and await _is_living(connection, node.job_id):
        found = sql.next_successors(src, walk.after_dst, _STEP, again=walk.again)
        some = list(await connection.scalars(found))
    if some:
        if walk.again:
            await defer(connection, sql.close_edges_up_to(src, some[-1]))
        await defer(connection, sql.released_up_to(src, some[-1]))
        waiting = await read(connection, sql.nodes(), {"ids": some})
        free, joins = await _let_go(connection, waiting, tally)
        free += await release(connection, joins, tally)
        await make_ready(connection, free)
    if len(some) < _STEP:
        await defer(connection, sql.end_releases([src]))
        tally.let_go(walk.job_id, -1)
    await tally.write(connection)
    return bool(some)


async def _is_living(connection: AsyncConnection, job_id: int) -> bool:
    return (await connection.scalars(living_jobs([job_id]))).one_or_none() is not None


async def _let_go(
    connection: AsyncConnection, waiting: Iterable[sa.Row[Any]], tally: Tally
) -> tuple[list[sa.Row[Any]], list[sa.Row[Any]]]:
    """Take predecessors that are done off nodes; the tasks and the joins that are free now.

    Of each locked node `number` says how many; the same one may come twice.
    """
    done: Counter[int] = Counter()
    nodes: dict[int, sa.Row[Any]] = {}
    for node in waiting:
        done[node.id] += node.number
        nodes[node.id] = node
    free = [node for node in nodes.values() if _is_free(node, done[node.id])]
    held_up = done - Counter({node.id: done[node.id] for node in free})
    for number, alike in _by_number(held_up):
        for ids in chunks(alike):
            await defer(connection, sql.wait_for_fewer(), {"ids": ids, "number": number})
    joins = [node for node in free if node.task_key is None]
    freed = [node for node in free if node.task_key is not None]
    for ids in chunks(node.id for node in joins):
        await defer(connection, sql.pass_joins(), {"ids": ids})
    for node in freed:
        tally.move(node.job_id, TaskState(node.state), TaskState.READY)
    return freed, joins


def _is_free(node: sa.Row[Any], done: int) -> bool:
    """Whether a node waits for nothing else, and has not gone ahead yet."""
    return node.pending == done and node.state in (TaskState.BLOCKED, TaskState.HELD)


async def _waiting_for(
    connection: AsyncConnection, done: Sequence[sa.Row[Any]]
) -> list[sa.Row[Any]]:
    waiting: list[sa.Row[Any]] = []
    for some in chunks(node.id for node in done if not node.released):
        waiting += await read(connection, sql.successors(), {"ids": some})
    for some in chunks(node.id for node in done if node.released):
        if reopened := await read(connection, sql.reopened_successors(), {"ids": some}):
            waiting += reopened
            await defer(connection, sql.close_edges(some))
    return waiting


def _by_number(waiting: Counter[int]) -> list[tuple[int, list[int]]]:
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for node, number in sorted(waiting.items()):
        alike[number].append(node)
    return sorted(alike.items(), key=lambda item: item[1])


async def stop_walks(connection: AsyncConnection, nodes: Sequence[int], tally: Tally) -> None:
    """Nodes that may be letting their successors go begin anew: those not let go yet wait on."""
    for some in chunks(nodes):
        walks = (await connection.execute(sql.releases_of(some))).all()
        for walk in walks:
            if not walk.again:
                await defer(connection, sql.reopen_edges_behind(walk.src, walk.after_dst))
            tally.let_go(walk.job_id, -1)
        if walks:
            await defer(connection, sql.end_releases([walk.src for walk in walks]))


async def reopen_after(connection: AsyncConnection, nodes: Sequence[int], tally: Tally) -> None:
    """Nodes that had let their successors go will do their work again.

    Successors that have not gone ahead wait for them once more. A join that all of its
    predecessors had passed waits again too, on behalf of what waits behind it.
    """
    while nodes:
        behind: list[int] = []
        await stop_walks(connection, nodes, tally)
        for some in chunks(nodes):
            async for out in _onward(connection, some):
                waits = [edge for edge in out if not edge.reopened and _has_not_gone(edge)]
                joins = {edge.dst for edge in out if _is_passed_join(edge)}
                passed = [edge for edge in out if edge.dst in joins]
                await _reopen(connection, [(edge.src, edge.dst) for edge in [*waits, *passed]])
                await _block_joins(connection, sorted(joins))
                behind += sorted(joins)
        nodes = behind


async def _onward(
    connection: AsyncConnection, nodes: Sequence[int]
) -> AsyncIterator[Sequence[sa.Row[Any]]]:
    """The edges out of some nodes, so many at a time that nobody else has to wait for them."""
    left = sorted(nodes)
    while left:
        out = (await connection.execute(sql.onward(left, _STEP))).all()
        yield out
        left = [node for node in left if node > out[-1].src] if len(out) == _STEP else []
        while len(out) == _STEP:
            last = out[-1]
            behind = sql.onward_behind(last.src, last.dst, _STEP)
            out = (await connection.execute(behind)).all()
            yield out


def _has_not_gone(edge: sa.Row[Any]) -> bool:
    return bool(edge.pending > 0 or edge.state == TaskState.HELD)


def _is_passed_join(edge: sa.Row[Any]) -> bool:
    return edge.task_key is None and edge.pending == 0


async def reopen_before(connection: AsyncConnection, nodes: Sequence[int]) -> None:
    """Nodes that were let go begin anew: they wait for those before them that are not done now."""
    for some in chunks(nodes):
        undone = await connection.execute(sql.undone_again(some))
        await _reopen(connection, [(edge.src, edge.dst) for edge in undone])


async def _reopen(connection: AsyncConnection, pairs: Sequence[tuple[int, int]]) -> None:
    for some in chunks(pairs):
        await defer(connection, sql.reopen_edges(some))
    for number, nodes in _by_number(Counter(dst for _, dst in pairs)):
        for some in chunks(nodes):
            await defer(connection, sql.wait_for_more(some, number))


async def _block_joins(connection: AsyncConnection, joins: Sequence[int]) -> None:
    for some in chunks(joins):
        await defer(connection, sql.block_joins(some))
