"""Writing to patients: what is due is planned into a ledger, and a dispatcher sends it, once.

Here belong what is to be told, to whom, when, in which words, what became of it, and whom the desk has to call instead.
How a text or a letter goes over the wire lives in ``providers``, how a run is told in ``told``, the bookings themselves
in ``clinic.bookings``, and what of it all is counted in ``clinic.statistics``.
"""
