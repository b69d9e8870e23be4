"""Say whose job it is, and find the jobs of an owner."""

from dane_server.storage.ddl import add_column, create_index, drop_column, drop_index, number

revision = "0024"
down_revision = "0023"


def upgrade() -> None:
    add_column("job", number("owner_id", 1))
    create_index("job_owner", "job", "owner_id", "id")


def downgrade() -> None:
    drop_index("job_owner", "job")
    drop_column("job", "owner_id")
