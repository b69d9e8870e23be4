"""Count how often a task was let start after it may have killed a worker."""

from dane_server.storage.ddl import add_column, drop_column, number

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    add_column("task", number("starts"))


def downgrade() -> None:
    drop_column("task", "starts")
