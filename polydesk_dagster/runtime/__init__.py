"""How Polydesk is started and run: Dagster's instance, the run launcher, the supervisor, and what watches them."""
