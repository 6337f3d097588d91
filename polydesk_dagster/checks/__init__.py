"""Asset checks: what must hold before a plan is applied and after a run, looked at with a query of its own.

A rule is never repeated here, and none lives here: what a check compares with is in ``clinic``, ``sources`` or
``knowledge``; an invariant that the schema can hold is a constraint in ``database``.
"""
