"""A realistic chain of clinics, and the simulators of the systems outside it; no rule imports it."""
