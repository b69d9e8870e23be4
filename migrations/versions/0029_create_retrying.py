"""Create the table of jobs that are retried, some tasks at a time."""

from dane_server.storage.ddl import BIG, create_table, drop_table, key, number

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    create_table("retrying", key("job_id", BIG), number("step"), number("after_seq", -1))


def downgrade() -> None:
    drop_table("retrying")
