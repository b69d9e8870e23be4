"""Create the table of requests that count once."""

from dane_server.storage.ddl import BIG, TIME, ascii_text, create_table, drop_table, key, required

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    create_table(
        "once",
        key("request_key", ascii_text(255)),
        required("digest", ascii_text(64)),
        required("job_id", BIG),
        required("created_at", TIME),
    )


def downgrade() -> None:
    drop_table("once")
