"""Create the table of what servers tell each other, such as what the doctor found last."""

from dane_server.storage.ddl import (
    LONG,
    TIME,
    ascii_text,
    create_table,
    drop_table,
    key,
    required,
)

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    create_table(
        "bulletin",
        key("name", ascii_text(32)),
        required("written_at", TIME),
        required("text", LONG),
    )


def downgrade() -> None:
    drop_table("bulletin")
