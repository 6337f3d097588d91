"""PostgreSQL: where it runs, how it is reached, how its schema moves. Knows nothing of clinics' rules or Dagster."""
