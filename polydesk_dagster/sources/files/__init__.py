"""Lists that a practice keeps in spreadsheets: CSV and XLSX in a folder or behind SFTP, by maps of columns.

What becomes of what was read is ``sources.kinds``; the practice's own workbook, whose sheets are ours, is
``sources.practice``.
"""
