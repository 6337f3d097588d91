"""When services run: one schedule a row of the catalogue, and the cheap looks that spare a run."""
