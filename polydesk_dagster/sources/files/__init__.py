"""Lists that a practice keeps in spreadsheets: CSV and XLSX in a folder or behind SFTP, by maps of columns."""
