"""Create the table of answers."""

from dane_server.storage.ddl import (
    BIG,
    LONG,
    ascii_text,
    create_index,
    create_table,
    drop_table,
    flag,
    key,
    number,
    required,
)

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    create_table(
        "answer",
        key("task_id"),
        required("job_id", BIG),
        required("task_key", ascii_text(100)),
        flag("solo"),
        number("attempt"),
        required("body", LONG),
    )
    create_index("answer_job", "answer", "job_id", "solo")


def downgrade() -> None:
    drop_table("answer")
