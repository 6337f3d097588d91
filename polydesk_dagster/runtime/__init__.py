"""How Polydesk is started and run: Dagster's instance, the run launcher, the supervisor, and what watches them.

Here belong processes, their life and what is known of it (``state``); the fork server is ``forks``, Dagster's inside
``dagster_inside``. What a run does is a rule's and lives in ``clinic``, ``sources`` or ``knowledge``; what people see
of it, in ``web``, ``commands`` and ``told``.
"""
