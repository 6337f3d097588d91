"""The rules of a clinic. They take a connection, an ``as_of`` instant and plain values, and return a report;
they never read the clock, the environment or Dagster."""
