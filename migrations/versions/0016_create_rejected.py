"""Create the table of answers that were not recorded."""

import sqlalchemy as sa

from dane_server.storage.ddl import (
    TIME,
    ascii_text,
    create_index,
    create_table,
    drop_table,
    key,
    number,
    optional,
    required,
    text,
)

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    create_table(
        "rejected",
        key("task_id"),
        key("attempt", sa.Integer()),
        key("reason", ascii_text(16)),
        number("times"),
        optional("worker", text(200)),
        required("last_at", TIME),
    )
    create_index("rejected_last", "rejected", "last_at")


def downgrade() -> None:
    drop_table("rejected")
