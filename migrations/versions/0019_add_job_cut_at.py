"""Say when a cancellation took work on a job away from workers."""

from dane_server.storage.ddl import TIME, add_column, drop_column, optional

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    add_column("job", optional("cut_at", TIME))


def downgrade() -> None:
    drop_column("job", "cut_at")
