"""Find the jobs that are being cancelled without reading all there are."""

from dane_server.storage.ddl import create_index, drop_index

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    create_index("job_cancelling", "job", "cancelling", "id")


def downgrade() -> None:
    drop_index("job_cancelling", "job")
