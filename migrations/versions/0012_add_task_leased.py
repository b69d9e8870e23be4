"""Let a task run on a lease."""

from dane_server.storage.ddl import add_column, drop_column, flag

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    add_column("task", flag("leased"))


def downgrade() -> None:
    drop_column("task", "leased")
