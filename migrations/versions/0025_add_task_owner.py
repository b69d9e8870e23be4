"""Say whose task it is, and sort what is ready by owner and job."""

from dane_server.storage.ddl import add_column, drop_column, number, replace_index

revision = "0025"
down_revision = "0024"


def upgrade() -> None:
    add_column("task", number("owner_id", 1))
    replace_index("task_ready", "task", "state", "task_key", "rank", "owner_id", "job_id", "id")


def downgrade() -> None:
    replace_index("task_ready", "task", "state", "task_key", "rank", "id")
    drop_column("task", "owner_id")
