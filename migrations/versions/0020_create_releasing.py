"""Create the table of nodes that let their many successors go some at a time."""

from dane_server.storage.ddl import BIG, create_table, drop_table, flag, key, required

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    create_table(
        "releasing",
        key("src"),
        required("job_id", BIG),
        required("after_dst", BIG),
        flag("again"),
    )


def downgrade() -> None:
    drop_table("releasing")
