"""Create the table of jobs whose tasks are given another priority, some at a time."""

from dane_server.storage.ddl import (
    BIG,
    create_index,
    create_table,
    drop_table,
    key,
    number,
    required,
)

revision = "0027"
down_revision = "0026"


def upgrade() -> None:
    create_table(
        "reranking",
        key("id", counts_up=True),
        required("job_id", BIG),
        number("old_rank"),
        number("new_rank"),
        number("after_seq", -1),
        sqlite_autoincrement=True,
    )
    create_index("reranking_job", "reranking", "job_id", "id")


def downgrade() -> None:
    drop_table("reranking")
