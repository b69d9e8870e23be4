"""Create the table of workers."""

from dane_server.storage.ddl import (
    LONG,
    TIME,
    ascii_text,
    create_table,
    drop_table,
    key,
    number,
    required,
    text,
)

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    create_table(
        "worker",
        key("id", text(200)),
        required("host", text(255)),
        number("pid"),
        number("slots"),
        required("inbox", ascii_text(255)),
        required("task_keys", LONG),
        required("running", LONG),
        required("seen_at", TIME),
        required("since", TIME),
    )


def downgrade() -> None:
    drop_table("worker")
