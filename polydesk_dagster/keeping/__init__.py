"""An installation as one thing: set up and tried, copied whole, brought back from its copy, moved to another server or
to the next version of PostgreSQL.

What belongs here deals with both databases, the index, the documents and the settings together; each of them alone is
``database``'s, ``knowledge``'s and ``settings``' business.
"""
