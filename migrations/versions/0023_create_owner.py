"""Create the table of owners, and the nameless one, whose work is nobody's in particular."""

import sqlalchemy as sa

from dane_server.storage.ddl import (
    add_row,
    ascii_text,
    create_table,
    create_unique_index,
    drop_table,
    number,
    optional,
    required,
)

revision = "0023"
down_revision = "0022"


def upgrade() -> None:
    create_table(
        "owner",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True, nullable=False),
        required("name", ascii_text(100)),
        number("weight", 1),
        optional("max_open", sa.Integer()),
        sqlite_autoincrement=True,
    )
    create_unique_index("owner_name", "owner", "name")
    add_row("owner", id=1, name="")


def downgrade() -> None:
    drop_table("owner")
