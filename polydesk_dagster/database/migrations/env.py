"""Alembic's entry: runs on the connection that ``database.migrate`` hands over, inside its transaction and lock."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
