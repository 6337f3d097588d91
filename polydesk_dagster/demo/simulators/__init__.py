"""The systems outside Polydesk, played by real servers that can be told to misbehave."""
