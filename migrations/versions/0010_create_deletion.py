"""Create the table of jobs that are being deleted."""

from dane_server.storage.ddl import create_table, drop_table, key

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    create_table(
        "deletion",
        key("job_id"),
    )


def downgrade() -> None:
    drop_table("deletion")
