"""The systems outside Polydesk, played by real servers that can be told to misbehave.

Here belongs what those systems would answer, and how an answer goes wrong on its way. What we make of it is ``remote``
and the clients (``sources``, ``central``, ``providers``); who starts them beside an installation, ``commands``.
"""
