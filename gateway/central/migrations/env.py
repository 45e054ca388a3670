"""Alembic's way into the migrations: always on a connection that ``Database.migrate`` hands over."""

from __future__ import annotations

from alembic import context

from gateway.central.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
