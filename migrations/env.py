"""Runs migrations on the connection that `dane_server.storage.migrate` opened."""

from alembic import context
from alembic.util import CommandError

connection = context.config.attributes.get("connection")
if connection is None:
    raise CommandError("`dane db upgrade` runs migrations; `alembic revision` begins a new one")
context.configure(connection=connection)
with context.begin_transaction():
    context.run_migrations()
