"""How each kind of file becomes text: plain and HTML, PDF, Word, spreadsheets; run in the reading process only.

Here belongs what a format hides, leaves out or writes in its own way, and saying so. Which process runs it is
``reader``'s, how long it may take ``reading``'s, what becomes of the text ``splitting``'s and ``screening``'s.
"""
