"""The assets, one module a group; each hands a rule of the clinic to Dagster and shows its report.

Here belongs what Dagster must see: keys, groups, dependencies, partitions. The rule is in ``clinic``, ``sources`` or
``knowledge``, how it runs inside Dagster in ``running``, what must hold afterwards in ``checks``, services that keep
nothing in ``jobs``.
"""
