"""Create the table of sources."""

from dane_server.storage.ddl import LONG, create_table, drop_table, key, required, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_table(
        "source",
        key("source_id", text(255)),
        required("source_url", LONG),
    )


def downgrade() -> None:
    drop_table("source")
