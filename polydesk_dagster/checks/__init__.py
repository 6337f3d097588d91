"""Asset checks: what must hold after a run, looked at again with a query of its own."""
