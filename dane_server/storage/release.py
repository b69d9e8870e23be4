"""Walks the edges of a graph inside a transaction: lets successors go, or makes them wait again.

`pending` of a node is the number of its predecessors that are not done: those that never let
it go (`released` is false), and those that did but were asked to do their work again before
the node went ahead (`edge.reopened`). The transaction that brings it to 0 lets the node go.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from dane_core.states import TaskState
from dane_server.storage.chunk import chunks
from dane_server.storage.statements import release as sql
from dane_server.storage.tally import Tally

_CHUNK: Final = 1000


async def release(
    connection: AsyncConnection, done: Sequence[int], done_again: Sequence[int], tally: Tally
) -> list[int]:
    """Let go what waited for some nodes; returns the ids of the tasks that became ready.

    `done` finished for the first time, `done_again` had let their successors go before.
    """
    ready: list[int] = []
    while done or done_again:
        waiting = await _waiting_for(connection, done, done_again)
        free = await _no_longer_waiting(connection, waiting)
        joins = [node for node in free if node.task_key is None]
        freed = [node for node in free if node.task_key is not None]
        for some in chunks(node.id for node in joins):
            await connection.execute(sql.pass_joins(some))
        for some in chunks(node.id for node in freed):
            await connection.execute(sql.make_ready(some))
        for node in freed:
            tally.move(node.job_id, TaskState(node.state), TaskState.READY)
        ready += [node.id for node in freed]
        done = [node.id for node in joins if not node.released]
        done_again = [node.id for node in joins if node.released]
    return ready


async def _waiting_for(
    connection: AsyncConnection, done: Sequence[int], done_again: Sequence[int]
) -> Counter[int]:
    waiting: Counter[int] = Counter()
    for some in chunks(done):
        waiting.update(_by_node(await connection.execute(sql.successors(some))))
    for some in chunks(done_again):
        reopened = _by_node(await connection.execute(sql.reopened_successors(some)))
        if reopened:
            waiting.update(reopened)
            await connection.execute(sql.close_edges(some))
    return waiting


async def _no_longer_waiting(
    connection: AsyncConnection, waiting: Counter[int]
) -> list[sa.Row[Any]]:
    """Take the finished predecessors off; those at 0 are free."""
    free: list[sa.Row[Any]] = []
    for number, nodes in _by_number(waiting):
        for some in chunks(nodes):
            await connection.execute(sql.wait_for_more(some, -number))
    for some in chunks(sorted(waiting)):
        free += await connection.execute(sql.free_nodes(some))
    return free


def _by_number(waiting: Counter[int]) -> list[tuple[int, list[int]]]:
    alike: defaultdict[int, list[int]] = defaultdict(list)
    for node, number in sorted(waiting.items()):
        alike[number].append(node)
    return sorted(alike.items(), key=lambda item: item[1])


def _by_node(rows: Iterable[Any]) -> dict[int, int]:
    return {row[0]: row[1] for row in rows}


async def reopen_after(connection: AsyncConnection, nodes: Sequence[int]) -> None:
    """Nodes that had let their successors go will do their work again.

    Successors that have not gone ahead wait for them once more. A join that all of its
    predecessors had passed waits again too, on behalf of what waits behind it.
    """
    while nodes:
        behind: list[int] = []
        for some in chunks(nodes):
            out = (await connection.execute(sql.onward(some))).all()
            waits = [edge for edge in out if not edge.reopened and _has_not_gone(edge)]
            joins = sorted({edge.dst for edge in out if _is_passed_join(edge)})
            passed = [edge for edge in out if edge.dst in joins]
            await _reopen(connection, [(edge.src, edge.dst) for edge in [*waits, *passed]])
            await _block_joins(connection, joins)
            behind += joins
        nodes = behind


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
        await connection.execute(sql.reopen_edges(some))
    for number, nodes in _by_number(Counter(dst for _, dst in pairs)):
        for some in chunks(nodes):
            await connection.execute(sql.wait_for_more(some, number))


async def _block_joins(connection: AsyncConnection, joins: Sequence[int]) -> None:
    for some in chunks(joins):
        await connection.execute(sql.block_joins(some))
