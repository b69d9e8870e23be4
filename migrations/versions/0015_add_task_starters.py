"""Name the workers that a task was let start on."""

from dane_server.storage.ddl import LONG, add_column, drop_column, optional

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    add_column("task", optional("starters", LONG))


def downgrade() -> None:
    drop_column("task", "starters")
