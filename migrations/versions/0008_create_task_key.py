"""Create the table of task keys."""

from dane_server.storage.ddl import LONG, ascii_text, create_table, drop_table, flag, key, optional

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    create_table(
        "task_key",
        key("task_key", ascii_text(100)),
        flag("paused"),
        optional("offer", LONG),
    )


def downgrade() -> None:
    drop_table("task_key")
