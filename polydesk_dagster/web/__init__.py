"""The door: login, roles and guard before everything that listens; the pages; Dagster's page behind it."""
