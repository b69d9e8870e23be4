"""Count the heartbeats of a lease."""

from dane_server.storage.ddl import add_column, drop_column, number

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    add_column("task", number("beats"))


def downgrade() -> None:
    drop_column("task", "beats")
