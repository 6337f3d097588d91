"""What starts runs from the outside: news of studiolab, failed runs, Dagster's history.

Here belongs a look that moves a cursor. What only hangs on the clock is ``schedules``; reading the news itself is
``sources``, telling the owner of a failure ``runtime.alerts``.
"""
