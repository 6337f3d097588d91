"""x"""

from dagster import DefaultRunLauncher


class WarmRunLauncher(DefaultRunLauncher):
    pass
