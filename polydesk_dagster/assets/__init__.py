"""The assets, one module a group; each hands a rule of the clinic to Dagster and shows its report."""
