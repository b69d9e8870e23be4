"""Find the request keys that are old."""

from dane_server.storage.ddl import create_index, drop_index

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    create_index("once_created", "once", "created_at")


def downgrade() -> None:
    drop_index("once_created", "once")
