"""The tables. `migrations/` creates exactly these; a test compares the two."""

from collections.abc import Iterable
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine

from dane_core.states import JobStatus, TaskState

metadata: Final = sa.MetaData()


def _on_mariadb(portable: TypeEngine[Any], precise: TypeEngine[Any]) -> TypeEngine[Any]:
    return portable.with_variant(precise, "mysql", "mariadb")


def _ascii(length: int) -> TypeEngine[Any]:
    """Keys and ids: compared byte by byte, so that no two of them collide."""
    return _on_mariadb(
        sa.String(length), mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    )


def _text(length: int) -> TypeEngine[Any]:
    """People's words, compared byte by byte, spaces at the end included."""
    return _on_mariadb(
        sa.String(length),
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin"),
    )


def values_of(states: Iterable[TaskState]) -> list[str]:
    """States as they stand in their column."""
    return [state.value for state in states]


#: Documents are JSON in a text column: MariaDB's JSON type refuses nesting deeper than 31.
LONG: Final = _on_mariadb(sa.Text(), mysql.LONGTEXT(charset="utf8mb4"))
ID: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME: Final = _on_mariadb(sa.DateTime(), mysql.DATETIME(fsp=6))
REAL: Final = _on_mariadb(sa.Float(), mysql.DOUBLE(asdecimal=False))
_INNODB: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4"}


def _id(name: str = "id", *, auto: bool = False, key: bool = True) -> sa.Column[int]:
    return sa.Column(name, ID, primary_key=key, autoincrement=auto, nullable=False)


def _number(name: str, default: int = 0) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, server_default=str(default))


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default="0")


def _time(name: str, *, nullable: bool = True) -> sa.Column[Any]:
    return sa.Column(name, TIME, nullable=nullable)


#: The status follows from the counters, so the two can never disagree.
STATUS_SQL: Final = (
    "CASE"
    f" WHEN succeeded + forgiven + skipped = total THEN '{JobStatus.SUCCEEDED}'"
    f" WHEN paused = 1 THEN '{JobStatus.PAUSED}'"
    f" WHEN active > 0 AND started_at IS NULL THEN '{JobStatus.ACCEPTED}'"
    f" WHEN active > 0 THEN '{JobStatus.RUNNING}'"
    f" WHEN cancelled > 0 THEN '{JobStatus.CANCELLED}'"
    f" ELSE '{JobStatus.FAILED}' END"
)

sources: Final = sa.Table(
    "source",
    metadata,
    sa.Column("source_id", _text(255), primary_key=True),
    sa.Column("source_url", LONG, nullable=False),
    **_INNODB,
)

#: Who asks for jobs. The nameless one is who asks when nobody says who it is.
NAMELESS: Final = 1

owners: Final = sa.Table(
    "owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True, nullable=False),
    sa.Column("name", _ascii(100), nullable=False),
    _number("weight", 1),  # its share of a key, next to that of others who want it too
    sa.Column("max_open", sa.Integer),  # how much unfinished work it may have at once
    sa.Index("owner_name", "name", unique=True),
    sqlite_autoincrement=True,
    **_INNODB,
)

jobs: Final = sa.Table(
    "job",
    metadata,
    _id(auto=True),
    sa.Column("source_id", _text(255), nullable=False),
    sa.Column("source_url", LONG, nullable=False),
    sa.Column("type", _ascii(32)),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("metadata", LONG, nullable=False),
    sa.Column("shared", LONG, nullable=False),
    sa.Column("tree", LONG, nullable=False),
    _flag("paused"),
    _flag("cancelling"),  # a cancellation is under way; its tasks are not sent
    # Where its tasks are; those not counted here are blocked.
    _number("total"),
    _number("active"),
    _number("held"),
    _number("succeeded"),
    _number("failed"),
    _number("forgiven"),
    _number("cancelled"),
    _number("skipped"),
    _time("created_at", nullable=False),
    _time("started_at"),
    _time("finished_at"),
    sa.Column("status", _ascii(12), sa.Computed(STATUS_SQL, persisted=True)),
    _time("cut_at"),  # when a cancellation last took work on it away from workers
    _number("owner_id", NAMELESS),
    sa.Index("job_status", "status", "id"),
    sa.Index("job_source", "source_id", "id"),
    sa.Index("job_finished", "finished_at", "id"),
    sa.Index("job_cancelling", "cancelling", "id"),
    sa.Index("job_owner", "owner_id", "id"),
    sqlite_autoincrement=True,
    **_INNODB,
)

#: Tasks, and the joins between blocks of them (`task_key` is null): both are nodes of the
#: graph, so one loop releases them. A task row is its own outbox: READY asks to be sent.
tasks: Final = sa.Table(
    "task",
    metadata,
    _id(auto=True),
    _id("job_id", key=False),
    _number("seq"),
    sa.Column("task_key", _ascii(100)),
    sa.Column("name", _text(100)),
    sa.Column("args", LONG),
    _number("rank", 9),  # 10 - priority: one ascending index gives the order of sending
    sa.Column("timeout", REAL),
    sa.Column("retry", _ascii(200)),
    _flag("allow_failure"),
    _flag("solo"),  # the only task of its key in the job
    sa.Column("state", _ascii(12), nullable=False, server_default=TaskState.BLOCKED.value),
    sa.Column("outcome", sa.Integer),
    sa.Column("message", LONG),
    _number("attempt", 1),
    _number("dispatch"),
    _number("tries"),  # attempts that failed for now since a person last asked for one
    _number("pending"),  # predecessors that are not done
    _number("fanin"),  # predecessors, joins included
    _number("fanout"),  # successors, joins included
    _flag("released"),  # has let its successors go
    sa.Column("worker", _text(200)),
    sa.Column("progress", REAL),
    _time("due_at"),  # when somebody looks at it again; of a leased task, when its lease ends
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at"),
    _flag("leased"),  # runs on a lease here, and not on a message in the exchange
    _number("beats"),  # heartbeats of the lease: one that has stood still is worth a look
    _number("starts"),  # times it was let start again because it may have killed a worker
    sa.Column("starters", LONG),  # the workers that were let: JSON, a list of their ids
    _number("owner_id", NAMELESS),  # that of its job
    sa.Index("task_ready", "state", "task_key", "rank", "owner_id", "job_id", "id"),
    sa.Index("task_due", "state", "due_at"),
    sa.Index("task_job", "job_id", "state", "seq"),
    sqlite_autoincrement=True,
    **_INNODB,
)

#: What tasks of one key and state are sorted by: the index `task_ready` behind those two.
BY_OWNER: Final = (tasks.c.rank, tasks.c.owner_id, tasks.c.job_id, tasks.c.id)

edges: Final = sa.Table(
    "edge",
    metadata,
    _id("src"),
    _id("dst"),
    _flag("reopened"),  # src is done once already, but was asked to do it again before dst ran
    sa.Index("edge_back", "dst", "src"),
    **_INNODB,
)

#: Nodes that are done, and whose many successors are let go some at a time.
releasing: Final = sa.Table(
    "releasing",
    metadata,
    _id("src"),
    _id("job_id", key=False),
    sa.Column("after_dst", ID, nullable=False),  # successors up to this one have been let go
    _flag("again"),  # it had let them go before: only those that wait again (`reopened`)
    **_INNODB,
)

#: Changes of a job's priority that its tasks have yet to follow, in the order they were asked for.
rerankings: Final = sa.Table(
    "reranking",
    metadata,
    _id(auto=True),
    _id("job_id", key=False),
    _number("old_rank"),  # tasks with this one get the new one; others have one of their own
    _number("new_rank"),
    _number("after_seq", -1),  # tasks up to this place have been gone through
    sa.Index("reranking_job", "job_id", "id"),
    sqlite_autoincrement=True,
    **_INNODB,
)

#: Jobs that are retried: what is gone through (a place in a list of states), and how far.
retryings: Final = sa.Table(
    "retrying",
    metadata,
    _id("job_id"),
    _number("step"),
    _number("after_seq", -1),  # those up to this one run again
    **_INNODB,
)

attempts: Final = sa.Table(
    "attempt",
    metadata,
    _id("task_id"),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("worker", _text(200)),
    _number("outcome"),
    sa.Column("message", LONG),
    _time("queued_at"),
    _time("started_at"),
    _time("finished_at", nullable=False),
    sa.Column("runtime", REAL),
    sa.Index("attempt_finished", "finished_at"),
    **_INNODB,
)

answers: Final = sa.Table(
    "answer",
    metadata,
    _id("task_id"),
    _id("job_id", key=False),
    sa.Column("task_key", _ascii(100), nullable=False),
    _flag("solo"),
    _number("attempt"),
    sa.Column("body", LONG, nullable=False),
    sa.Index("answer_job", "job_id", "solo"),
    **_INNODB,
)

#: Answers that were not recorded, counted: what is shown of a zombie, a duplicate, a forgery.
rejected: Final = sa.Table(
    "rejected",
    metadata,
    _id("task_id"),  # 0 for tasks that do not exist
    sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("reason", _ascii(16), primary_key=True),
    _number("times"),
    sa.Column("worker", _text(200)),
    _time("last_at", nullable=False),
    sa.Index("rejected_last", "last_at"),
    **_INNODB,
)

workers: Final = sa.Table(
    "worker",
    metadata,
    sa.Column("id", _text(200), primary_key=True),
    sa.Column("host", _text(255), nullable=False),
    _number("pid"),
    _number("slots"),
    sa.Column("inbox", _ascii(255), nullable=False),
    sa.Column("task_keys", LONG, nullable=False),
    sa.Column("running", LONG, nullable=False),
    _time("seen_at", nullable=False),
    _time("since", nullable=False),
    **_INNODB,
)

task_keys: Final = sa.Table(
    "task_key",
    metadata,
    sa.Column("task_key", _ascii(100), primary_key=True),
    _flag("paused"),
    sa.Column("offer", LONG),
    sa.Column("concurrency", sa.Integer),  # how many may be sent or running at once
    sa.Column("rate", REAL),  # how many may be sent in a second,
    sa.Column("burst", sa.Integer),  # and how many of them together
    _time("next_at"),  # when the next one is due at this rate
    **_INNODB,
)

once: Final = sa.Table(
    "once",
    metadata,
    sa.Column("request_key", _ascii(255), primary_key=True),
    sa.Column("digest", _ascii(64), nullable=False),
    _id("job_id", key=False),
    _time("created_at", nullable=False),
    sa.Index("once_created", "created_at"),
    **_INNODB,
)

#: Deleted jobs whose tasks are still being removed, some at a time.
deletions: Final = sa.Table(
    "deletion",
    metadata,
    _id("job_id"),
    **_INNODB,
)

secrets: Final = sa.Table(
    "secret",
    metadata,
    sa.Column("name", _ascii(32), primary_key=True),
    sa.Column("value", _ascii(128), nullable=False),
    **_INNODB,
)

#: What all servers together have counted of themselves, for whoever watches them.
totals: Final = sa.Table(
    "total",
    metadata,
    sa.Column("name", _ascii(32), primary_key=True),
    sa.Column("label", _ascii(64), primary_key=True),
    sa.Column("times", ID, nullable=False),
    **_INNODB,
)

#: What servers tell each other: the last word of each name.
bulletins: Final = sa.Table(
    "bulletin",
    metadata,
    sa.Column("name", _ascii(32), primary_key=True),
    _time("written_at", nullable=False),
    sa.Column("text", LONG, nullable=False),
    **_INNODB,
)
