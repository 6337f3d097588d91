"""The fork server: a process that has a code location loaded and forks a child for each run, which so starts at once,
and each process of ``polydesk up``, which so shares its memory.

Here belong the server's own life (``server``), what it has ready for runs (``ready``), whether it may be forked and
is up to date (``fitness``), the life of a child that executes a run (``child``) or becomes another program
(``becoming``), and how to start a server (``client``, which imports nothing of Dagster). What a run does in its
process is ``runtime.orders`` and ``runtime.dagster_inside.runs``.

Clients speak JSON, a line each way, over a unix socket in a private folder: ``launch`` a recorded run, ``execute`` a
job (record it, run it, and stream its events), ``become`` a program, ``terminate`` a run, or ask for the ``status``.
"""
