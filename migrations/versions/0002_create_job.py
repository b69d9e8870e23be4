"""Create the table of jobs."""

import sqlalchemy as sa

from dane_server.storage.ddl import (
    LONG,
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

revision = "0002"
down_revision = "0001"

STATUS = (
    "CASE"
    " WHEN succeeded + forgiven + skipped = total THEN 'succeeded'"
    " WHEN paused = 1 THEN 'paused'"
    " WHEN active > 0 AND started_at IS NULL THEN 'accepted'"
    " WHEN active > 0 THEN 'running'"
    " WHEN cancelled > 0 THEN 'cancelled'"
    " ELSE 'failed' END"
)


def upgrade() -> None:
    create_table(
        "job",
        key("id", counts_up=True),
        required("source_id", text(255)),
        required("source_url", LONG),
        optional("type", ascii_text(32)),
        required("priority", sa.Integer()),
        required("metadata", LONG),
        required("shared", LONG),
        required("tree", LONG),
        flag("paused"),
        flag("cancelling"),
        number("total"),
        number("active"),
        number("held"),
        number("succeeded"),
        number("failed"),
        number("forgiven"),
        number("cancelled"),
        number("skipped"),
        required("created_at", TIME),
        optional("started_at", TIME),
        optional("finished_at", TIME),
        sa.Column("status", ascii_text(12), sa.Computed(STATUS, persisted=True)),
        sqlite_autoincrement=True,
    )
    create_index("job_status", "job", "status", "id")
    create_index("job_source", "job", "source_id", "id")


def downgrade() -> None:
    drop_table("job")
