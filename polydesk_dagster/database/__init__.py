"""PostgreSQL: where it runs, how it is reached, how its schema moves, and what every writer needs of it (locks, bulk).

Nothing here knows a clinic's rules or Dagster: what tables mean is said by the rooms of ``clinic``, ``changes``,
``sources`` and ``knowledge``; who may keep the server alive is ``runtime``; Dagster's tables are
``runtime.dagster_inside``.
"""
