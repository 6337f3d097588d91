"""Services that keep no asset: one job each, named after the service, thin.

Here belongs what Dagster must see of them. The rule is in ``clinic``, how it runs inside Dagster in ``running``;
services that keep something are ``assets``, when either starts is ``schedules``.
"""
