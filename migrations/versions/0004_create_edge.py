"""Create the table of edges between tasks."""

from dane_server.storage.ddl import create_index, create_table, drop_table, flag, key

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    create_table(
        "edge",
        key("src"),
        key("dst"),
        flag("reopened"),
    )
    create_index("edge_back", "edge", "dst", "src")


def downgrade() -> None:
    drop_table("edge")
