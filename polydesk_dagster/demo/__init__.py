"""A realistic chain of clinics, and the simulators of the systems outside it; no rule imports it.

Here belongs what is made up: people, agendas, diaries, documents. Real data that tests read are in ``tests/data``; when
the demo is loaded is decided by ``commands``.
"""
