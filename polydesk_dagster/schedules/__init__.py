"""When services run by themselves: one schedule a row of the catalogue, and the cheap looks that spare a run.

Here belongs what a tick asks before it starts anything. How often a service runs is ``catalog``'s row; what starts runs
from the outside, ``sensors``; what a run then does, ``jobs`` and ``assets``.
"""
