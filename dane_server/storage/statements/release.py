"""Questions and changes along the edges of a graph, each a function named after it. No I/O here.

Those without arguments are made once: they take the `ids` they are about when they are executed.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import sqlalchemy as sa

from dane_core.states import TaskState
from dane_server.storage.functions import among, now
from dane_server.storage.statements.dispatch import CLAIMED
from dane_server.storage.tables import (
    answers,
    edges,
    jobs,
    releasing,
    task_keys,
    tasks,
)

_IDS: Final[sa.BindParameter[Any]] = sa.bindparam("ids")


_OTHERS: Final = tasks.alias("other")


def _node(predecessors: Any, first: Any) -> sa.Select[Any]:
    """What is to be known of a node to let it go, with how many of its predecessors are done.

    What is of other tables are scalars: joins would lock those rows too.
    """
    stopped = sa.select(sa.or_(jobs.c.paused, jobs.c.cancelling)).where(jobs.c.id == tasks.c.job_id)
    has_solo = sa.select(sa.true()).where(answers.c.job_id == tasks.c.job_id, answers.c.solo)
    unlimited = sa.and_(task_keys.c.rate.is_(None), task_keys.c.concurrency.is_(None))
    is_open = sa.select(sa.and_(sa.not_(task_keys.c.paused), unlimited)).where(
        task_keys.c.task_key == tasks.c.task_key
    )
    others_ready = (
        sa.select(sa.true())
        .with_hint(_OTHERS, "FORCE INDEX (task_ready)", "mysql")
        .where(_OTHERS.c.state == TaskState.READY, _OTHERS.c.task_key == tasks.c.task_key)
    )
    return sa.select(
        *CLAIMED,
        tasks.c.state,
        tasks.c.pending,
        tasks.c.fanout,
        tasks.c.released,
        sa.func.coalesce(stopped.scalar_subquery(), sa.true()).label("stopped"),
        sa.func.coalesce(has_solo.limit(1).scalar_subquery(), sa.false()).label("has_solo"),
        sa.func.coalesce(is_open.scalar_subquery(), sa.false()).label("is_open"),
        sa.func.coalesce(others_ready.limit(1).scalar_subquery(), sa.false()).label("others_ready"),
        predecessors.label("number"),
        first.label("first"),
    ).order_by(tasks.c.id)


def _successors(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    # Grouped, they are read before anything is locked, and no edge is.
    waiting = (
        sa.select(
            edges.c.dst, sa.func.count().label("number"), sa.func.min(edges.c.src).label("first")
        )
        .where(among(edges.c.src, _IDS), *conditions)
        .group_by(edges.c.dst)
        .subquery()
    )
    return (
        _node(waiting.c.number, waiting.c.first)
        .prefix_with("STRAIGHT_JOIN", dialect="mysql")
        .join_from(waiting, tasks, tasks.c.id == waiting.c.dst)
        .with_for_update()
    )


@cache
def successors() -> sa.Select[Any]:
    """What waits for these nodes, and for how many of them; locked in the order of the ids."""
    return _successors()


@cache
def only_successors() -> sa.Select[Any]:
    """The same, of those of these nodes that let one successor go, and for the first time."""
    before = tasks.alias("before")
    lets_one_go = sa.select(sa.and_(before.c.fanout == 1, sa.not_(before.c.released)))
    return _successors(lets_one_go.where(before.c.id == edges.c.src).scalar_subquery())


@cache
def reopened_successors() -> sa.Select[Any]:
    return _successors(edges.c.reopened)


@cache
def nodes() -> sa.Select[Any]:
    """These nodes, each waiting for one of its predecessors; locked in the order of their ids."""
    return _node(sa.literal(1), sa.null()).where(among(tasks.c.id, _IDS)).with_for_update()


def close_edges(ids: Sequence[int]) -> sa.Update:
    return sa.update(edges).where(edges.c.src.in_(ids), edges.c.reopened).values(reopened=False)


def reopen_edges(pairs: Sequence[tuple[int, int]]) -> sa.Update:
    return (
        sa.update(edges).where(sa.tuple_(edges.c.src, edges.c.dst).in_(pairs)).values(reopened=True)
    )


@cache
def wait_for_fewer() -> sa.Update:
    """Some predecessors of these nodes are done: `number` of each."""
    fewer = tasks.c.pending - sa.bindparam("number", type_=sa.Integer)
    return sa.update(tasks).where(among(tasks.c.id, _IDS)).values(pending=fewer)


def wait_for_more(ids: Sequence[int], change: int) -> sa.Update:
    """Change the number of predecessors some nodes wait for."""
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(pending=tasks.c.pending + change)


def still_waiting(ids: Sequence[int]) -> sa.Select[Any]:
    return sa.select(tasks.c.id).where(tasks.c.id.in_(ids), tasks.c.pending > 0)


@cache
def pass_joins() -> sa.Update:
    """Joins that wait for nothing any more let go what waits for them."""
    return (
        sa.update(tasks)
        .where(among(tasks.c.id, _IDS))
        .values(state=TaskState.SUCCEEDED, pending=0, released=True)
    )


@cache
def make_ready() -> sa.Update:
    """Locked tasks that wait for nothing any more may be sent."""
    return (
        sa.update(tasks)
        .where(among(tasks.c.id, _IDS))
        .values(state=TaskState.READY, pending=0, due_at=now(), message=None)
    )


def onward(ids: Sequence[int], limit: int) -> sa.Select[Any]:
    """The first edges out of nodes that were done once, with the node at the other end.

    Locked: two nodes in front of one join may begin anew at the same time.
    """
    return _onward(limit).where(edges.c.src.in_(ids))


def onward_behind(src: int, dst: int, limit: int) -> sa.Select[Any]:
    """The next edges out of a node, those behind the one to `dst`."""
    return _onward(limit).where(edges.c.src == src, edges.c.dst > dst)


def _onward(limit: int) -> sa.Select[Any]:
    return (
        sa.select(
            edges.c.src,
            edges.c.dst,
            edges.c.reopened,
            tasks.c.task_key,
            tasks.c.state,
            tasks.c.pending,
        )
        .join_from(edges, tasks, tasks.c.id == edges.c.dst)
        .order_by(edges.c.src, edges.c.dst)
        .limit(limit)
        .with_for_update()
    )


def undone_again(ids: Sequence[int]) -> sa.Select[Any]:
    """Edges into some nodes from those that had let them go, but are not done now.

    Locked: one that is about to be done must see who waits for it again.
    """
    forgiven = sa.and_(tasks.c.state == TaskState.FAILED, tasks.c.allow_failure)
    return (
        sa.select(edges.c.src, edges.c.dst)
        .join_from(edges, tasks, tasks.c.id == edges.c.src)
        .where(
            edges.c.dst.in_(ids),
            tasks.c.released,
            sa.not_(edges.c.reopened),
            tasks.c.state != TaskState.SUCCEEDED,
            sa.not_(forgiven),
        )
        .order_by(edges.c.dst, edges.c.src)
        .with_for_update()
    )


def block_joins(ids: Sequence[int]) -> sa.Update:
    return sa.update(tasks).where(tasks.c.id.in_(ids)).values(state=TaskState.BLOCKED)


# --- nodes with very many successors -----------------------------------------------------------


def begin_release() -> sa.Insert:
    """Let the successors of nodes go later, some at a time."""
    return sa.insert(releasing)


def releases_under_way(limit: int) -> sa.Select[Any]:
    return sa.select(releasing.c.src).order_by(releasing.c.src).limit(limit)


def releasing_node(node: int) -> sa.Select[Any]:
    """A node; locked, before the walk from it is: so does whoever begins or stops one."""
    return sa.select(tasks.c.id, tasks.c.job_id).where(tasks.c.id == node).with_for_update()


def releases_of(nodes: Sequence[int]) -> sa.Select[Any]:
    """How far some nodes have let their successors go; locked."""
    return (
        sa.select(releasing)
        .where(releasing.c.src.in_(nodes))
        .order_by(releasing.c.src)
        .with_for_update()
    )


def next_successors(node: int, after: int, limit: int, *, again: bool) -> sa.Select[Any]:
    """The successors behind the one where one stopped; of one done `again`, those that wait."""
    found = sa.select(edges.c.dst).where(edges.c.src == node, edges.c.dst > after)
    if again:
        found = found.where(edges.c.reopened)
    return found.order_by(edges.c.dst).limit(limit)


def close_edges_up_to(node: int, last: int) -> sa.Update:
    return (
        sa.update(edges)
        .where(edges.c.src == node, edges.c.dst <= last, edges.c.reopened)
        .values(reopened=False)
    )


def released_up_to(node: int, last: int) -> sa.Update:
    return sa.update(releasing).where(releasing.c.src == node).values(after_dst=last)


def reopen_edges_behind(node: int, after: int) -> sa.Update:
    """What was not let go yet waits still, as it waits for one that begins anew."""
    return sa.update(edges).where(edges.c.src == node, edges.c.dst > after).values(reopened=True)


def end_releases(nodes: Sequence[int]) -> sa.Delete:
    return sa.delete(releasing).where(releasing.c.src.in_(nodes))
