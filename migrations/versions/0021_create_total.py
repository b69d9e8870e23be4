"""Create the table of what servers have counted, all of them together."""

from dane_server.storage.ddl import BIG, ascii_text, create_table, drop_table, key, required

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    create_table(
        "total",
        key("name", ascii_text(32)),
        key("label", ascii_text(64)),
        required("times", BIG),
    )


def downgrade() -> None:
    drop_table("total")
