"""Create the table of tasks."""

import sqlalchemy as sa

from dane_server.storage.ddl import (
    BIG,
    LONG,
    REAL,
    TIME,
    ascii_text,
    create_index,
    create_table,
    drop_table,
    flag,
    key,
    number,
    optional,
    required,
    text,
)

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_table(
        "task",
        key("id", counts_up=True),
        required("job_id", BIG),
        number("seq"),
        optional("task_key", ascii_text(100)),
        optional("name", text(100)),
        optional("args", LONG),
        number("rank", 9),
        optional("timeout", REAL),
        optional("retry", ascii_text(200)),
        flag("allow_failure"),
        flag("solo"),
        sa.Column("state", ascii_text(12), nullable=False, server_default="blocked"),
        optional("outcome", sa.Integer()),
        optional("message", LONG),
        number("attempt", 1),
        number("dispatch"),
        number("tries"),
        number("pending"),
        number("fanin"),
        number("fanout"),
        flag("released"),
        optional("worker", text(200)),
        optional("progress", REAL),
        optional("due_at", TIME),
        optional("queued_at", TIME),
        optional("started_at", TIME),
        optional("finished_at", TIME),
        sqlite_autoincrement=True,
    )
    create_index("task_ready", "task", "state", "task_key", "rank", "id")
    create_index("task_due", "task", "state", "due_at")
    create_index("task_job", "task", "job_id", "state", "seq")


def downgrade() -> None:
    drop_table("task")
