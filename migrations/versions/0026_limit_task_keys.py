"""Limit how many tasks of a key run at once, and how many begin in a second."""

import sqlalchemy as sa

from dane_server.storage.ddl import REAL, TIME, add_column, drop_column, optional

revision = "0026"
down_revision = "0025"


def upgrade() -> None:
    add_column("task_key", optional("concurrency", sa.Integer()))
    add_column("task_key", optional("rate", REAL))
    add_column("task_key", optional("burst", sa.Integer()))
    add_column("task_key", optional("next_at", TIME))


def downgrade() -> None:
    drop_column("task_key", "next_at")
    drop_column("task_key", "burst")
    drop_column("task_key", "rate")
    drop_column("task_key", "concurrency")
