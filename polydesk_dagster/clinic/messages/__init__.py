"""Writing to patients: what is due is planned into a ledger, and a dispatcher sends it, once."""
