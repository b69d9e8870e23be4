"""Create the table of attempts."""

import sqlalchemy as sa

from dane_server.storage.ddl import (
    LONG,
    REAL,
    TIME,
    create_index,
    create_table,
    drop_table,
    key,
    number,
    optional,
    required,
    text,
)

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    create_table(
        "attempt",
        key("task_id"),
        key("number", sa.Integer()),
        optional("worker", text(200)),
        number("outcome"),
        optional("message", LONG),
        optional("queued_at", TIME),
        optional("started_at", TIME),
        required("finished_at", TIME),
        optional("runtime", REAL),
    )
    create_index("attempt_finished", "attempt", "finished_at")


def downgrade() -> None:
    drop_table("attempt")
