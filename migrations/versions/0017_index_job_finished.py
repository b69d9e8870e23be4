"""Find the jobs that finished long ago."""

from dane_server.storage.ddl import create_index, drop_index

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    create_index("job_finished", "job", "finished_at", "id")


def downgrade() -> None:
    drop_index("job_finished", "job")
