"""What starts runs from the outside: news of studiolab, a night's lists that are still to be read, a workbook dropped
into its folder, failed runs, Dagster's history.

Here belongs a look that moves a cursor. What only hangs on the clock is ``schedules``; reading the news itself is
``sources``, telling the owner of a failure ``runtime.alerts``.
"""
