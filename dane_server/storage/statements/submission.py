"""Questions and changes of a submission, each a function named after it. No I/O here."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

from dane_server.storage.functions import among, insert_missing, now
from dane_server.storage.tables import (
    NAMELESS,
    edges,
    jobs,
    once,
    owners,
    sources,
    tasks,
)


@cache
def claim_request_keys() -> sa.Insert:
    """Take Idempotency-Keys; one that another transaction is taking makes this one wait."""
    return insert_missing(once).values(job_id=0, created_at=now())


def request_keys(keys: Sequence[str]) -> sa.Select[Any]:
    return sa.select(once.c.request_key, once.c.digest, once.c.job_id).where(
        once.c.request_key.in_(keys)
    )


@cache
def settle_request_key() -> sa.Update:
    """The request with this `key` is answered with this `job`."""
    own = once.c.request_key == sa.bindparam("key")
    return sa.update(once).where(own).values(job_id=sa.bindparam("job"))


def drop_request_keys(keys: Sequence[str]) -> sa.Delete:
    return sa.delete(once).where(once.c.request_key.in_(keys))


@cache
def add_sources() -> sa.Insert:
    return insert_missing(sources)


@cache
def source_urls() -> sa.Select[Any]:
    """Where these sources (`source_ids`) are; held so that deleting a job cannot forget them."""
    return (
        sa.select(sources.c.source_id, sources.c.source_url)
        .where(among(sources.c.source_id, sa.bindparam("source_ids")))
        .with_for_update(read=True)
    )


def owners_named(names: Sequence[str]) -> sa.Select[Any]:
    return sa.select(owners.c.name, owners.c.id).where(owners.c.name.in_(names))


@cache
def add_nameless() -> sa.Insert:
    """The owner of what is nobody's: a store has it before any other, so nobody has its id."""
    return insert_missing(owners).values(id=NAMELESS, name="")


@cache
def add_owners() -> sa.Insert:
    return insert_missing(owners)


@cache
def add_jobs() -> sa.Insert:
    return sa.insert(jobs).values(created_at=now()).returning(jobs.c.id, jobs.c.created_at)


@cache
def add_tasks() -> sa.Insert:
    return sa.insert(tasks).returning(tasks.c.id)


@cache
def add_edges() -> sa.Insert:
    return sa.insert(edges)
