"""The door: login, roles and guard before everything that listens; the pages; Dagster's page behind it.

Here belongs who may come in, and what a page shows and asks. No rule lives here: pages read ``runtime.state`` and call
what the command calls; sentences are in ``told``; what programs ask without a cookie is ``front``.
"""
