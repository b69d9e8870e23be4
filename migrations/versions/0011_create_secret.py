"""Create the table of secrets that all servers share."""

from dane_server.storage.ddl import ascii_text, create_table, drop_table, key, required

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    create_table(
        "secret",
        key("name", ascii_text(32)),
        required("value", ascii_text(128)),
    )


def downgrade() -> None:
    drop_table("secret")
